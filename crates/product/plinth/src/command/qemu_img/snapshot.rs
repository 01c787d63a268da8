//! `qemu-img snapshot`.

use plinth_image::format::Snapshot;
use serde_json::{Value, json};

use super::getopt::parse;
use super::names::show_size;
use super::open::{How, how, image};
use super::{Exit, Result, block_on, reason, say};
use crate::command::disk::{date, new_snapshot};

/// The line above snapshots.
pub const HEAD: &str = "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT";

/// QEMU ends such texts at the first zero.
fn text(name: &str) -> &str {
    name.split('\0').next().unwrap_or_default()
}

/// A snapshot as `info` gives it to programs.
pub fn value(s: &Snapshot) -> Value {
    let mut value = json!({
        "id": text(&s.id), "name": text(&s.name), "vm-state-size": s.vm_state_size, "date-sec": s.date.0,
        "date-nsec": s.date.1, "vm-clock-sec": s.vm_clock / 1_000_000_000,
        "vm-clock-nsec": s.vm_clock % 1_000_000_000,
    });
    if let Some(n) = s.icount {
        value["icount"] = n.into();
    }
    value
}

/// A snapshot for people.
pub fn line_of(s: &Value) -> String {
    let n = |k: &str| s[k].as_u64().unwrap_or(0);
    let t = |k: &str| s[k].as_str().unwrap_or_default().to_owned();
    let seconds = n("vm-clock-sec");
    let clock = format!(
        "{:04}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        n("vm-clock-nsec") / 1_000_000
    );
    let icount = s["icount"].as_u64().map_or("--".into(), |n| n.to_string());
    format!(
        "{:<7} {:<16} {:>8} {:>19} {clock:>15} {icount:>10}",
        t("id"),
        t("name"),
        show_size(n("vm-state-size")),
        date(n("date-sec"))
    )
}

/// `qemu-img snapshot`.
pub fn run(args: Vec<String>) -> Result {
    let parsed = parse(args, "la:c:d:hqU", &[("force-share", false, "U")])?;
    let actions: Vec<_> =
        parsed.options.iter().filter(|o| matches!(o.0.as_str(), "l" | "a" | "c" | "d")).collect();
    if actions.len() > 1 {
        return Err(Exit::usage("Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let file = parsed.one("Expecting one image file name")?;
    let (action, name) = actions.first().map_or(("l", ""), |(a, n)| (a.as_str(), n.as_str()));
    let how = How { no_backing: action == "l", ..how(&parsed, action == "l")? };
    block_on(async {
        let image = image(file, None, parsed.has("image-opts"), &how).await?;
        let snapshots = image.snapshots();
        if action == "l" {
            let all = snapshots.map(|s| s.list()).unwrap_or_default();
            if all.is_empty() {
                return Ok(());
            }
            let lines: String = all.iter().map(|s| format!("{}\n", line_of(&value(s)))).collect();
            return say(&format!("Snapshot list:\n{HEAD}\n{lines}"));
        }
        let doing = match action {
            "a" => "apply",
            "c" => "create",
            _ => "delete",
        };
        let failed = |why: String| Exit::failed(format!("Could not {doing} snapshot '{name}': {why}"));
        let Some(snapshots) = snapshots else { return Err(failed("Operation not supported".into())) };
        let explain = |e: plinth_image::Error| match (e.kind, action) {
            (plinth_image::ErrorKind::NotFound, "d") => failed("snapshot not found".into()),
            _ => failed(reason(&e)),
        };
        match action {
            "a" => snapshots.apply(name).await.map_err(explain)?,
            "c" => {
                // Nobody has counted instructions; QEMU's tool says that there were none.
                let new = Snapshot { icount: Some(0), ..new_snapshot(name, image.size()) };
                drop(snapshots.create(&new).await.map_err(explain)?);
            }
            _ => snapshots.delete(name).await.map_err(explain)?,
        }
        image.close().await.map_err(explain)
    })
}
