//! The test image.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The test image: half of it pieces of the files below /usr, at scattered places, half holes. The same for the same
/// files.
pub fn make(path: &Path, size: u64) -> Result<(), String> {
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
