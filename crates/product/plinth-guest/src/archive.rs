//! A suite on a mirror, with the cache in front of it.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::arch::GuestArch;
use crate::cache::{Cache, Pending, hex, sha256, sha256_file};
use crate::error::{AtPath, GuestError, Result};
use crate::http::{Client, PATIENT, Sink};
use crate::mirror::Mirror;
use crate::package::{Package, PackageId, PackageIndex};
use crate::progress::{Progress, Unit};
use crate::release::{Release, Verdict, Verification, clear_text};

const RELEASE_LIMIT: u64 = 16 << 20;
const INDEX_LIMIT: u64 = 256 << 20;
/// Unpacked, `Packages` of main takes 55 MB.
const INDEX_TEXT_LIMIT: u64 = 1 << 30;
const DOWNLOADS_AT_ONCE: usize = 4;

/// Where to get a suite from.
pub struct Archive<'a> {
    /// The mirror.
    pub mirror: Mirror,
    /// The suite, such as `trixie`.
    pub suite: String,
    /// The guest's architecture.
    pub arch: GuestArch,
    /// Where downloads stay.
    pub cache: &'a Cache,
    /// What checks the suite's signature.
    pub verification: &'a Verification,
    /// Who watches.
    pub progress: &'a dyn Progress,
}

/// The index of a suite, and whether its signature was checked.
pub struct Suite {
    /// The dates and checksums.
    pub release: Release,
    /// The packages.
    pub index: PackageIndex,
    /// The signature was checked and is good.
    pub verified: bool,
}

impl Archive<'_> {
    /// Fetches and checks the suite's index. Without a network the cached one serves.
    pub fn suite(&self, require_signature: bool) -> Result<Suite> {
        let client = Client::new(self.mirror.proxy.as_deref())?;
        let folder = self.cache.folder(&format!(
            "suites/{}-{}",
            self.suite,
            &sha256(self.mirror.uri.as_bytes())[..12]
        ))?;
        self.progress.step("Fetching the package index", 0, Unit::Bytes);
        let (text, verified) = self.release_text(&client, &folder, require_signature)?;
        let release = Release::parse(&text)?;
        if let Some(problem) = release.date_problem(SystemTime::now()) {
            self.progress.warn(&problem);
        }
        let index = self.index(&client, &folder, &release)?;
        Ok(Suite { release, index, verified })
    }

    /// Fetches the signed text, checks it, and only then lets it replace the cached one.
    fn release_text(
        &self,
        client: &Client,
        folder: &Path,
        require_signature: bool,
    ) -> Result<(String, bool)> {
        let names: &[&str] =
            if self.verification.wants_detached() { &["Release", "Release.gpg"] } else { &["InRelease"] };
        let cached = names.iter().all(|name| folder.join(name).is_file());
        let attempts = if cached { 1 } else { PATIENT };
        let mut fresh = Vec::new();
        for name in names {
            let url = self.url(&format!("dists/{}/{name}", self.suite));
            let mut content = Vec::new();
            match client.get(&url, RELEASE_LIMIT, attempts, &mut content) {
                Ok(()) => fresh.push(content),
                Err(error) if error.is_network() && cached => {
                    self.progress.note(&format!("using the cached package index ({error})"));
                    fresh.clear();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let mut pending = Vec::new();
        for (name, content) in names.iter().zip(&fresh) {
            let file = Pending::create(&folder.join(name))?;
            file.file().write_all(content).at("writing", file.path())?;
            pending.push(file);
        }
        let paths: Vec<PathBuf> = if pending.is_empty() {
            names.iter().map(|name| folder.join(name)).collect()
        } else {
            pending.iter().map(|file| file.path().to_owned()).collect()
        };
        let [signed, signature @ ..] = &paths[..] else { return Err(GuestError::NoMirror) };
        let verified = match self.verification.check(signed, signature.first().map(PathBuf::as_path))? {
            Verdict::Good => true,
            Verdict::CannotCheck(reason) if require_signature => {
                return Err(GuestError::Signature { what: "the package index".into(), reason });
            }
            Verdict::CannotCheck(reason) => {
                self.progress.warn(&format!("the packages' signature was not checked: {reason}"));
                false
            }
        };
        let text = fs::read_to_string(signed).at("reading", signed)?;
        let text = if names.len() == 1 { clear_text(&text)? } else { text };
        for file in pending {
            file.commit()?;
        }
        Ok((text, verified))
    }

    fn index(&self, client: &Client, folder: &Path, release: &Release) -> Result<PackageIndex> {
        let name = format!("main/binary-{}/Packages.xz", self.arch);
        let (sum, size) = release.files.get(&name).ok_or_else(|| {
            GuestError::Invalid(format!("the suite \"{}\" has no packages for {}", self.suite, self.arch))
        })?;
        let path = folder.join(format!("Packages-{}-{}.xz", self.arch, &sum[..16]));
        if !path.is_file() || sha256_file(&path)? != *sum {
            if *size > INDEX_LIMIT {
                return Err(GuestError::malformed("the Release file", "the package index is too large"));
            }
            self.progress.step("Fetching the package index", *size, Unit::Bytes);
            let plain = format!("dists/{}/{name}", self.suite);
            let by_hash = format!("dists/{}/main/binary-{}/by-hash/SHA256/{sum}", self.suite, self.arch);
            let download = |path_of_url: &str| self.download(client, path_of_url, &path, sum, *size);
            match release.by_hash.then(|| download(&by_hash)) {
                Some(Ok(())) => {}
                Some(Err(error)) if !matches!(error, GuestError::Status { status: 404, .. }) => {
                    return Err(error);
                }
                _ => download(&plain)?,
            }
        }
        let packed = fs::read(&path).at("reading", &path)?;
        let mut text = Vec::new();
        liblzma::read::XzDecoder::new(&packed[..])
            .take(INDEX_TEXT_LIMIT)
            .read_to_end(&mut text)
            .map_err(|e| GuestError::malformed("the package index", e.to_string()))?;
        PackageIndex::parse(&String::from_utf8_lossy(&text))
    }

    /// Fetches packages into the cache; returns their files in the order of `ids`.
    pub fn fetch(&self, index: &PackageIndex, ids: &[PackageId]) -> Result<Vec<PathBuf>> {
        let folder = self.cache.folder("debs")?;
        let client = Client::new(self.mirror.proxy.as_deref())?;
        let files: Vec<PathBuf> = ids.iter().map(|id| folder.join(file_name(index.get(*id)))).collect();
        // The largest first, so that the last download is not the longest one.
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(index.get(ids[*i]).size));
        let total = ids.iter().map(|id| index.get(*id).size).sum();
        self.progress.step("Fetching packages", total, Unit::Bytes);
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<GuestError>> = Mutex::new(None);
        let failed = || failure.lock().unwrap_or_else(|e| e.into_inner());
        std::thread::scope(|scope| {
            for _ in 0..DOWNLOADS_AT_ONCE {
                scope.spawn(|| {
                    while let Some(i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if failed().is_some() {
                            return;
                        }
                        if let Err(error) = self.fetch_one(&client, index.get(ids[*i]), &files[*i]) {
                            failed().get_or_insert(error);
                        }
                    }
                });
            }
        });
        let outcome = failed().take();
        outcome.map_or(Ok(files), Err)
    }

    fn fetch_one(&self, client: &Client, package: &Package, path: &Path) -> Result<()> {
        let cached = path.metadata().is_ok_and(|m| m.len() == package.size);
        if cached && sha256_file(path)? == package.sha256 {
            self.progress.advance(package.size);
            return Ok(());
        }
        self.download(client, &package.filename, path, &package.sha256, package.size)
    }

    /// Downloads a file whose checksum is known.
    fn download(&self, client: &Client, name: &str, path: &Path, sum: &str, size: u64) -> Result<()> {
        let pending = Pending::create(path)?;
        let mut sink = HashedFile {
            pending: &pending,
            hash: Sha256::new(),
            written: 0,
            reported: 0,
            progress: self.progress,
        };
        client.get(&self.url(name), size, PATIENT, &mut sink)?;
        let found = hex(&sink.hash.finalize());
        if found != sum {
            return Err(GuestError::Integrity { what: name.to_owned(), expected: sum.to_owned(), found });
        }
        pending.commit().map(drop)
    }

    fn url(&self, path: &str) -> String {
        // A version's epoch and `~` and `+` stand in file names as they are; nothing else needs escapes.
        format!("{}/{path}", self.mirror.uri)
    }
}

/// The checksum is part of the name, so that versions rebuilt with the same number never mix.
fn file_name(package: &Package) -> String {
    let sum = &package.sha256[..16];
    format!("{}_{}_{}_{sum}.deb", package.name, package.version.replace(':', "%3a"), package.arch)
}

/// Writes and hashes in one go.
struct HashedFile<'a> {
    pending: &'a Pending,
    hash: Sha256,
    written: u64,
    /// Bytes of this file that the progress has seen; a new attempt does not count them again.
    reported: u64,
    progress: &'a dyn Progress,
}

impl Sink for HashedFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.pending.file().write_all(bytes).at("writing", self.pending.path())?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        if self.written > self.reported {
            self.progress.advance(self.written - self.reported);
            self.reported = self.written;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        use std::io::Seek;
        self.pending.file().set_len(0).at("writing", self.pending.path())?;
        self.pending.file().rewind().at("writing", self.pending.path())?;
        self.hash = Sha256::new();
        self.written = 0;
        Ok(())
    }
}
