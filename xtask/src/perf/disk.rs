//! `cargo xtask perf disk`: `plinth disk` beside qemu-img, taken in alternation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wait4::Wait4;

use jobs::{FORMS, JOBS, Job, Nbd};

use super::report::{median, today};

mod device;
mod jobs;
mod source;

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
  --qemu-nbd PATH   The peer's server [default: qemu-nbd]
  --folder PATH     Where the images are [default: target/perf/disk]

Jobs: ";

struct Options {
    only: Vec<String>,
    runs: usize,
    size: u64,
    cold: bool,
    quick: bool,
    plinth: PathBuf,
    peer: PathBuf,
    server: PathBuf,
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
            server: "qemu-nbd".into(),
            folder: root.join("target/perf/disk"),
        };
        let mut args = args.iter();
        while let Some(name) = args.next() {
            match name.as_str() {
                "--cold" => options.cold = true,
                "--quick" => options.quick = true,
                "--only" | "--runs" | "--size" | "--plinth" | "--qemu-img" | "--qemu-nbd" | "--folder" => {
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
                        "--qemu-nbd" => options.server = value.into(),
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
    let secret = options.folder.join("pw");
    fs::write(&secret, "secret").map_err(|e| vec![format!("{}: {e}", secret.display())])?;
    let mut lines = BTreeMap::new();
    let mut problems = Vec::new();
    for (place, job) in JOBS.iter().enumerate() {
        if !options.only.is_empty() && !options.only.iter().any(|o| o == job.name) {
            continue;
        }
        match measure(job, &options) {
            Ok(line) => {
                eprintln!("{line}");
                lines.insert(place, line);
            }
            Err(e) => problems.push(format!("{}: {e}", job.name)),
        }
    }
    let rows = lines.values().map(String::as_str).collect::<Vec<_>>().join("\n");
    let table = format!("{HEAD}\n{rows}\n\n{}", circumstances(&options).map_err(one)?);
    if !options.quick {
        write(root, &options, &lines).map_err(one)?;
    }
    if problems.is_empty() {
        return Ok(table);
    }
    eprintln!("{table}");
    Err(problems)
}

/// MiB that any command may take.
const MOST_MEMORY: f64 = 64.0;

const HEAD: &str = "\
| what | cache | Plinth s | CPU s | MiB | qemu-img s | CPU s | MiB | tuned s | CPU s | ratio | ratio of CPU | ratio to tuned | device s | of device | wanted | met |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|";

/// What one run took.
#[derive(Clone, Copy)]
struct Sample {
    wall: f64,
    cpu: f64,
    mebibytes: f64,
}

/// Files that arguments name.
struct Files<'a> {
    options: &'a Options,
    /// `{new}`.
    new: PathBuf,
}

impl Files<'_> {
    fn path(&self, name: &str) -> PathBuf {
        let folder = &self.options.folder;
        match name {
            "new" => self.new.clone(),
            "out" => folder.join("out.img"),
            "pw" | "socket" => folder.join(name),
            form => folder.join(format!("source-{}.{form}", self.options.size >> 30)),
        }
    }

    /// Puts paths in the place of names in braces.
    fn fill(&self, arg: &str) -> String {
        let Some((before, rest)) = arg.split_once('{') else { return arg.to_owned() };
        let Some((name, after)) = rest.split_once('}') else { return arg.to_owned() };
        let value = match name {
            "uri" => format!("nbd+unix:///?socket={}", self.path("socket").display()),
            name => self.path(name).display().to_string(),
        };
        format!("{before}{value}{}", self.fill(after))
    }

    fn command(&self, program: &Path, args: &str) -> Command {
        let mut command = Command::new(program);
        command.args(args.split(' ').map(|a| self.fill(a))).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn start(&self, program: &Path, args: &str) -> Result<Sample, String> {
        let begin = Instant::now();
        let mut child = self
            .command(program, args)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        let mut said = String::new();
        if let Some(mut err) = child.stderr.take() {
            // It may say nothing that is text.
            let _ = err.read_to_string(&mut said);
        }
        wait(program, child, begin).map_err(|e| format!("{e}: {}", said.lines().next().unwrap_or_default()))
    }

    /// Runs a client of a server; the wall time is the client's, the CPU time that of both.
    fn talk(&self, server: (&Path, &str), client: (&Path, &str), of_server: bool) -> Result<Sample, String> {
        let socket = self.path("socket");
        // Of a run that was interrupted.
        let _ = fs::remove_file(&socket);
        let begin = Instant::now();
        let child = self
            .command(server.0, server.1)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", server.0.display()))?;
        while !socket.exists() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let talked = self.start(client.0, client.1);
        // Either ends with its only client.
        let served = wait(server.0, child, begin)?;
        let talked = talked?;
        let mebibytes = if of_server { served.mebibytes } else { talked.mebibytes };
        Ok(Sample { wall: talked.wall, cpu: talked.cpu + served.cpu, mebibytes })
    }

    /// Makes the images that arguments name and that are not there yet.
    fn make(&self, args: &str) -> Result<(), String> {
        let needs_raw = |args: &str| args.contains("{raw}");
        let missing = |(form, steps): &(&str, &[&str])| {
            args.contains(&format!("{{{form}}}"))
                && !self.path(form).exists()
                && steps.iter().any(|s| needs_raw(s))
        };
        if needs_raw(args) || FORMS.iter().any(missing) {
            source::make(&self.path("raw"), self.options.size)?;
        }
        for (form, steps) in FORMS {
            let path = self.path(form);
            if !args.contains(&format!("{{{form}}}")) || path.exists() {
                continue;
            }
            eprintln!("making {}", path.display());
            let made = Files { options: self.options, new: path.with_extension("new") };
            for step in *steps {
                made.start(&self.options.peer, step)?;
            }
            fs::rename(&made.new, &path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(())
    }
}

fn wait(program: &Path, child: Child, begin: Instant) -> Result<Sample, String> {
    let used = child.wait4().map_err(|e| format!("cannot wait for {}: {e}", program.display()))?;
    let wall = begin.elapsed().as_secs_f64();
    if !used.status.success() {
        return Err(format!("{} failed", program.display()));
    }
    let cpu = used.rusage.utime + used.rusage.stime;
    Ok(Sample { wall, cpu: cpu.as_secs_f64(), mebibytes: used.rusage.maxrss as f64 / f64::from(1 << 20) })
}

fn measure(job: &Job, options: &Options) -> Result<String, String> {
    let files = Files { options, new: PathBuf::new() };
    let all = match job.nbd {
        Nbd::No => format!("{} {}", job.plinth, job.peer),
        Nbd::Servers(other) | Nbd::Clients(other) => format!("{} {} {other}", job.plinth, job.peer),
    };
    files.make(&all)?;
    let named = |name: &&str| all.contains(&format!("{{{name}}}"));
    let sources: Vec<_> = std::iter::once("raw").chain(FORMS.iter().map(|f| f.0)).filter(named).collect();
    let mut tools = vec![(options.plinth.as_path(), job.plinth), (options.peer.as_path(), job.peer)];
    tools.extend(job.tuned.map(|args| (options.peer.as_path(), args)));
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); tools.len()];
    let mut device = Vec::new();
    for round in 0..options.runs * job.times {
        eprintln!("{}, round {} of {}", job.name, round / job.times + 1, options.runs);
        for turn in 0..tools.len() {
            // Who is first changes, so that a drift of the host's speed favours none.
            let n = (turn + round) % tools.len();
            let (program, args) = tools[n];
            for name in &sources {
                // What was read once stays in the page cache, or is read by the runs themselves.
                if options.cold || (round, turn) == (0, 0) {
                    warm(&files.path(name), options.cold)?;
                }
            }
            if let Some(prepare) = job.prepare {
                files.start(&options.peer, prepare)?;
            }
            let sample = match job.nbd {
                Nbd::No => files.start(program, args),
                Nbd::Servers(client) => {
                    let server = if n == 0 { program } else { &options.server };
                    files.talk((server, args), (&options.peer, client), true)
                }
                Nbd::Clients(server) => files.talk((&options.server, server), (program, args), false),
            };
            // Not every job writes it.
            let written = fs::metadata(files.path("out")).map_or(0, |m| m.blocks() * 512);
            let _ = fs::remove_file(files.path("out"));
            samples[n].push(sample?);
            if job.bulk && n == 0 && (options.cold || written != 0) {
                let read = if options.cold { sources.as_slice() } else { &[] };
                device.push(device::seconds(&files, read, written)?);
            }
        }
    }
    Ok(line(job, options.cold, &samples, device))
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
    // A file that is mostly holes has nothing to read there.
    let meta = file.metadata().map_err(failed)?;
    if meta.blocks() * 512 < meta.len() / 16 {
        return Ok(());
    }
    std::io::copy(&mut file, &mut std::io::sink()).map(drop).map_err(failed)
}

/// Three significant digits.
fn digits(value: f64) -> String {
    let places = if value >= 100.0 { 0 } else { usize::from(value < 10.0) + 1 };
    format!("{value:.places$}")
}

/// The share of the device's speed from which on it is the device that decides.
const AT_DEVICE: f64 = 0.9;

fn line(job: &Job, cold: bool, samples: &[Vec<Sample>], device: Vec<f64>) -> String {
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
    let small = pick(0, &memory).is_some_and(|m| m <= MOST_MEMORY);
    let met = counts.is_some_and(|r| r >= job.wanted) && tuned.is_none_or(|r| r >= 1.0) && small;
    let of_device = median(device.iter().zip(&samples[0]).map(|(device, own)| device / own.wall).collect());
    let met = match met {
        true => "yes",
        false if small && of_device.is_some_and(|share| share >= AT_DEVICE) => "the device's speed",
        false => "no",
    };
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
        median(device),
        of_device,
    ];
    for cell in cells {
        let _ = write!(text, " {} |", show(cell));
    }
    let wanted = match job.wanted {
        0.0 => format!("{MOST_MEMORY} MiB"),
        wanted => format!("{}{}", digits(wanted), if job.by_cpu { " (CPU)" } else { "" }),
    };
    let _ = write!(text, " {wanted} | {met} |");
    text
}

/// When, how often, and what else the host did.
fn circumstances(options: &Options) -> Result<String, String> {
    let version = Command::new(&options.peer).arg("--version").output().map_err(|e| e.to_string())?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let (today, runs) = (today()?, options.runs);
    Ok(format!("{today}, {runs} rounds, {cpus} CPUs, load {load}, beside {version}."))
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
    let text = format!(
        "{before}{BEGIN}\n{HEAD}\n{}\n\nLast run: {}\n{END}{after}",
        lines.into_values().collect::<Vec<_>>().join("\n"),
        circumstances(options)?,
    );
    fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_ratios_of_its_rounds() {
        let of = |wall| Sample { wall, cpu: wall / 2.0, mebibytes: 10.0 };
        let samples = [vec![of(1.0), of(2.0), of(1.0)], vec![of(3.0), of(8.0), of(5.0)]];
        let text = line(&JOBS[0], false, &samples, Vec::new());
        assert!(text.starts_with("| raw to qcow2 | warm | 1.00 | 0.50 | 10.0 | 5.00 |"), "{text}");
        assert!(text.ends_with("| 4.00 | 4.00 | – | – | – | 3.00 | yes |"), "{text}");
        let slow = [samples[0].clone(), samples[0].clone()];
        let text = line(&JOBS[0], false, &slow, vec![0.95, 1.9, 0.9]);
        assert!(text.ends_with("| 0.95 | 0.95 | 3.00 | the device's speed |"), "{text}");
        let text = line(&JOBS[0], false, &slow, vec![0.5, 1.0, 0.5]);
        assert!(text.ends_with("| 0.50 | 0.50 | 3.00 | no |"), "{text}");
        assert_eq!(text.matches('|').count(), HEAD.lines().next().unwrap().matches('|').count());
    }

    #[test]
    fn options() {
        let parse = |args: &[&str]| {
            Options::parse(Path::new("/r"), &args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
        };
        let options = parse(&["--only", "big-info", "--size", "1", "--cold"]).unwrap();
        assert_eq!((options.size, options.cold, options.runs), (1 << 30, true, 3));
        for wrong in [&["--only", "x"][..], &["--runs", "0"], &["--runs"], &["--fast"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
