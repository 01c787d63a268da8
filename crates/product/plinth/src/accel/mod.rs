//! The accelerators of this build, and which one a guest gets.

mod engine;

use plinth_engine::Tier;
use plinth_machine::isa::Isa;
use plinth_vm::Accelerator;

use crate::cli::{AccelChoice, CpuOption};
use crate::failure::{Code, Failure, Result};
use engine::EngineAccelerator;

/// How an accelerator is to be set up.
#[derive(Clone, Debug)]
pub struct AccelOptions {
    /// Write a symbol map of translated code for `perf`.
    pub perf_map: bool,
    /// Properties of the guest's CPUs.
    pub cpu: CpuOption,
}

/// One that this build has.
struct Known {
    choice: AccelChoice,
    /// Makes it for guests of an instruction set; `None`: it cannot run them.
    make: fn(&Isa, &AccelOptions) -> Option<Box<dyn Accelerator>>,
}

/// Best first.
static KNOWN: [Known; 2] = [
    Known { choice: AccelChoice::Engine, make: |isa, options| engine(isa, Tier::Translate, options) },
    Known { choice: AccelChoice::Interp, make: |isa, options| engine(isa, Tier::Interpret, options) },
];

fn engine(isa: &Isa, tier: Tier, options: &AccelOptions) -> Option<Box<dyn Accelerator>> {
    EngineAccelerator::new(isa, tier, options).map(|e| Box::new(e) as Box<dyn Accelerator>)
}

/// The accelerator for a guest.
///
/// # Errors
/// This build has none that runs the guest, or a property that its CPUs do not have.
pub fn select(choice: AccelChoice, isa: &Isa, options: &AccelOptions) -> Result<Box<dyn Accelerator>> {
    tracing::debug!(target: "plinth::accel", perf_map = options.perf_map, "looking for {}", name(choice));
    let properties = engine::cpu_properties(isa);
    if let Some((name, _)) = options.cpu.properties.iter().find(|(name, _)| !properties.contains(&&**name)) {
        let failure = Failure::usage(format!("CPUs of {} guests have no property `{name}`", isa.name));
        return Err(failure.help(format!("properties: {}", properties.join(", "))));
    }
    let mut known = KNOWN.iter().filter(|k| choice == AccelChoice::Auto || k.choice == choice);
    known.find_map(|k| (k.make)(isa, options)).ok_or_else(|| {
        let failure = Failure::new(
            Code::HostResource,
            format!("nothing on this host runs {} guests with --accel {}", isa.name, name(choice)),
        );
        if choice == AccelChoice::Auto {
            failure
        } else {
            failure.help("let Plinth choose with --accel auto")
        }
    })
}

fn name(choice: AccelChoice) -> &'static str {
    match choice {
        AccelChoice::Auto => "auto",
        AccelChoice::Engine => "engine",
        AccelChoice::Interp => "interp",
    }
}
