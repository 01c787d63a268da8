//! Single files out of packages.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use crate::arch::GuestArch;
use crate::archive::{Archive, Suite};
use crate::cache::{Cache, sha256, write_file};
use crate::deb;
use crate::error::{AtPath, GuestError, Result};
use crate::mirror;
use crate::progress::Progress;
use crate::release::Verification;

/// Files that are wanted are smaller than this.
const FILE_LIMIT: u64 = 64 << 20;

/// Files of a package, without what it depends on: firmware, for example. They stay in the user's cache and
/// are fetched if they are not there. `paths` have no `/` in front; the returned paths are in their order.
/// `mirror` is as in [`DebianSpec`](crate::DebianSpec).
pub fn package_files(
    arch: GuestArch,
    suite: &str,
    mirror: Option<&str>,
    package: &str,
    paths: &[&str],
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>> {
    let cache = Cache::of_user()?;
    let mirror = mirror::find(mirror)?;
    let key = sha256(format!("{suite}\0{arch}\0{}\0{package}", mirror.uri).as_bytes());
    let folder = cache.folder(&format!("files/{package}-{arch}-{}", &key[..16]))?;
    let lock_path = folder.join("lock");
    let lock = fs::File::create(&lock_path).at("creating", &lock_path)?;
    lock.lock().at("locking", &lock_path)?;
    let places: Vec<PathBuf> = paths.iter().map(|path| folder.join(path.replace('/', "-"))).collect();
    if places.iter().all(|place| place.is_file()) {
        return Ok(places);
    }
    let verification = Verification::of_host();
    let archive = Archive {
        mirror,
        suite: suite.to_owned(),
        arch,
        cache: &cache,
        verification: &verification,
        progress,
    };
    let suite = archive.suite(false)?;
    for (place, path) in places.iter().zip(paths) {
        write_file(place, &package_file(&archive, &suite, package, &[path])?)?;
    }
    Ok(places)
}

/// The file of a package that has one of these paths.
pub(crate) fn package_file(
    archive: &Archive<'_>,
    suite: &Suite,
    package: &str,
    paths: &[&str],
) -> Result<Vec<u8>> {
    let id = suite.index.find(package).ok_or_else(|| GuestError::UnknownPackage {
        name: package.into(),
        suite: archive.suite.clone(),
        arch: archive.arch.to_string(),
    })?;
    let mut found = Vec::new();
    for file in &archive.fetch(&suite.index, &[id])? {
        deb::read(file, &mut |entry, content| {
            if paths.iter().any(|path| entry.path == path.as_bytes()) {
                content
                    .take(FILE_LIMIT)
                    .read_to_end(&mut found)
                    .map_err(|e| GuestError::malformed(package, e.to_string()))?;
            }
            Ok(())
        })?;
    }
    if found.is_empty() {
        return Err(GuestError::malformed(package, format!("it has no file {}", paths.join(" or "))));
    }
    Ok(found)
}
