//! Writing a flattened device tree (Devicetree Specification 0.4, chapter 5).

use std::collections::BTreeMap;

use plinth_device::Range;
use vm_fdt::FdtWriter;

use crate::Error;

/// A device tree being written. Properties of a node come before its children.
pub struct Tree {
    writer: FdtWriter,
    handles: BTreeMap<String, u32>,
    /// The extra cell of an interrupt specifier, where the interrupt controller's has one.
    trigger: Option<u32>,
}

impl Tree {
    /// An empty tree. Interrupt specifiers are the line, then `trigger` if there is one.
    ///
    /// # Errors
    /// The writer refused.
    pub fn new(trigger: Option<u32>) -> Result<Self, Error> {
        Ok(Self { writer: FdtWriter::new()?, handles: BTreeMap::new(), trigger })
    }

    /// Writes a node with what `contents` puts into it.
    ///
    /// # Errors
    /// Those of `contents`; a bad name.
    pub fn node(
        &mut self,
        name: &str,
        contents: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let node = self.writer.begin_node(name)?;
        contents(self)?;
        Ok(self.writer.end_node(node)?)
    }

    /// The phandle that stands for `label`: the same number for the same label.
    pub fn handle(&mut self, label: &str) -> u32 {
        let next = self.handles.len() as u32 + 1;
        *self.handles.entry(label.to_owned()).or_insert(next)
    }

    /// Gives the current node the phandle of `label`.
    ///
    /// # Errors
    /// The writer refused.
    pub fn label(&mut self, label: &str) -> Result<(), Error> {
        let handle = self.handle(label);
        Ok(self.writer.property_phandle(handle)?)
    }

    /// A property without value.
    ///
    /// # Errors
    /// The writer refused.
    pub fn flag(&mut self, name: &str) -> Result<(), Error> {
        Ok(self.writer.property_null(name)?)
    }

    /// A string property.
    ///
    /// # Errors
    /// The writer refused, or the text has a zero byte.
    pub fn text(&mut self, name: &str, value: &str) -> Result<(), Error> {
        Ok(self.writer.property_string(name, value)?)
    }

    /// A string list.
    ///
    /// # Errors
    /// The writer refused.
    pub fn texts(&mut self, name: &str, values: &[&str]) -> Result<(), Error> {
        let values = values.iter().map(|s| (*s).to_owned()).collect();
        Ok(self.writer.property_string_list(name, values)?)
    }

    /// Cells of 32 bits.
    ///
    /// # Errors
    /// The writer refused.
    pub fn cells(&mut self, name: &str, values: &[u32]) -> Result<(), Error> {
        Ok(self.writer.property_array_u32(name, values)?)
    }

    /// Values of two cells.
    ///
    /// # Errors
    /// The writer refused.
    pub fn wide(&mut self, name: &str, values: &[u64]) -> Result<(), Error> {
        Ok(self.writer.property_array_u64(name, values)?)
    }

    /// Plain bytes.
    ///
    /// # Errors
    /// The writer refused.
    pub fn bytes(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        Ok(self.writer.property(name, value)?)
    }

    /// `reg` with two cells for addresses and for sizes.
    ///
    /// # Errors
    /// The writer refused.
    pub fn reg(&mut self, ranges: &[Range]) -> Result<(), Error> {
        let values: Vec<u64> = ranges.iter().flat_map(|r| [r.start, r.len]).collect();
        self.wide("reg", &values)
    }

    /// The interrupt specifier of `line`.
    #[must_use]
    pub fn interrupt(&self, line: u32) -> Vec<u32> {
        std::iter::once(line).chain(self.trigger).collect()
    }

    /// `interrupts` of the board's interrupt controller, whose label is `controller`.
    ///
    /// # Errors
    /// The writer refused.
    pub fn interrupts(&mut self, controller: &str, lines: &[u32]) -> Result<(), Error> {
        let parent = self.handle(controller);
        self.cells("interrupt-parent", &[parent])?;
        let cells: Vec<u32> = lines.iter().flat_map(|&l| self.interrupt(l)).collect();
        self.cells("interrupts", &cells)
    }

    /// The finished blob.
    ///
    /// # Errors
    /// The writer refused.
    pub fn finish(self) -> Result<Vec<u8>, Error> {
        Ok(self.writer.finish()?)
    }
}
