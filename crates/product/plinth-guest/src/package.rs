//! The index of a suite: `Packages`, one stanza per binary package.

use std::collections::HashMap;

use crate::control::{Atom, Stanza, stanzas};
use crate::error::{GuestError, Result};
use crate::version;

/// How much a system needs a package, Debian Policy section 2.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Nothing works without it.
    Required,
    /// Part of any system an administrator expects.
    Important,
    /// Part of a default installation.
    Standard,
    /// Everything else.
    #[default]
    Optional,
}

/// What the index says about one package.
#[derive(Debug, Clone, Default)]
pub struct Package {
    /// The name.
    pub name: String,
    /// The version.
    pub version: String,
    /// The architecture, or `all`.
    pub arch: String,
    /// The priority.
    pub priority: Priority,
    /// `Essential: yes`.
    pub essential: bool,
    /// Path of the file below the mirror's root.
    pub filename: String,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// `Pre-Depends` and `Depends`, as written.
    pub depends: [String; 2],
    /// `Conflicts` and `Breaks`, as written.
    pub conflicts: [String; 2],
    /// `Provides`, as written.
    pub provides: String,
}

impl Package {
    fn from_stanza(stanza: &Stanza) -> Option<Self> {
        let field = |name| stanza.get(name).unwrap_or_default().to_owned();
        Some(Self {
            name: stanza.get("Package").filter(|name| is_package_name(name))?.to_owned(),
            version: stanza.get("Version").filter(|v| is_version(v))?.to_owned(),
            arch: stanza.get("Architecture")?.to_owned(),
            priority: match stanza.get("Priority") {
                Some("required") => Priority::Required,
                Some("important") => Priority::Important,
                Some("standard") => Priority::Standard,
                _ => Priority::Optional,
            },
            essential: stanza.get("Essential") == Some("yes"),
            filename: stanza.get("Filename")?.to_owned(),
            size: stanza.get("Size")?.parse().ok()?,
            sha256: stanza.get("SHA256").filter(|s| s.len() == 64)?.to_ascii_lowercase(),
            depends: [field("Pre-Depends"), field("Depends")],
            conflicts: [field("Conflicts"), field("Breaks")],
            provides: field("Provides"),
        })
    }
}

/// Debian Policy section 5.6.1; the names become parts of file names.
pub(crate) fn is_package_name(name: &str) -> bool {
    name.len() >= 2
        && name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c))
}

fn is_version(version: &str) -> bool {
    !version.is_empty()
        && version.len() <= 200
        && version.bytes().all(|c| c.is_ascii_alphanumeric() || b".+-~:".contains(&c))
}

/// Number of a package in its [`PackageIndex`].
pub type PackageId = usize;

/// All packages of a suite for one architecture.
#[derive(Debug, Default)]
pub struct PackageIndex {
    packages: Vec<Package>,
    by_name: HashMap<String, PackageId>,
    /// Virtual name to (provider, provided version).
    providers: HashMap<String, Vec<(PackageId, Option<String>)>>,
}

impl PackageIndex {
    /// Reads a `Packages` text; stanzas without the fields needed are left out.
    pub fn parse(text: &str) -> Result<Self> {
        let mut index = Self::default();
        for package in stanzas(text).filter_map(|stanza| Package::from_stanza(&stanza)) {
            index.add(package);
        }
        if index.packages.is_empty() {
            return Err(GuestError::malformed("the package index", "it has no package in it"));
        }
        Ok(index)
    }

    /// Adds a package; of several versions of one name the newest stays.
    fn add(&mut self, package: Package) {
        let id = self.packages.len();
        if let Some(&old) = self.by_name.get(&package.name)
            && version::compare(&self.packages[old].version, &package.version).is_ge()
        {
            return;
        }
        for provided in crate::control::dependencies(&package.provides) {
            for atom in provided.alternatives {
                let version = atom.version.map(|(_, version)| version);
                self.providers.entry(atom.name).or_default().push((id, version));
            }
        }
        self.by_name.insert(package.name.clone(), id);
        self.packages.push(package);
    }

    /// The package of that id, which came from this index.
    pub fn get(&self, id: PackageId) -> &Package {
        &self.packages[id]
    }

    /// The real package of that name.
    pub fn find(&self, name: &str) -> Option<PackageId> {
        self.by_name.get(name).copied()
    }

    /// Every package that counts, in the order of the index.
    pub fn iter(&self) -> impl Iterator<Item = (PackageId, &Package)> {
        self.packages.iter().enumerate().filter(|(id, p)| self.by_name.get(&p.name) == Some(id))
    }

    /// Does package `id` satisfy `atom`, by its own name or by what it provides?
    pub fn satisfies(&self, id: PackageId, atom: &Atom, arch: &str) -> bool {
        let package = self.get(id);
        if atom.arch.as_deref().is_some_and(|wanted| wanted != arch) {
            return false;
        }
        if package.name == atom.name {
            return atom.version.as_ref().is_none_or(|(rel, bound)| rel.holds(&package.version, bound));
        }
        self.providers.get(&atom.name).into_iter().flatten().any(|(provider, provided)| {
            *provider == id
                && match (&atom.version, provided) {
                    (None, _) => true,
                    (Some((rel, bound)), Some(provided)) => rel.holds(provided, bound),
                    // A provision without a version satisfies no versioned dependency (Policy 7.5).
                    (Some(_), None) => false,
                }
        })
    }

    /// All packages that satisfy `atom`, the best first: the real package, then by priority and name.
    pub fn candidates(&self, atom: &Atom, arch: &str) -> Vec<PackageId> {
        let mut found: Vec<_> = self
            .providers
            .get(&atom.name)
            .into_iter()
            .flatten()
            .map(|(id, _)| *id)
            .filter(|id| self.find(&self.get(*id).name) == Some(*id))
            .filter(|id| self.satisfies(*id, atom, arch))
            .collect();
        found.sort_by_key(|id| (self.get(*id).priority, &self.get(*id).name));
        found.dedup();
        if let Some(real) = self.find(&atom.name)
            && self.satisfies(real, atom, arch)
        {
            found.retain(|id| *id != real);
            found.insert(0, real);
        }
        found
    }
}
