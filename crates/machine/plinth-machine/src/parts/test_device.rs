//! The test finisher, and the poweroff and reboot nodes that use it.

use std::sync::Arc;

use plinth_platform::TestDevice;

use crate::Error;
use crate::assembly::Assembly;
use crate::board::{Part, Site};
use crate::tree::Tree;

/// SiFive's test finisher as a syscon.
pub struct TestPart;

impl Part for TestPart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let device = TestDevice::new(machine.events.clone());
        machine.place(site, site.range()?, Arc::new(device))
    }

    fn describe(&self, site: &Site, _machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        tree.node(&site.node_name()?, |t| {
            t.texts("compatible", &["sifive,test1", "sifive,test0", "syscon"])?;
            t.reg(site.reg)?;
            t.label(site.name)
        })
    }

    fn describe_root(&self, site: &Site, tree: &mut Tree) -> Result<(), Error> {
        for (node, compatible, value) in [
            ("poweroff", "syscon-poweroff", TestDevice::POWER_OFF),
            ("reboot", "syscon-reboot", TestDevice::REBOOT),
        ] {
            let regmap = tree.handle(site.name);
            tree.node(node, |t| {
                t.text("compatible", compatible)?;
                t.cells("regmap", &[regmap])?;
                t.cells("offset", &[0])?;
                t.cells("value", &[value])
            })?;
        }
        Ok(())
    }
}
