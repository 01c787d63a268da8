//! `plinth disk map` and `plinth disk measure`.

use std::io::{BufWriter, StdoutLock, Write};
use std::process::ExitCode;

use plinth_image::format::Options;
use plinth_image::job::{self, Contents, MapEntry};
use serde_json::json;

use super::address::open_any;
use super::common::{failed, interruptible, open_image, result, usage};
use crate::cli::disk_tool::{MapArgs, MeasureArgs};
use crate::cli::{Global, OutputFormat, size};
use crate::failure::{Code, Failure, Result};

fn text(entry: &MapEntry) -> String {
    let e = &entry.extent;
    let what = match (e.present, e.zero, e.compressed) {
        (false, ..) => "nothing",
        (_, true, _) => "zeros",
        (.., true) => "compressed",
        _ => "data",
    };
    let host = e.host.map_or("-".into(), |h| h.to_string());
    format!("{:>16} {:>16} {what:<10} {:>5} {host:>16}\n", entry.start, e.len, e.depth)
}

fn value(entry: &MapEntry) -> serde_json::Value {
    let e = &entry.extent;
    json!({
        "start": entry.start, "length": e.len, "depth": e.depth, "present": e.present, "zero": e.zero,
        "data": e.data, "compressed": e.compressed, "offset": e.host,
    })
}

/// What is printed of a map, a line for each entry, as it is found: a map can be longer than memory.
struct Lines<'a> {
    out: BufWriter<StdoutLock<'a>>,
    json: bool,
    first: bool,
}

impl Lines<'_> {
    fn new(json: bool) -> std::io::Result<Self> {
        let mut lines = Self { out: BufWriter::new(std::io::stdout().lock()), json, first: true };
        let head =
            format!("{:>16} {:>16} {:<10} {:>5} {:>16}\n", "START", "LENGTH", "WHAT", "DEPTH", "AT IN FILE");
        lines.out.write_all(if json { "[" } else { &head }.as_bytes())?;
        Ok(lines)
    }

    fn add(&mut self, entry: &MapEntry) -> std::io::Result<()> {
        if !self.json {
            return self.out.write_all(text(entry).as_bytes());
        }
        let comma = if std::mem::take(&mut self.first) { "" } else { "," };
        write!(self.out, "{comma}\n{}", value(entry))
    }

    fn end(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.json) {
            self.out.write_all(b"\n]\n")?;
        }
        self.out.flush()
    }
}

/// Where the image turns out to be damaged, or a signal comes, what was printed is one array all the same.
impl Drop for Lines<'_> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

pub fn map(args: &MapArgs, global: &Global) -> Result<ExitCode> {
    let wrote = |e: std::io::Error| Failure::from_error(Code::Failed, "cannot write to standard output", &e);
    let done: Result<()> = interruptible(async {
        let opened = open_image(&args.image, true).await?;
        let start = args.start.map_or(0, |s| s.0);
        if start > opened.image.size() {
            let end = size::show(opened.image.size());
            return Err(Failure::usage(format!("--start is behind the disk's end at {end}")));
        }
        let end = args.length.map_or(u64::MAX, |l| start.saturating_add(l.0));
        let mut lines = Lines::new(global.output == OutputFormat::Json).map_err(wrote)?;
        let mut each = |entry: MapEntry| lines.add(&entry).map_err(|e| MapFailure(wrote(e)));
        let borders: Vec<u64> = opened.image.data_files().into_iter().map(|f| f.0).collect();
        job::map::<MapFailure>(&*opened.image, start, end, &borders, &mut each).await.map_err(|f| f.0)?;
        lines.end().map_err(wrote)
    });
    done.map(|()| ExitCode::SUCCESS)
}

/// A failure of a map: of the image, or of the output.
struct MapFailure(Failure);

impl From<plinth_image::Error> for MapFailure {
    fn from(e: plinth_image::Error) -> Self {
        Self(failed(e))
    }
}

pub fn measure(args: &MeasureArgs, global: &Global) -> Result<ExitCode> {
    let mut options = Options::default();
    for text in &args.options {
        options.add(text).map_err(|e| usage(&e))?;
    }
    let measured = interruptible(async {
        match (&args.path, args.size) {
            (Some(path), _) => {
                let opened = open_any(path, &args.open, args.from).await?;
                job::measure(args.to, &options, Contents::Disk(&*opened.image)).await.map_err(failed)
            }
            (None, size) => {
                let size = size.map_or(0, |s| s.0);
                job::measure(args.to, &options, Contents::Size(size)).await.map_err(failed)
            }
        }
    })?;
    let value = json!({ "required": measured.required, "fully_allocated": measured.fully_allocated });
    let text = format!(
        "required         {} ({} bytes)\nfully allocated  {} ({} bytes)\n",
        size::show(measured.required),
        measured.required,
        size::show(measured.fully_allocated),
        measured.fully_allocated
    );
    result(global, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
