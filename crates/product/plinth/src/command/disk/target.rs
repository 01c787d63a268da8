//! Where a new image goes: files, or an export that is there already.

use std::cell::RefCell;

use plinth_image::format::{Output, OutputFiles};
use plinth_image::graph::{Io, NodeRef};
use plinth_image::{Error, ErrorKind};

/// The place of a new image.
pub enum Target {
    /// New files, which get their names at the end.
    Files(OutputFiles),
    /// Something that is written in place. It is taken once.
    There(String, RefCell<Option<NodeRef>>),
}

impl Target {
    /// An export of this name.
    pub fn there(name: &str, node: NodeRef) -> Self {
        Self::There(name.to_owned(), RefCell::new(Some(node)))
    }

    /// Gives new files their names.
    ///
    /// # Errors
    /// Those of [`OutputFiles::finish`].
    pub fn finish(self) -> Result<(), Error> {
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

    fn has_folder(&self) -> bool {
        matches!(self, Self::Files(files) if files.has_folder())
    }

    fn header(&self) -> Option<Io<'_, NodeRef>> {
        match self {
            Self::Files(files) => files.header(),
            Self::There(..) => None,
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
