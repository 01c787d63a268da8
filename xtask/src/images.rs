//! Disk images that other programs made, read by Plinth and by qemu-img: `docs/real-images.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::made_by::made_by;

const HELP: &str = "\
Reads disk images of other programs with Plinth and with qemu-img, and compares.

Usage: cargo xtask images DIR [--plinth PATH] [--qemu-img PATH] [--md FILE]

DIR has a folder OWNER+NAME for each source repository, in it a folder for each revision, and below that the
repository's paths. Where an image is compressed there, the file that was unpacked from it stands beside it,
without the ending (.gz, .bz2, .xz, .zip).

  --plinth PATH    Program to run [default: it is built]
  --qemu-img PATH  QEMU's program [default: qemu-img]
  --md FILE        Write the results to this page

Each program has 120 seconds for each image. What they write goes to the folder for temporary files, as raw
images with holes. qemu-img opens whatever an image names. It is a failure if a disk differs, or if Plinth
crashes or takes too long; not if it refuses an image with an error.
";

const LIMIT_SECONDS: &str = "120";
/// Endings of the names of disk images.
const ENDINGS: [&str; 15] = [
    "vmdk", "vdi", "vhd", "vhdx", "avhd", "avhdx", "hds", "hdd", "qcow", "qcow2", "qed", "dmg", "cloop",
    "ova", "ovf",
];
/// Endings of compressed files.
const COMPRESSED: [&str; 4] = ["gz", "bz2", "xz", "zip"];
/// The bytes of larger disks are not hashed as a whole: almost all of them are zeros.
const WHOLE: u64 = 1 << 30;
/// Files with more in them are left out: the copies would fill the disk.
const STORED: u64 = 2 << 30;
const BLOCK: usize = 1 << 20;

struct Options {
    dir: PathBuf,
    plinth: Option<PathBuf>,
    qemu_img: PathBuf,
    md: Option<PathBuf>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, String> {
        let (mut dir, mut plinth, mut md) = (None, None, None);
        let mut qemu_img = PathBuf::from("qemu-img");
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().map(PathBuf::from).ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--plinth" => plinth = Some(value()?),
                "--qemu-img" => qemu_img = value()?,
                "--md" => md = Some(value()?),
                path if !path.starts_with('-') && dir.is_none() => dir = Some(PathBuf::from(path)),
                other => return Err(format!("no option `{other}`; see `cargo xtask images --help`")),
            }
        }
        let dir = dir.ok_or("`cargo xtask images DIR` needs the folder of the images")?;
        Ok(Self { dir, plinth, qemu_img, md })
    }
}

/// What a program did.
enum Outcome {
    Done(String),
    /// It said no: its error.
    Refused(String),
    /// It was killed, or it panicked.
    Broken(String),
}

/// Counts images that neither program can open for what is not there.
const MISSING: &str = "parts are missing";

/// What came of an image.
enum Verdict {
    Same,
    OnlyPlinth(String),
    OnlyQemu(String),
    Neither(String, String),
    NotRead(String),
    Differ(String),
    Broken(String),
}

impl Verdict {
    /// The column that counts it.
    fn kind(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::OnlyPlinth(_) => "only Plinth reads it",
            Self::OnlyQemu(_) => "only qemu-img reads it",
            Self::Neither(plinth, _) if plinth.contains("No such file") || plinth.contains("is none of:") => {
                MISSING
            }
            Self::Neither(..) => "both refuse it",
            Self::NotRead(_) => "not read",
            Self::Differ(_) => "differ",
            Self::Broken(_) => "Plinth fails",
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Same => "same".to_owned(),
            Self::OnlyPlinth(qemu) => format!("only Plinth reads it; qemu-img: {qemu}"),
            Self::OnlyQemu(plinth) => format!("only qemu-img reads it; refused: {plinth}"),
            Self::Neither(plinth, _) if self.kind() == MISSING => format!("{MISSING}: {}", named(plinth)),
            Self::Neither(plinth, qemu) => format!("refused: {plinth}; qemu-img: {qemu}"),
            Self::NotRead(why) => format!("not read: {why}"),
            Self::Differ(how) => format!("**differ**: {how}"),
            Self::Broken(how) => format!("**Plinth fails**: {how}"),
        }
    }
}

struct Row {
    sources: Vec<String>,
    made_by: String,
    format: String,
    size: Option<u64>,
    file: String,
    disk: String,
    check: String,
    verdict: Verdict,
}

/// `cargo xtask images DIR`: see [`HELP`].
///
/// # Errors
/// A disk differs, or Plinth has crashed or taken too long, or there are no images.
pub fn run(root: &Path, args: &[String]) -> Result<String, Vec<String>> {
    if args.iter().any(|a| a == "--help" || a == "-h") {
        return Ok(HELP.trim_end().to_owned());
    }
    let options = Options::parse(args).map_err(|e| vec![e])?;
    let plinth = match &options.plinth {
        Some(path) => path.clone(),
        None => crate::riscv_tests::build(root)?,
    };
    let real = |path: &Path| fs::canonicalize(path).map_err(|e| vec![format!("{}: {e}", path.display())]);
    let scratch = std::env::temp_dir().join(format!("plinth-images-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|e| vec![format!("{}: {e}", scratch.display())])?;
    let tools =
        Tools { dir: real(&options.dir)?, plinth: real(&plinth)?, qemu_img: options.qemu_img, scratch };
    let rows = tools.all();
    let _ = fs::remove_dir_all(&tools.scratch);
    let rows = rows.map_err(|e| vec![e])?;
    let page = page(&rows, &tools.version());
    if let Some(md) = &options.md {
        fs::write(md, page).map_err(|e| vec![format!("{}: {e}", md.display())])?;
    }
    let mut problems: Vec<String> = Vec::new();
    for row in &rows {
        if matches!(row.verdict, Verdict::Differ(_) | Verdict::Broken(_)) {
            problems.push(format!("{}: {}", row.sources.join(", "), row.verdict.text()));
        }
    }
    if problems.is_empty() { Ok(format!("images: {}", summary(&rows))) } else { Err(problems) }
}

struct Tools {
    dir: PathBuf,
    plinth: PathBuf,
    qemu_img: PathBuf,
    /// For what the programs write.
    scratch: PathBuf,
}

impl Tools {
    fn all(&self) -> Result<Vec<Row>, String> {
        let mut found = Vec::new();
        find(&self.dir, &mut found).map_err(|e| format!("{}: {e}", self.dir.display()))?;
        let parts: BTreeSet<PathBuf> = found.iter().flat_map(|image| parts(image)).collect();
        let mut rows: Vec<Row> = Vec::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for image in found.iter().filter(|i| !parts.contains(*i)) {
            let Some(row) = self.row(image)? else { continue };
            println!("{}: {}", row.sources[0], row.verdict.text());
            match seen.get(&row.file) {
                Some(&first) if matches!(row.verdict, Verdict::Same) => {
                    rows[first].sources.extend(row.sources);
                }
                _ => {
                    seen.insert(row.file.clone(), rows.len());
                    rows.push(row);
                }
            }
        }
        if rows.is_empty() {
            return Err(format!("no images in {}; see --help", self.dir.display()));
        }
        // What qemu-img cannot read may be beside it in a form that it can.
        let repository = |r: &Row| r.sources[0].split('@').next().unwrap_or_default().to_owned();
        let read: BTreeMap<(String, String), String> = (rows.iter().rev())
            .filter(|r| matches!(r.verdict, Verdict::Same))
            .map(|r| ((repository(r), r.disk.clone()), r.sources[0].clone()))
            .collect();
        for row in &mut rows {
            let other = read.get(&(repository(row), row.disk.clone()));
            if let (Verdict::OnlyPlinth(text), Some(other)) = (&mut row.verdict, other) {
                let _ = write!(text, "; the disk is that of {other}");
            }
        }
        rows.sort_by(|a, b| (&a.format, &a.sources).cmp(&(&b.format, &b.sources)));
        Ok(rows)
    }

    /// `None` is a file of another kind.
    fn row(&self, image: &Path) -> Result<Option<Row>, String> {
        let info = self.plinth("info", &[image]);
        let known: Value = match &info {
            Outcome::Done(out) => serde_json::from_str(out).unwrap_or_default(),
            _ => Value::Null,
        };
        let named = ending(image).filter(|e| ENDINGS.contains(&e.as_str()));
        let format = known["format"].as_str().map(str::to_owned);
        if named.is_none() && format.as_deref() == Some("raw") {
            return Ok(None);
        }
        let descriptor = if image.is_dir() { image.join("DiskDescriptor.xml") } else { image.to_owned() };
        let hash = |e: std::io::Error| format!("{}: {e}", descriptor.display());
        let file = File::open(&descriptor).and_then(|f| digest(&f, u64::MAX)).map_err(hash)?;
        let (verdict, disk) = match &info {
            Outcome::Broken(how) => (Verdict::Broken(format!("info: {how}")), String::new()),
            _ => self.compare(image, &known).map_err(|e| format!("{}: {e}", image.display()))?,
        };
        Ok(Some(Row {
            sources: vec![self.source(image)],
            made_by: made_by(image),
            check: match verdict {
                Verdict::Same | Verdict::OnlyPlinth(_) => self.check(image),
                _ => "-".to_owned(),
            },
            format: format.or(named).unwrap_or_else(|| "unknown".to_owned()),
            size: known["size"].as_u64(),
            file,
            disk,
            verdict,
        }))
    }

    /// Both programs' copies of the disk, and the hash of its bytes.
    fn compare(&self, image: &Path, known: &Value) -> Result<(Verdict, String), std::io::Error> {
        if known["allocated"].as_u64().is_some_and(|n| n > STORED) {
            return Ok((Verdict::NotRead("more than 2 GiB are stored".to_owned()), String::new()));
        }
        let (ours, theirs) = (self.scratch.join("plinth.raw"), self.scratch.join("qemu.raw"));
        let format = known["format"].as_str();
        if format == Some("raw")
            && let Some(other) = self.format_for_qemu(image)
        {
            return Ok((
                Verdict::OnlyQemu(format!("Plinth does not know its format, {other}")),
                String::new(),
            ));
        }
        let plinth = self.plinth("convert", &[image, &ours]);
        let qemu = self.convert_with_qemu(image, format, &theirs);
        let hash = |path: &Path| File::open(path).and_then(|f| digest(&f, WHOLE));
        let result = match (plinth, qemu) {
            (Outcome::Broken(how), _) => (Verdict::Broken(how), String::new()),
            (Outcome::Done(_), Outcome::Done(_)) if fs::metadata(&theirs)?.len() == 0 => {
                (Verdict::OnlyPlinth("a disk of 0 bytes".to_owned()), hash(&ours)?)
            }
            (Outcome::Done(_), Outcome::Done(_)) => {
                let verdict = difference(&File::open(&ours)?, &File::open(&theirs)?)?;
                (verdict.map_or(Verdict::Same, Verdict::Differ), hash(&ours)?)
            }
            (Outcome::Done(_), Outcome::Refused(e) | Outcome::Broken(e)) => {
                (Verdict::OnlyPlinth(e), hash(&ours)?)
            }
            (Outcome::Refused(e), Outcome::Done(_)) => (Verdict::OnlyQemu(e), hash(&theirs)?),
            (Outcome::Refused(e), Outcome::Refused(q) | Outcome::Broken(q)) => {
                (Verdict::Neither(e, q), String::new())
            }
        };
        for path in [ours, theirs] {
            let _ = fs::remove_file(path);
        }
        Ok(result)
    }

    fn plinth(&self, command: &str, paths: &[&Path]) -> Outcome {
        let mut args: Vec<&str> = vec!["disk", command, "--output", "json"];
        if command == "convert" {
            args.extend(["--to", "raw"]);
        }
        self.run(&self.plinth, &args, paths)
    }

    /// What qemu-img takes an image for that has no known format.
    fn format_for_qemu(&self, image: &Path) -> Option<String> {
        let Outcome::Done(out) = self.run(&self.qemu_img, &["info", "--output", "json"], &[image]) else {
            return None;
        };
        let info: Value = serde_json::from_str(&out).ok()?;
        info["format"].as_str().filter(|f| *f != "raw").map(str::to_owned)
    }

    fn convert_with_qemu(&self, image: &Path, format: Option<&str>, to: &Path) -> Outcome {
        // It knows Parallels' files, and not the folders that they are in. Parts are given one after the other.
        if ending(image).is_some_and(|e| e == "ova" || e == "ovf") {
            return Outcome::Refused("knows no packages".to_owned());
        }
        let mut paths: Vec<PathBuf> = vec![image.to_owned()];
        let mut format = format.map(str::to_owned).or_else(|| ending(image));
        if image.is_dir() {
            let all = fs::read_dir(image).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
            paths = all.filter(|p| ending(p).is_some_and(|e| e == "hds")).collect();
            paths.sort();
            format = None;
        }
        let driver = match format.as_deref() {
            Some("vhd") => Some("vpc"),
            // Names that it has too. What it does not have it must guess, as with what has no name.
            Some(
                f @ ("vmdk" | "vdi" | "vhdx" | "qcow2" | "qcow" | "qed" | "parallels" | "dmg" | "cloop"),
            ) => Some(f),
            _ => None,
        };
        let mut args: Vec<&str> = vec!["convert", "-O", "raw"];
        args.extend(driver.into_iter().flat_map(|d| ["-f", d]));
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).chain([to]).collect();
        match self.run(&self.qemu_img, &args, &paths) {
            // It replays the log of a VHDX only into the image itself.
            Outcome::Refused(e) if e.contains("log that needs to be replayed") => {
                let copy = self.scratch.join("replayed.vhdx");
                let replayed = match fs::copy(image, &copy) {
                    Ok(_) => self.run(&self.qemu_img, &["check", "-q", "-r", "all"], &[&copy]),
                    Err(e) => Outcome::Refused(format!("no copy: {e}")),
                };
                let outcome = match replayed {
                    Outcome::Done(_) => self.run(&self.qemu_img, &args, &[&copy, to]),
                    failed => failed,
                };
                let _ = fs::remove_file(copy);
                outcome
            }
            outcome => outcome,
        }
    }

    /// What `plinth disk check` says.
    fn check(&self, image: &Path) -> String {
        match self.plinth("check", &[image]) {
            Outcome::Done(out) => {
                let found: Value = serde_json::from_str(&out).unwrap_or_default();
                if found["clean"] == true {
                    return "clean".to_owned();
                }
                let mut text = String::new();
                for what in ["corruptions", "leaks", "errors"] {
                    if let Some(n) = found[what].as_u64().filter(|n| *n != 0) {
                        let _ = write!(text, "{n} {what} ");
                    }
                }
                text.trim_end().to_owned()
            }
            Outcome::Refused(e) if e.contains("cannot do it") => "-".to_owned(),
            Outcome::Refused(e) => e,
            Outcome::Broken(how) => format!("**Plinth fails**: {how}"),
        }
    }

    /// Runs a program on files, for no longer than it may take.
    fn run(&self, program: &Path, args: &[&str], paths: &[&Path]) -> Outcome {
        // Coreutils' `timeout` dies of the signal with which it ends what takes too long.
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", LIMIT_SECONDS])
            .arg(program)
            .args(args)
            .args(paths)
            .stdin(Stdio::null());
        // QEMU takes the name of a qcow2's data file from the current folder.
        if let Some(folder) = paths.first().and_then(|p| p.parent()) {
            command.current_dir(folder);
        }
        let out = match command.output() {
            Ok(out) => out,
            Err(e) => return Outcome::Broken(format!("cannot run `timeout`: {e}")),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match out.status.code() {
            Some(0) => Outcome::Done(text(&out.stdout)),
            Some(101) => Outcome::Broken(format!("panic: {}", self.plain(&text(&out.stderr), paths))),
            // Of `check`: something is wrong with the image.
            Some(1) if out.stdout.first() == Some(&b'{') => Outcome::Done(text(&out.stdout)),
            Some(n) if n < 128 => Outcome::Refused(self.plain(&text(&out.stderr), paths)),
            _ => Outcome::Broken(format!("killed, or more than {LIMIT_SECONDS} s ({})", out.status)),
        }
    }

    /// An error in one line, without the paths of this machine.
    fn plain(&self, stderr: &str, paths: &[&Path]) -> String {
        let json: Value = serde_json::from_str(stderr).unwrap_or_default();
        let first = || stderr.lines().find(|l| !l.contains("warning: ")).unwrap_or_default();
        let mut text = json["error"].as_str().unwrap_or_else(first).to_owned();
        for folder in [&self.scratch, &self.dir].into_iter().map(PathBuf::as_path) {
            let beside = paths.iter().filter_map(|p| p.parent()).find(|p| p.starts_with(folder));
            text = text.replace(&format!("{}/", beside.unwrap_or(folder).display()), "");
        }
        let text = text.trim_start_matches("error: ").trim_start_matches("qemu-img: ");
        match text.char_indices().nth(200) {
            Some((end, _)) => format!("{} ...", &text[..end]),
            None => text.to_owned(),
        }
    }

    /// `owner/name@revision:path`, where the path is that of the file that is in the repository.
    fn source(&self, image: &Path) -> String {
        let packed = COMPRESSED.iter().map(|e| PathBuf::from(format!("{}.{e}", image.display())));
        let path = packed.into_iter().find(|p| p.exists()).unwrap_or_else(|| image.to_owned());
        let path = path.strip_prefix(&self.dir).unwrap_or(&path).display().to_string();
        let mut parts = path.splitn(3, '/');
        let (repo, revision) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        format!("{}@{revision}:{}", repo.replacen('+', "/", 1), parts.next().unwrap_or_default())
    }

    fn version(&self) -> String {
        match self.run(&self.qemu_img, &["--version"], &[]) {
            Outcome::Done(out) => out.split(" (").next().unwrap_or_default().to_owned(),
            _ => "qemu-img".to_owned(),
        }
    }
}

/// An error with only the name of the file in it: paths in images are those of other machines.
fn named(error: &str) -> String {
    let mut parts: Vec<&str> = error.split('\'').collect();
    if let Some(path) = parts.get_mut(1) {
        *path = path.rsplit(['/', '\\']).next().unwrap_or_default();
    }
    parts.join("'")
}

fn ending(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// All files below `dir` that may be images; Parallels' folders as wholes.
fn find(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), std::io::Error> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<Result<_, std::io::Error>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if path.join("DiskDescriptor.xml").exists() {
                found.push(path);
            } else {
                find(&path, found)?;
            }
        } else if path.metadata()?.len() != 0
            && !ending(&path).is_some_and(|e| COMPRESSED.contains(&e.as_str()))
        {
            found.push(path);
        }
    }
    Ok(())
}

/// The files that a VMDK descriptor file names as the parts of its disk.
fn parts(image: &Path) -> Vec<PathBuf> {
    let mut start = Vec::new();
    if image.is_dir() || File::open(image).and_then(|f| f.take(1 << 16).read_to_end(&mut start)).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&start);
    if !text.trim_start().starts_with("# Disk DescriptorFile") {
        return Vec::new();
    }
    let extents = text.lines().filter(|l| l.starts_with("RW ") || l.starts_with("RDONLY "));
    extents.filter_map(|l| Some(image.with_file_name(l.split('"').nth(1)?))).collect()
}

/// Calls `f` with the place and the bytes of each block that is not a hole of `file`.
fn blocks(
    file: &File,
    mut f: impl FnMut(u64, &[u8]) -> Result<bool, std::io::Error>,
) -> Result<(), std::io::Error> {
    let end = file.metadata()?.len();
    let (mut at, mut block) = (0, vec![0; BLOCK]);
    while at < end {
        let Ok(data) = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) else { break };
        at = data - data % BLOCK as u64;
        let part = &mut block[..usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK)];
        file.read_exact_at(part, at)?;
        if !f(at, part)? {
            break;
        }
        at += BLOCK as u64;
    }
    Ok(())
}

/// SHA-256 of the bytes. If there are more than `whole`: of their number, and of the blocks of 1 MiB that have
/// other bytes than zero, each after its number (64 bits, little-endian).
fn digest(file: &File, whole: u64) -> Result<String, std::io::Error> {
    let (end, mut sha, mut done) = (file.metadata()?.len(), Sha256::new(), 0);
    let zeros = vec![0; BLOCK];
    let skip = |sha: &mut Sha256, mut n: u64| {
        while n != 0 {
            let part = usize::try_from(n).unwrap_or(BLOCK).min(BLOCK);
            sha.update(&zeros[..part]);
            n -= part as u64;
        }
    };
    if end > whole {
        sha.update(end.to_le_bytes());
    }
    blocks(file, |at, bytes| {
        if end <= whole {
            skip(&mut sha, at - done);
            sha.update(bytes);
        } else if bytes != &zeros[..bytes.len()] {
            sha.update((at / BLOCK as u64).to_le_bytes());
            sha.update(bytes);
        }
        done = at + bytes.len() as u64;
        Ok(true)
    })?;
    if end <= whole {
        skip(&mut sha, end - done);
    }
    let mark = if end <= whole { "" } else { "blocks:" };
    Ok(sha.finalize().iter().fold(mark.to_owned(), |text, byte| text + &format!("{byte:02x}")))
}

/// How two disks differ.
fn difference(ours: &File, theirs: &File) -> Result<Option<String>, std::io::Error> {
    let (a, b) = (ours.metadata()?.len(), theirs.metadata()?.len());
    if a != b {
        return Ok(Some(format!("{a} bytes, qemu-img: {b} bytes")));
    }
    let mut first: Option<u64> = None;
    let mut other = vec![0; BLOCK];
    for (one, two) in [(ours, theirs), (theirs, ours)] {
        blocks(one, |at, bytes| {
            let other = &mut other[..bytes.len()];
            two.read_exact_at(other, at)?;
            let here = bytes.iter().zip(&*other).position(|(x, y)| x != y).map(|n| at + n as u64);
            first = first.into_iter().chain(here).min();
            Ok(here.is_none())
        })?;
    }
    Ok(first.map(|at| format!("first at byte {at}")))
}

const KINDS: [&str; 8] = [
    "same",
    "only Plinth reads it",
    "only qemu-img reads it",
    "both refuse it",
    MISSING,
    "not read",
    "differ",
    "Plinth fails",
];

fn summary(rows: &[Row]) -> String {
    let count = |kind: &str| rows.iter().filter(|r| r.verdict.kind() == kind).count();
    let counts = KINDS.iter().filter(|k| count(k) != 0).map(|k| format!("{k} {}", count(k)));
    format!("{} images: {}", rows.len(), counts.collect::<Vec<_>>().join(", "))
}

/// What the page's columns are, and what the causes of known differences are.
const NOTES: &str = "\
- Multi-file images are in the list with their descriptor (of a folder of Parallels: `DiskDescriptor.xml`), whose
  hash it is then; compressed images with the hash of what was in them.
- The disk's hash is the first 16 digits of the SHA-256 of all of its bytes. With `blocks:`, for disks of more than
  1 GiB, it is that of the disk's size and of the blocks of 1 MiB which are not all zeros, each after its number
  (both 64 bits, little-endian).
- Who made an image is what the image itself says. `check` is what `plinth disk check` says.
- qemu-img has no packages (OVF, OVA), no differencing VDI, and not all compressions of DMG. It does not look at the
  parent of a differencing VHD: what it reads there is not the disk. The log of a VHDX it replays in a copy.
- Plinth has no qcow of version 1.
- Where parts are missing, the repository does not have them, or the image names a device of somebody's machine, or
  they are too large for the copy of the repository that was at hand.

";

/// The page `docs/real-images.md`.
fn page(rows: &[Row], qemu: &str) -> String {
    let mut text = format!(
        "# Disk images that other programs made\n\n\
         Here Plinth reads disk images of public repositories, most of them made by other programs, and each disk \
         is compared\nwith what {qemu} reads. To run it again, put each file to \
         `DIR/OWNER+NAME/REVISION/PATH`\n(`git show REVISION:PATH`), unpack compressed ones beside it, and run \
         `cargo xtask images DIR --md docs/real-images.md`.\n\n"
    );
    text.push_str(NOTES);
    let used: Vec<&str> = KINDS.into_iter().filter(|k| rows.iter().any(|r| r.verdict.kind() == *k)).collect();
    let _ =
        writeln!(text, "| format | images | {} |\n|---|---{}|", used.join(" | "), "|---".repeat(used.len()));
    let formats: BTreeSet<&str> = rows.iter().map(|r| r.format.as_str()).collect();
    for format in formats.into_iter().map(Some).chain([None]) {
        let of = || rows.iter().filter(|r| format.is_none_or(|f| f == r.format));
        let cells = used.iter().map(|k| of().filter(|r| r.verdict.kind() == *k).count().to_string());
        let cells = cells.collect::<Vec<_>>().join(" | ");
        let _ = writeln!(text, "| {} | {} | {cells} |", format.unwrap_or("all"), of().count());
    }
    text.push_str("\n| source | made by | format | virtual size | SHA-256 of the file | of the disk | check | result |\n");
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    for row in rows {
        let size = row.size.map_or("-".to_owned(), |n| n.to_string());
        let short = match row.disk.strip_prefix("blocks:") {
            Some(hash) => format!("blocks:{}", &hash[..16]),
            None => row.disk.chars().take(16).collect(),
        };
        let cells = [
            &row.sources.join(", "),
            &row.made_by,
            &row.format,
            &size,
            &row.file,
            &short,
            &row.check,
            &row.verdict.text(),
        ];
        let cells = cells.map(|c| c.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*"));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    fn file(name: &str, size: u64, data: &[(u64, &[u8])]) -> File {
        let path = std::env::temp_dir().join(format!("plinth-images-test-{}-{name}", std::process::id()));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.seek(SeekFrom::Start(*at)).unwrap();
            file.write_all(bytes).unwrap();
        }
        fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn differences_and_hashes_are_those_of_the_bytes() {
        let (large, at) = (5 * BLOCK as u64 + 100, 3 * BLOCK as u64 + 7);
        let a = file("a", large, &[(at, b"data")]);
        let b = file("b", large, &[(at, b"data"), (0, &[0; 4096])]);
        let c = file("c", large, &[(at, b"date")]);
        let d = file("d", large, &[(at, b"data"), (large - 1, b"x")]);
        assert_eq!(difference(&a, &b).unwrap(), None);
        assert_eq!(difference(&a, &c).unwrap(), Some(format!("first at byte {}", at + 3)));
        assert_eq!(difference(&a, &d).unwrap(), Some(format!("first at byte {}", large - 1)));
        assert!(difference(&a, &file("e", large - 1, &[])).unwrap().is_some());
        // Holes and zeros are the same, with both kinds of hash.
        for whole in [u64::MAX, 0] {
            let [a, b, c, d] = [&a, &b, &c, &d].map(|f| digest(f, whole).unwrap());
            assert_eq!(a, b);
            assert!(a != c && a != d);
        }
        assert_eq!(named("cannot open '/x/a b.img': not 'here'"), "cannot open 'a b.img': not 'here'");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(&file("f", 0, &[]), WHOLE).unwrap(), empty);
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&file("g", 3, &[(0, b"abc")]), WHOLE).unwrap(), abc);
    }
}
