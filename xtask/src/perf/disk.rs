//! `cargo xtask perf disk`: `plinth disk` beside qemu-img, taken in alternation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use wait4::Wait4;

use super::report::{median, today};

const HELP: &str = "\
Measures `plinth disk` and qemu-img in alternation and writes docs/performance-disk.md.

Usage: cargo xtask perf disk [OPTIONS]

Options:
  --only NAME       Take this job only; repeatable
  --runs N          Rounds [default: 3]
  --size GIB        Size of the test image [default: 4]
  --cold            Drop the source from the page cache before each run
  --quick           Print, write nothing
  --plinth PATH     Program to measure [default: $PLINTH or target/release/plinth]
  --qemu-img PATH   Its peer [default: qemu-img]
  --folder PATH     Where the images are [default: target/perf/disk]

Jobs: ";

/// A job for both tools. In arguments, `{raw}` is the test image, `{qcow2}` and so on the same in another format,
/// `{out}` a file that is not there.
struct Job {
    name: &'static str,
    title: &'static str,
    plinth: &'static str,
    peer: &'static str,
    /// The peer's arguments with its best tuning.
    tuned: Option<&'static str>,
    /// Times as fast as the peer with its defaults, at least.
    wanted: f64,
    /// The comparison that counts is of CPU time.
    by_cpu: bool,
}

const fn job(
    name: &'static str,
    title: &'static str,
    plinth: &'static str,
    peer: &'static str,
    tuned: Option<&'static str>,
    wanted: f64,
) -> Job {
    Job { name, title, plinth, peer, tuned, wanted, by_cpu: false }
}

const JOBS: &[Job] = &[
    job(
        "raw-qcow2",
        "raw to qcow2",
        "disk convert {raw} {out} --to qcow2",
        "convert -f raw -O qcow2 {raw} {out}",
        Some("convert -f raw -O qcow2 -t none -m 16 -W {raw} {out}"),
        3.0,
    ),
    job(
        "qcow2-raw",
        "qcow2 to raw",
        "disk convert {qcow2} {out} --to raw",
        "convert -f qcow2 -O raw {qcow2} {out}",
        Some("convert -f qcow2 -O raw -t none -m 16 -W {qcow2} {out}"),
        3.0,
    ),
    job(
        "raw-raw",
        "raw to raw",
        "disk convert {raw} {out} --from raw --to raw",
        "convert -f raw -O raw {raw} {out}",
        Some("convert -f raw -O raw -t none -m 16 -W {raw} {out}"),
        3.0,
    ),
    job(
        "raw-vmdk",
        "raw to vmdk",
        "disk convert {raw} {out} --to vmdk",
        "convert -f raw -O vmdk {raw} {out}",
        Some("convert -f raw -O vmdk -t none -m 16 -W {raw} {out}"),
        3.0,
    ),
    job(
        "raw-vhdx",
        "raw to vhdx",
        "disk convert {raw} {out} --to vhdx",
        "convert -f raw -O vhdx {raw} {out}",
        Some("convert -f raw -O vhdx -t none -m 16 -W {raw} {out}"),
        3.0,
    ),
    job(
        "raw-vdi",
        "raw to vdi",
        "disk convert {raw} {out} --to vdi",
        "convert -f raw -O vdi {raw} {out}",
        Some("convert -f raw -O vdi -t none -m 16 -W {raw} {out}"),
        3.0,
    ),
    Job {
        by_cpu: true,
        ..job(
            "zlib",
            "raw to qcow2, zlib",
            "disk convert {raw} {out} --to qcow2 --compress zlib",
            "convert -f raw -O qcow2 -c {raw} {out}",
            Some("convert -f raw -O qcow2 -c -m 16 -W {raw} {out}"),
            2.5,
        )
    },
    job(
        "zstd",
        "raw to qcow2, zstd",
        "disk convert {raw} {out} --to qcow2 --compress zstd",
        "convert -f raw -O qcow2 -c -o compression_type=zstd {raw} {out}",
        Some("convert -f raw -O qcow2 -c -o compression_type=zstd -m 16 -W {raw} {out}"),
        1.2,
    ),
    job(
        "zlib-raw",
        "qcow2, zlib, to raw",
        "disk convert {zlib} {out} --to raw",
        "convert -f qcow2 -O raw {zlib} {out}",
        Some("convert -f qcow2 -O raw -t none -m 16 -W {zlib} {out}"),
        2.0,
    ),
    job(
        "zstd-raw",
        "qcow2, zstd, to raw",
        "disk convert {zstd} {out} --to raw",
        "convert -f qcow2 -O raw {zstd} {out}",
        Some("convert -f qcow2 -O raw -t none -m 16 -W {zstd} {out}"),
        1.2,
    ),
    job(
        "stream",
        "raw to vmdk, streamOptimized",
        "disk convert {raw} {out} --to vmdk -o subformat=streamOptimized --compress",
        "convert -f raw -O vmdk -o subformat=streamOptimized {raw} {out}",
        None,
        5.0,
    ),
    job(
        "compare",
        "compare raw with qcow2",
        "disk compare {raw} {qcow2}",
        "compare -f raw -F qcow2 {raw} {qcow2}",
        None,
        2.0,
    ),
    job(
        "compare-raw",
        "compare raw with raw",
        "disk compare {raw} {copy}",
        "compare -f raw -F raw {raw} {copy}",
        None,
        2.0,
    ),
    job("check", "check qcow2", "disk check {qcow2}", "check -f qcow2 {qcow2}", None, 2.0),
    job(
        "map",
        "map qcow2",
        "--output json disk map {qcow2}",
        "map -f qcow2 --output=json {qcow2}",
        None,
        2.0,
    ),
    job(
        "measure",
        "measure raw for qcow2",
        "disk measure --to qcow2 {raw}",
        "measure -O qcow2 {raw}",
        None,
        2.0,
    ),
    job("info", "info of qcow2", "disk info {qcow2}", "info -f qcow2 {qcow2}", None, 2.0),
    job(
        "reads",
        "75,000 reads of 4 KiB at depth 64 from raw",
        "disk bench --format raw {raw}",
        "bench -f raw -t none -i io_uring {raw}",
        None,
        1.0,
    ),
];

/// The same disk in other forms, made by the peer.
const FORMS: [(&str, &str); 4] = [
    ("qcow2", "convert -f raw -O qcow2 -t none -m 16 -W"),
    ("copy", "convert -f raw -O raw -t none -m 16 -W"),
    ("zlib", "convert -f raw -O qcow2 -c -m 16 -W"),
    ("zstd", "convert -f raw -O qcow2 -c -o compression_type=zstd -m 16 -W"),
];

struct Options {
    only: Vec<String>,
    runs: usize,
    size: u64,
    cold: bool,
    quick: bool,
    plinth: PathBuf,
    peer: PathBuf,
    folder: PathBuf,
}

impl Options {
    fn parse(root: &Path, args: &[String]) -> Result<Self, String> {
        let plinth = std::env::var_os("PLINTH").map(PathBuf::from);
        let mut options = Self {
            only: Vec::new(),
            runs: 3,
            size: 4 << 30,
            cold: false,
            quick: false,
            plinth: plinth.unwrap_or_else(|| root.join("target/release/plinth")),
            peer: "qemu-img".into(),
            folder: root.join("target/perf/disk"),
        };
        let mut args = args.iter();
        while let Some(name) = args.next() {
            match name.as_str() {
                "--cold" => options.cold = true,
                "--quick" => options.quick = true,
                "--only" | "--runs" | "--size" | "--plinth" | "--qemu-img" | "--folder" => {
                    let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
                    let number = || {
                        let n = value.parse::<u64>().ok().filter(|n| (1..=1024).contains(n));
                        n.ok_or_else(|| format!("{name} {value}: it has to be a number above zero"))
                    };
                    match name.as_str() {
                        "--only" if JOBS.iter().any(|j| j.name == value) => options.only.push(value.clone()),
                        "--only" => return Err(format!("no job `{value}`; there are {}", names())),
                        "--runs" => options.runs = number()? as usize,
                        "--size" => options.size = number()? << 30,
                        "--plinth" => options.plinth = value.into(),
                        "--qemu-img" => options.peer = value.into(),
                        _ => options.folder = value.into(),
                    }
                }
                _ => return Err(format!("no option `{name}`; see `cargo xtask perf disk --help`")),
            }
        }
        Ok(options)
    }
}

fn names() -> String {
    JOBS.iter().map(|j| j.name).collect::<Vec<_>>().join(", ")
}

/// Runs the command.
///
/// # Errors
/// One line for each job that could not be done by one of the tools.
pub fn run(root: &Path, args: &[String]) -> Result<String, Vec<String>> {
    if args.iter().any(|a| a == "--help" || a == "-h") {
        return Ok(format!("{HELP}{}", names()));
    }
    let one = |e: String| vec![e];
    let options = Options::parse(root, args).map_err(one)?;
    fs::create_dir_all(&options.folder).map_err(|e| vec![format!("{}: {e}", options.folder.display())])?;
    let raw = options.folder.join(format!("source-{}.raw", options.size >> 30));
    make_source(&raw, options.size).map_err(one)?;
    let mut lines = BTreeMap::new();
    let mut problems = Vec::new();
    for (place, job) in JOBS.iter().enumerate() {
        if !options.only.is_empty() && !options.only.iter().any(|o| o == job.name) {
            continue;
        }
        match measure(job, &options, &raw) {
            Ok(line) => {
                eprintln!("{line}");
                lines.insert(place, line);
            }
            Err(e) => problems.push(format!("{}: {e}", job.name)),
        }
    }
    let table = format!("{HEAD}\n{}", lines.values().map(String::as_str).collect::<Vec<_>>().join("\n"));
    if !options.quick {
        write(root, &options, &lines).map_err(one)?;
    }
    if problems.is_empty() {
        return Ok(table);
    }
    eprintln!("{table}");
    Err(problems)
}

const HEAD: &str = "\
| what | cache | Plinth s | CPU s | MiB | qemu-img s | CPU s | MiB | tuned s | CPU s | ratio | ratio of CPU | ratio to tuned | wanted | met |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|";

/// What one run took.
#[derive(Clone, Copy)]
struct Sample {
    wall: f64,
    cpu: f64,
    mebibytes: f64,
}

fn start(program: &Path, args: &str, files: &dyn Fn(&str) -> PathBuf) -> Result<Sample, String> {
    let args: Vec<PathBuf> = args
        .split(' ')
        .map(|a| a.strip_prefix('{').and_then(|a| a.strip_suffix('}')).map_or_else(|| a.into(), files))
        .collect();
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    let mut said = String::new();
    if let Some(mut err) = child.stderr.take() {
        // It may say nothing that is text.
        let _ = err.read_to_string(&mut said);
    }
    let used = child.wait4().map_err(|e| format!("cannot wait for {}: {e}", program.display()))?;
    let wall = begin.elapsed().as_secs_f64();
    if !used.status.success() {
        return Err(format!("{} failed: {}", program.display(), said.lines().next().unwrap_or_default()));
    }
    let cpu = used.rusage.utime + used.rusage.stime;
    Ok(Sample { wall, cpu: cpu.as_secs_f64(), mebibytes: used.rusage.maxrss as f64 / f64::from(1 << 20) })
}

fn measure(job: &Job, options: &Options, raw: &Path) -> Result<String, String> {
    let out = options.folder.join("out.img");
    for (form, args) in FORMS {
        let wanted = [job.plinth, job.peer].iter().any(|a| a.contains(&format!("{{{form}}}")));
        let path = options.folder.join(format!("source-{}.{form}", options.size >> 30));
        if wanted && !path.exists() {
            let args = format!("{args} {{raw}} {{new}}");
            let new = path.with_extension("new");
            start(&options.peer, &args, &|name| if name == "raw" { raw.to_owned() } else { new.clone() })?;
            fs::rename(&new, &path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    let files = |name: &str| match name {
        "raw" => raw.to_owned(),
        "out" => out.clone(),
        form => options.folder.join(format!("source-{}.{form}", options.size >> 30)),
    };
    let mut tools = vec![(options.plinth.as_path(), job.plinth), (options.peer.as_path(), job.peer)];
    tools.extend(job.tuned.map(|args| (options.peer.as_path(), args)));
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); tools.len()];
    for round in 0..options.runs {
        eprintln!("{}, round {} of {}", job.name, round + 1, options.runs);
        for n in 0..tools.len() {
            // Who is first changes, so that a drift of the host's speed favours none.
            let n = (n + round) % tools.len();
            let (program, args) = tools[n];
            for name in ["raw", "qcow2", "copy", "zlib", "zstd"] {
                if args.contains(&format!("{{{name}}}")) {
                    warm(&files(name), options.cold)?;
                }
            }
            let sample = start(program, args, &files);
            // Not every job writes it.
            let _ = fs::remove_file(&out);
            samples[n].push(sample?);
        }
    }
    Ok(line(job, options.cold, &samples))
}

/// Reads a file into the page cache, or drops it from there.
fn warm(path: &Path, cold: bool) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    if cold {
        file.sync_all().map_err(failed)?;
        let all = std::num::NonZeroU64::new(file.metadata().map_err(failed)?.len());
        return rustix::fs::fadvise(&file, 0, all, rustix::fs::Advice::DontNeed)
            .map_err(|e| failed(e.into()));
    }
    std::io::copy(&mut file, &mut std::io::sink()).map(drop).map_err(failed)
}

/// Three significant digits.
fn digits(value: f64) -> String {
    let places = if value >= 100.0 { 0 } else { usize::from(value < 10.0) + 1 };
    format!("{value:.places$}")
}

fn line(job: &Job, cold: bool, samples: &[Vec<Sample>]) -> String {
    let pick =
        |n: usize, f: &dyn Fn(&Sample) -> f64| samples.get(n).and_then(|s| median(s.iter().map(f).collect()));
    // Ratios are taken within rounds: a host whose speed changes does less harm.
    let ratio = |n: usize, f: &dyn Fn(&Sample) -> f64| {
        let pairs = samples.get(n)?.iter().zip(&samples[0]);
        median(pairs.map(|(peer, own)| f(peer) / f(own).max(1e-4)).collect())
    };
    let wall = |s: &Sample| s.wall;
    let cpu = |s: &Sample| s.cpu;
    let memory = |s: &Sample| s.mebibytes;
    let (by_wall, by_cpu, tuned) = (ratio(1, &wall), ratio(1, &cpu), ratio(2, &wall));
    let counts = if job.by_cpu { by_cpu } else { by_wall };
    let met = counts.is_some_and(|r| r >= job.wanted) && tuned.is_none_or(|r| r >= 1.0);
    let show = |v: Option<f64>| v.map_or("–".to_owned(), digits);
    let mut text = format!("| {} | {} |", job.title, if cold { "cold" } else { "warm" });
    let cells = [
        pick(0, &wall),
        pick(0, &cpu),
        pick(0, &memory),
        pick(1, &wall),
        pick(1, &cpu),
        pick(1, &memory),
        pick(2, &wall),
        pick(2, &cpu),
        by_wall,
        by_cpu,
        tuned,
    ];
    for cell in cells {
        let _ = write!(text, " {} |", show(cell));
    }
    let wanted = format!("{}{}", digits(job.wanted), if job.by_cpu { " (CPU)" } else { "" });
    let _ = write!(text, " {wanted} | {} |", if met { "yes" } else { "no" });
    text
}

const BEGIN: &str = "<!-- perf disk:begin -->";
const END: &str = "<!-- perf disk:end -->";

/// Puts the lines into the page, in place of those of the same jobs.
fn write(root: &Path, options: &Options, new: &BTreeMap<usize, String>) -> Result<(), String> {
    let path = root.join("docs/performance-disk.md");
    let page = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
    let (before, (old, after)) =
        parts.ok_or_else(|| format!("{} lacks {BEGIN} and {END}", path.display()))?;
    let mut lines: BTreeMap<(usize, bool), String> = BTreeMap::new();
    for line in old.lines() {
        let place = JOBS.iter().position(|j| line.starts_with(&format!("| {} |", j.title)));
        if let Some(place) = place {
            lines.insert((place, line.contains("| cold |")), line.to_owned());
        }
    }
    lines.extend(new.iter().map(|(place, line)| ((*place, options.cold), line.clone())));
    let version = Command::new(&options.peer).arg("--version").output().map_err(|e| e.to_string())?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let text = format!(
        "{before}{BEGIN}\n{HEAD}\n{}\n\nLast run: {}, {} rounds, {cpus} CPUs, load {load}, beside {version}.\n{END}{after}",
        lines.into_values().collect::<Vec<_>>().join("\n"),
        today()?,
        options.runs,
    );
    fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// The test image: half of it pieces of the files below /usr, at scattered places, half holes. The same for the same
/// files.
fn make_source(path: &Path, size: u64) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    eprintln!("making {}", path.display());
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut files = Files { folders: vec!["/usr".into()], files: Vec::new(), open: None };
    let new = path.with_extension("new");
    let mut out = File::create(&new).map_err(failed)?;
    out.set_len(size).map_err(failed)?;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut length = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // From 64 KiB to 32 MiB, the small ones as likely as the large ones.
        ((64 << 10) << (random % 9)) + (random >> 20) % (64 << 10) * 16
    };
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while at < size {
        let end = (at + length() / 4096 * 4096).min(size);
        out.seek(SeekFrom::Start(at)).map_err(failed)?;
        while at < end {
            let want = (end - at).min(buffer.len() as u64) as usize;
            let n = files.read(&mut buffer[..want])?;
            out.write_all(&buffer[..n]).map_err(failed)?;
            at += n as u64;
        }
        at = (at + length() / 4096 * 4096).min(size);
    }
    out.sync_all().map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}

/// The contents of all files below a folder, in the order of their names, again and again.
struct Files {
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    open: Option<File>,
}

impl Files {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        let mut again = 0;
        loop {
            if let Some(file) = &mut self.open {
                match file.read(buffer) {
                    Ok(n) if n > 0 => return Ok(n),
                    _ => self.open = None,
                }
            } else if let Some(path) = self.files.pop() {
                self.open = File::open(path).ok();
            } else if let Some(folder) = self.folders.pop() {
                let mut all: Vec<PathBuf> =
                    fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
                all.sort_by(|a, b| b.cmp(a));
                for path in all {
                    match fs::symlink_metadata(&path) {
                        Ok(m) if m.is_dir() => self.folders.push(path),
                        Ok(m) if m.is_file() => self.files.push(path),
                        _ => {}
                    }
                }
            } else {
                again += 1;
                if again > 1 {
                    return Err("there are no files below /usr".to_owned());
                }
                self.folders.push("/usr".into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_ratios_of_its_rounds() {
        let of = |wall| Sample { wall, cpu: wall / 2.0, mebibytes: 10.0 };
        let samples = [vec![of(1.0), of(2.0), of(1.0)], vec![of(3.0), of(8.0), of(5.0)]];
        let text = line(&JOBS[0], false, &samples);
        assert!(text.starts_with("| raw to qcow2 | warm | 1.00 | 0.50 | 10.0 | 5.00 |"), "{text}");
        assert!(text.ends_with("| 4.00 | 4.00 | – | 3.00 | yes |"), "{text}");
        assert_eq!(text.matches('|').count(), HEAD.lines().next().unwrap().matches('|').count());
    }

    #[test]
    fn options() {
        let parse = |args: &[&str]| {
            Options::parse(Path::new("/r"), &args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
        };
        let options = parse(&["--only", "info", "--size", "1", "--cold"]).unwrap();
        assert_eq!((options.size, options.cold, options.runs), (1 << 30, true, 3));
        for wrong in [&["--only", "x"][..], &["--runs", "0"], &["--runs"], &["--fast"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
