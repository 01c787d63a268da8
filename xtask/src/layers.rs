//! A folder is a layer: imports point down only.

use std::collections::HashMap;
use std::path::Path;

/// What each layer may import beside itself. `crates/product` and `xtask` may use everything.
const LAYERS: &[(&str, &[&str])] = &[
    ("ground", &[]),
    ("image", &["ground"]),
    ("net", &["ground"]),
    ("vcpu", &["ground"]),
    ("cpu", &["ground", "vcpu"]),
    ("accel", &["ground", "vcpu"]),
    ("device", &["ground", "vcpu"]),
    ("machine", &["ground", "vcpu", "device"]),
    ("run", &["ground", "image", "net", "vcpu", "cpu", "accel", "device", "machine"]),
    ("product", &["ground", "image", "net", "vcpu", "cpu", "accel", "device", "machine", "run"]),
];

/// Crates that may contain unsafe code, each for a reason given at its top.
const UNSAFE: &[&str] =
    &["plinth-host", "plinth-memory", "plinth-codegen", "plinth-engine", "plinth-virtio", "plinth"];

/// Where `cfg(target_arch)` is legal.
const HOST_SPECIFIC: &[&str] = &["plinth-host", "plinth-codegen", "plinth-engine", "plinth-kvm"];

/// Checks every edge between the project's crates.
///
/// # Errors
/// One line for each violation.
pub fn check(root: &Path) -> Result<String, Vec<String>> {
    let packages = crate::packages(root, &["--no-deps".as_ref(), "--offline".as_ref()])?;
    let mut layer_of = HashMap::new();
    for p in &packages {
        let manifest = p["manifest_path"].as_str().unwrap_or_default();
        let relative = manifest.strip_prefix(&format!("{}/crates/", root.display())).unwrap_or_default();
        let layer = relative.split('/').next().unwrap_or_default();
        layer_of.insert(p["name"].as_str().unwrap_or_default().to_owned(), layer.to_owned());
    }
    let mut problems = Vec::new();
    let mut edges = 0;
    for p in &packages {
        let name = p["name"].as_str().unwrap_or_default();
        let layer = &layer_of[name];
        for d in p["dependencies"].as_array().into_iter().flatten() {
            let to = d["name"].as_str().unwrap_or_default();
            let Some(to_layer) = layer_of.get(to) else { continue };
            edges += 1;
            let test_only = d["kind"].as_str() == Some("dev") && to_layer == "test";
            if !layer.is_empty() && layer != to_layer && !test_only && !allowed(layer, to_layer) {
                problems.push(format!("{name} (crates/{layer}) may not use {to} (crates/{to_layer})"));
            }
        }
        let dir = Path::new(p["manifest_path"].as_str().unwrap_or_default()).parent();
        if let Some(dir) = dir {
            check_sources(name, &dir.join("src"), &mut problems);
        }
    }
    if problems.is_empty() {
        Ok(format!("layers: {} crates, {edges} edges, all downwards", packages.len()))
    } else {
        Err(problems)
    }
}

fn allowed(from: &str, to: &str) -> bool {
    LAYERS.iter().any(|(l, below)| *l == from && below.contains(&to))
}

fn check_sources(name: &str, dir: &Path, problems: &mut Vec<String>) {
    for path in crate::docs::files(dir, "rs") {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if name == "xtask" {
            continue;
        }
        if text.contains("allow(unsafe_code)") && !UNSAFE.contains(&name) {
            problems.push(format!("{}: unsafe code is not for {name}", path.display()));
        }
        let specific = text.lines().any(|l| l.contains("target_arch") && !l.trim_start().starts_with("//"));
        if specific && !HOST_SPECIFIC.contains(&name) {
            problems.push(format!("{}: cfg(target_arch) is not for {name}", path.display()));
        }
    }
}
