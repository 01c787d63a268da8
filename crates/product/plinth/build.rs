//! How the program is linked.

use std::env::var;
use std::process::Command;

/// The C library's version on the machine that builds, if it is glibc.
fn glibc() -> Option<(u32, u32)> {
    let out = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Half a megabyte of relocations in some kilobytes: the program starts in three quarters of the time. The C library
    // reads them since glibc 2.36, so a program that is built where it is older does without.
    let native = var("TARGET").ok() == var("HOST").ok();
    let gnu = var("CARGO_CFG_TARGET_ENV").is_ok_and(|e| e == "gnu");
    if native && gnu && glibc() >= Some((2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
