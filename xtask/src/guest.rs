//! The test guest: a Debian kernel with a busybox, for tests, benchmarks and trying things out.

use std::path::Path;
use std::process::Command;

/// `cargo xtask guest [ARCH]`: makes the guest in the cache, or finds it there, and prints its parts.
///
/// # Errors
/// It could not be made.
pub fn run(root: &Path, args: &[String]) -> Result<String, Vec<String>> {
    let arch = match args {
        [] => "riscv64",
        [arch] => arch,
        _ => return Err(vec!["`cargo xtask guest [ARCH]` takes one argument".to_owned()]),
    };
    let status = Command::new("cargo")
        .args(["run", "--quiet", "--release", "--package", "plinth-guest", "--example", "build", "--"])
        .args([arch, "test"])
        .current_dir(root)
        .status()
        .map_err(|e| vec![format!("cannot run cargo: {e}")])?;
    if !status.success() {
        return Err(vec![format!("the test guest could not be made: {status}")]);
    }
    Ok("guest: run it with `plinth run --kernel KERNEL --initrd INITRD --append CMDLINE`".to_owned())
}
