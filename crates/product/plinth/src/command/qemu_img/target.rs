//! Where a new image goes: files, or an export that is there already.

use std::cell::RefCell;
use std::path::Path;

use plinth_image::format::{Format, OpenOptions, Output, OutputFiles};
use plinth_image::graph::{Cache, Io, NodeRef};
use plinth_image::{Error, ErrorKind};
use plinth_nbd::uri::Uri;

use super::create::create_reason;
use super::{Exit, Result};
use crate::command::disk::open_source;

/// The place of a new image.
pub enum Target {
    /// New files, which get their names at the end.
    Files(OutputFiles),
    /// Something that is written in place. It is taken once.
    There(String, RefCell<Option<NodeRef>>),
}

impl Target {
    /// The place that the user names. Where the name is a link, the file behind it is replaced, not the link.
    pub async fn new(name: &str, cache: Cache) -> Result<Self> {
        if Uri::looks_like(name) {
            let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
            let opened = open_source(Path::new(name), &options).await;
            let opened = opened.map_err(|e| Exit::failed(format!("{name}: {}", e.message)))?;
            return Ok(Self::There(name.to_owned(), RefCell::new(Some(opened.image as NodeRef))));
        }
        let path = Path::new(name.strip_prefix("file:").unwrap_or(name));
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let files = OutputFiles::new(&real, cache);
        files.map(Self::Files).map_err(|e| Exit::failed(format!("{name}: {}", create_reason(&e, name))))
    }

    /// Gives new files their names.
    ///
    /// # Errors
    /// Those of [`OutputFiles::finish`].
    pub fn finish(self) -> std::result::Result<(), Error> {
        match self {
            Self::Files(files) => files.finish(),
            Self::There(..) => Ok(()),
        }
    }
}

impl Output for Target {
    fn name(&self) -> &str {
        match self {
            Self::Files(files) => files.name(),
            Self::There(name, _) => name,
        }
    }

    fn main(&self) -> Io<'_, NodeRef> {
        match self {
            Self::Files(files) => files.main(),
            Self::There(name, node) => {
                let node = node.borrow_mut().take();
                let taken = move || {
                    Error::new(ErrorKind::Busy, format!("cannot create '{name}'"), "it is being written")
                };
                Box::pin(async move {
                    let node = node.ok_or_else(taken)?;
                    // A new image counts on zeros where it has written nothing.
                    node.write_zeroes(0, node.size(), true).await?;
                    Ok(node)
                })
            }
        }
    }

    fn sibling<'a>(&'a self, name: &'a str) -> Io<'a, NodeRef> {
        match self {
            Self::Files(files) => files.sibling(name),
            Self::There(own, _) => {
                let why = format!("there is no place for '{name}' beside it");
                let error = Error::new(ErrorKind::Unsupported, format!("cannot create '{own}'"), why);
                Box::pin(async { Err(error) })
            }
        }
    }
}
