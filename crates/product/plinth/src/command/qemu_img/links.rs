//! Files and images that the user gives in place of those that an image names.

use std::rc::Rc;

use plinth_image::format::{BackingLink, Image, Links, NoLinks};
use plinth_image::graph::{Io, NodeRef};

/// What is given, and where the rest comes from.
#[derive(Clone)]
pub struct Given {
    /// Opens what is not given.
    pub inner: Rc<dyn Links>,
    /// The image below.
    pub backing: Option<Rc<dyn Image>>,
    /// The data file.
    pub data: Option<NodeRef>,
}

impl Default for Given {
    fn default() -> Self {
        Self { inner: Rc::new(NoLinks), backing: None, data: None }
    }
}

impl Links for Given {
    fn open_file<'a>(&'a self, name: &'a str, read_only: bool) -> Io<'a, NodeRef> {
        match self.data.clone() {
            Some(data) => Box::pin(async { Ok(data) }),
            None => self.inner.open_file(name, read_only),
        }
    }

    fn open_backing<'a>(&'a self, link: &'a BackingLink) -> Io<'a, Rc<dyn Image>> {
        match self.backing.clone() {
            Some(backing) => Box::pin(async { Ok(backing) }),
            None => self.inner.open_backing(link),
        }
    }

    fn candidates(&self, suffix: &str) -> Vec<String> {
        self.inner.candidates(suffix)
    }
}
