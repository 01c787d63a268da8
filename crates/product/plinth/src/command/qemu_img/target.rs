//! Where a new image goes, as qemu-img names it.

use std::path::Path;

use plinth_image::format::{Format, OpenOptions, OutputFiles};
use plinth_image::graph::Cache;
use plinth_nbd::uri::Uri;

use super::create::create_reason;
use super::{Exit, Result};
use crate::command::disk::{Target, open_source};

/// The place that the user names. Where the name is a link, the file behind it is replaced, not the link.
pub async fn target(name: &str, cache: Cache) -> Result<Target> {
    if Uri::looks_like(name) {
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let opened = open_source(Path::new(name), &options).await;
        let opened = opened.map_err(|e| Exit::failed(format!("{name}: {}", e.message)))?;
        return Ok(Target::there(name, opened.image));
    }
    let path = Path::new(name.strip_prefix("file:").unwrap_or(name));
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let files = OutputFiles::new(&real, cache);
    files.map(Target::Files).map_err(|e| Exit::failed(format!("{name}: {}", create_reason(&e, name))))
}
