//! `plinth disk snapshot`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use plinth_image::format::{Opened, Snapshot, Snapshots};
use serde_json::{Value, json};

use super::common::{close, failed, interruptible, open_image, result};
use crate::cli::disk_tool::{ImageArgs, SnapshotCommand};
use crate::cli::{Global, size};
use crate::failure::{Code, Failure, Result};
use crate::printable::one_line;

/// A snapshot, for programs.
pub fn value(s: &Snapshot) -> Value {
    json!({
        "id": s.id, "name": s.name, "vm_state_size": s.vm_state_size, "date": s.date.0,
        "date_nanoseconds": s.date.1, "vm_clock_nanoseconds": s.vm_clock, "disk_size": s.disk_size,
    })
}

/// Seconds since 1970 as a date and time, UTC.
pub fn date(seconds: u64) -> String {
    let Ok(seconds) = i64::try_from(seconds) else { return "unknown".into() };
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The date of a day counted from 1970-01-01 (Gregorian calendar: 400 years have 146,097 days).
fn civil(days: i64) -> (i64, i64, i64) {
    // Counted from 1 March of a year 0, so that the leap day is a year's last.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

fn snapshots(opened: &Opened) -> Result<&dyn Snapshots> {
    opened.image.snapshots().ok_or_else(|| {
        let what = format!("images of the format {} have no snapshots inside", opened.image.format());
        Failure::new(Code::Failed, what).help("qcow2 has: `plinth disk convert IMAGE NEW.qcow2`")
    })
}

fn list(image: &ImageArgs, global: &Global) -> Result<()> {
    let all = interruptible(async { Ok(snapshots(&open_image(image, true).await?)?.list()) })?;
    let mut text = String::new();
    if all.is_empty() {
        text = "no snapshots\n".into();
    } else {
        text += &format!("{:<6} {:<24} {:<20} {:>10} {:>10}\n", "ID", "NAME", "DATE", "VM STATE", "DISK");
    }
    for s in &all {
        let (state, disk) = (size::show(s.vm_state_size), size::show(s.disk_size));
        text += &format!(
            "{:<6} {:<24} {:<20} {state:>10} {disk:>10}\n",
            one_line(&s.id),
            one_line(&s.name),
            date(s.date.0)
        );
    }
    result(global, &Value::Array(all.iter().map(value).collect()), &text)
}

pub fn run(command: &SnapshotCommand, global: &Global) -> Result<ExitCode> {
    let (args, doing) = match command {
        SnapshotCommand::List { image } => return list(image, global).map(|()| ExitCode::SUCCESS),
        SnapshotCommand::Create(args) => (args, "create"),
        SnapshotCommand::Apply(args) => (args, "apply"),
        SnapshotCommand::Delete(args) => (args, "delete"),
    };
    let made = interruptible(async {
        let opened = open_image(&args.image, false).await?;
        let all = snapshots(&opened)?;
        let made = match doing {
            "create" => {
                let template = new(&args.name, opened.image.size());
                Some(all.create(&template).await.map_err(failed)?)
            }
            "apply" => {
                all.apply(&args.name).await.map_err(failed)?;
                None
            }
            _ => {
                all.delete(&args.name).await.map_err(failed)?;
                None
            }
        };
        close(&*opened.image).await?;
        Ok::<_, Failure>(made)
    })?;
    let text = made.as_ref().map_or(String::new(), |s| format!("snapshot {} '{}'\n", s.id, s.name));
    result(global, &made.as_ref().map_or(json!({}), value), &text)?;
    Ok(ExitCode::SUCCESS)
}

/// A snapshot of a disk of so many bytes, made now.
pub fn new(name: &str, disk_size: u64) -> Snapshot {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Snapshot {
        name: name.to_owned(),
        date: (now.as_secs(), now.subsec_nanos()),
        disk_size,
        ..Snapshot::default()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        assert_eq!(super::date(0), "1970-01-01 00:00:00");
        assert_eq!(super::date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(super::date(1_790_000_000), "2026-09-21 14:13:20");
    }
}
