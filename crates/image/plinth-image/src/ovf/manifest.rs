//! Manifests: checksums of a package's files (DSP0243, section 5.2).

use plinth_host::aio::offload;
use sha2::digest::DynDigest;

use super::Package;
use crate::Error;
use crate::format::Progress;
use crate::graph::{IoBuf, Node};

/// Bytes of a manifest at most.
pub const MAX_LEN: u64 = 1 << 20;
/// Bytes that are read at once.
const AT_ONCE: u64 = 4 << 20;

/// Algorithms of checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-1, of old packages.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "SHA1",
            Algorithm::Sha256 => "SHA256",
            Algorithm::Sha512 => "SHA512",
        }
    }

    fn hasher(self) -> Box<dyn DynDigest + Send> {
        match self {
            Algorithm::Sha1 => Box::new(sha1::Sha1::default()),
            Algorithm::Sha256 => Box::new(sha2::Sha256::default()),
            Algorithm::Sha512 => Box::new(sha2::Sha512::default()),
        }
    }
}

/// Checksums by file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// File, algorithm, checksum in lower-case hexadecimal digits.
    pub entries: Vec<(String, Algorithm, String)>,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Files whose checksum is right.
    pub files: Vec<String>,
    /// Files that the envelope names and the manifest does not have.
    pub unlisted: Vec<String>,
}

impl Manifest {
    /// Reads lines such as `SHA256(disk.vmdk)= 0123...`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
        let mut manifest = Self::default();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let bad = || {
                format!(
                    "the line '{}' is not a checksum",
                    line.chars().take(80).collect::<String>().escape_debug()
                )
            };
            let (head, sum) = line.rsplit_once('=').ok_or_else(bad)?;
            let (algorithm, file) = head.split_once('(').ok_or_else(bad)?;
            let file = file.trim().strip_suffix(')').ok_or_else(bad)?;
            let all = [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512];
            let name = algorithm.trim().replace('-', "").to_ascii_uppercase();
            let algorithm = all.into_iter().find(|a| a.name() == name).ok_or_else(bad)?;
            let sum = sum.trim().to_ascii_lowercase();
            let digits = algorithm.hasher().output_size() * 2;
            if sum.len() != digits || !sum.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            manifest.entries.push((file.to_owned(), algorithm, sum));
        }
        Ok(manifest)
    }

    /// The text of the file.
    pub(super) fn write(&self) -> String {
        self.entries.iter().map(|(file, a, sum)| format!("{}({file})= {sum}\n", a.name())).collect()
    }
}

/// The checksum of all that a node has.
pub(super) async fn checksum(
    node: &dyn Node,
    algorithm: Algorithm,
    progress: &Progress,
) -> Result<String, Error> {
    let mut hasher = algorithm.hasher();
    let mut at = 0;
    let read = |at: u64| node.read(at, IoBuf::new((node.size() - at).min(AT_ONCE) as usize));
    let mut next = (node.size() > 0).then(|| read(0));
    while let Some(reading) = next.take() {
        let data = reading.await?;
        let n = data.len() as u64;
        at += n;
        let hashing = offload(move || {
            hasher.update(&data);
            hasher
        });
        // Reading goes on while another thread counts.
        next = (at < node.size()).then(|| read(at));
        hasher = hashing.await;
        progress.add(n);
    }
    Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

impl Package {
    /// Compares all files with the manifest. `None`: the package has none.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for the first file that differs; it cannot be read.
    pub async fn verify(&self, progress: &Progress) -> Result<Option<Verified>, Error> {
        let Some(manifest) = &self.manifest else { return Ok(None) };
        let mut nodes = Vec::with_capacity(manifest.entries.len());
        for (file, ..) in &manifest.entries {
            nodes.push(self.member(file).await?);
        }
        progress.total.set(nodes.iter().map(|n| n.size()).sum());
        let mut files = Vec::new();
        for ((file, algorithm, sum), node) in manifest.entries.iter().zip(nodes) {
            let found = checksum(&*node, *algorithm, progress).await?;
            if found != *sum {
                let why = format!("its {} is {found}, and the manifest says {sum}", algorithm.name());
                return Err(Error::corrupt(file, why));
            }
            files.push(file.clone());
        }
        let listed = |name: &str| files.iter().any(|f| f == name || f.starts_with(&format!("{name}.")));
        let unlisted = self.files.iter().filter(|f| !listed(&f.name)).map(|f| f.name.clone()).collect();
        Ok(Some(Verified { files, unlisted }))
    }
}
