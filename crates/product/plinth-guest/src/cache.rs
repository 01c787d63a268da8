//! The cache folder: downloads by content, images by what was asked for.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::{AtPath, GuestError, Result};

/// What the name of an unfinished file has behind that of the finished one.
const PART: &str = ".part-";
/// Longer than it takes from making a file to locking it.
const JUST_NOW: Duration = Duration::from_secs(60);

/// A folder of files that can be made again.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache: `$PLINTH_CACHE`, `$XDG_CACHE_HOME/plinth` or `~/.cache/plinth`.
    pub fn of_user() -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = variable("PLINTH_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|p| p.join("plinth")))
            .or_else(|| variable("HOME").map(|p| p.join(".cache/plinth")))
            .ok_or(GuestError::NoCache)?;
        Ok(Self::at(root))
    }

    /// A cache in the given folder, which is made when it is needed.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A folder in the cache; it exists afterwards.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).at("creating the folder", &path)?;
        Ok(path)
    }
}

/// A file that gets its name only when it is complete; dropped before that, it vanishes.
#[derive(Debug)]
pub struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
}

impl Pending {
    /// Opens a temporary file beside `target`.
    pub fn create(target: &Path) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        remove_leftovers(target);
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!("{PART}{}-{number}", std::process::id()));
        let temporary = target.with_file_name(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .at("creating", &temporary)?;
        // The lock tells other processes that somebody still writes here; it ends with this process.
        file.lock().at("locking", &temporary)?;
        Ok(Self { file, temporary, target: target.to_owned() })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name it has now.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Writes the content to the disk and gives the file its name.
    pub fn commit(self) -> Result<PathBuf> {
        self.file.sync_all().at("writing", &self.temporary)?;
        fs::rename(&self.temporary, &self.target).at("creating", &self.target)?;
        Ok(self.target.clone())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // After a commit the name is gone; a leftover would only cost space.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Removes what processes that were killed have left of this file.
fn remove_leftovers(target: &Path) {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name().and_then(|n| n.to_str())) else {
        return;
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let part = file_name.to_str().and_then(|n| n.strip_prefix(name)).and_then(|n| n.strip_prefix(PART));
        // A file that was made just now may not be locked yet.
        let old = || {
            let made = entry.metadata().and_then(|m| m.modified());
            made.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > JUST_NOW))
        };
        let abandoned = || old() && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if part.is_some_and(|p| p.bytes().all(|c| c.is_ascii_digit() || c == b'-')) && abandoned() {
            // If it cannot be removed, it only costs space.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Writes a whole file so that it is there either completely or not at all.
pub fn write_file(target: &Path, content: &[u8]) -> Result<PathBuf> {
    let pending = Pending::create(target)?;
    pending.file().write_all(content).at("writing", pending.path())?;
    pending.commit()
}

/// SHA-256 of a file in hexadecimal.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("opening", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer).at("reading", path)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// SHA-256 of bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn leftovers_go_and_living_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("disk");
        let living = Pending::create(&target).unwrap();
        let (now, before) = (SystemTime::now(), SystemTime::now() - JUST_NOW * 2);
        living.file().set_modified(before).unwrap();
        for (name, time, stays) in [
            ("disk.part-1-0", before, false),
            ("disk.part-1-1", now, true),
            ("disk.part-x", before, true),
            ("other.part-1-0", before, true),
        ] {
            File::create(dir.path().join(name)).unwrap().set_modified(time).unwrap();
            let next = Pending::create(&target).unwrap();
            assert_eq!(dir.path().join(name).exists(), stays, "{name}");
            assert!(living.path().exists() && next.path().exists());
        }
    }

    #[test]
    fn files_appear_complete_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        drop(Pending::create(&target).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        write_file(&target, b"abc").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abc");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(
            sha256_file(&target).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
