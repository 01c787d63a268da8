//! From a list of wanted packages to everything that has to be installed.

use std::collections::{BTreeSet, VecDeque};

use crate::control::{Dependency, dependencies};
use crate::error::{GuestError, Result};
use crate::package::{PackageId, PackageIndex, Priority};

/// What to install.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// The architecture of the guest, in Debian's spelling.
    pub arch: &'a str,
    /// The suite, for messages.
    pub suite: &'a str,
    /// Names (real or virtual) wanted besides the required packages.
    pub names: Vec<String>,
    /// Virtual packages that the image provides itself.
    pub provided: &'a [&'a str],
}

/// Computes the closure of the wanted packages, everything with `Priority: required` and everything
/// essential. The result is sorted by name.
pub fn resolve(index: &PackageIndex, wanted: &Wanted<'_>) -> Result<Vec<PackageId>> {
    let mut closure = Closure { index, wanted, chosen: BTreeSet::new(), queue: VecDeque::new() };
    for (id, package) in index.iter() {
        if package.essential || package.priority == Priority::Required {
            closure.choose(id);
        }
    }
    for name in &wanted.names {
        let atom = dependencies(name).into_iter().flat_map(|d| d.alternatives).next();
        let id =
            atom.and_then(|atom| index.candidates(&atom, wanted.arch).first().copied()).ok_or_else(|| {
                GuestError::UnknownPackage {
                    name: name.clone(),
                    suite: wanted.suite.to_owned(),
                    arch: wanted.arch.to_owned(),
                }
            })?;
        closure.choose(id);
    }
    while let Some(id) = closure.queue.pop_front() {
        for field in &index.get(id).depends {
            for dependency in dependencies(field) {
                closure.satisfy(id, &dependency)?;
            }
        }
    }
    closure.check_conflicts()?;
    let mut ids: Vec<_> = closure.chosen.into_iter().collect();
    ids.sort_by(|a, b| index.get(*a).name.cmp(&index.get(*b).name));
    Ok(ids)
}

struct Closure<'a> {
    index: &'a PackageIndex,
    wanted: &'a Wanted<'a>,
    chosen: BTreeSet<PackageId>,
    queue: VecDeque<PackageId>,
}

impl Closure<'_> {
    fn choose(&mut self, id: PackageId) {
        if self.chosen.insert(id) {
            self.queue.push_back(id);
        }
    }

    /// Does nothing when an alternative is there already; else takes the first one that can be had
    /// without a conflict with what was chosen before.
    fn satisfy(&mut self, package: PackageId, dependency: &Dependency) -> Result<()> {
        let arch = self.wanted.arch;
        let alternatives = &dependency.alternatives;
        if alternatives.iter().any(|atom| {
            self.wanted.provided.contains(&atom.name.as_str())
                || self.chosen.iter().any(|id| self.index.satisfies(*id, atom, arch))
        }) {
            return Ok(());
        }
        let candidates: Vec<_> =
            alternatives.iter().flat_map(|atom| self.index.candidates(atom, arch)).collect();
        let peaceful = candidates
            .iter()
            .find(|id| !self.chosen.iter().any(|other| conflict(self.index, arch, **id, *other)));
        match peaceful.or(candidates.first()) {
            Some(id) => {
                self.choose(*id);
                Ok(())
            }
            None => Err(GuestError::Unsatisfied {
                package: self.index.get(package).name.clone(),
                dependency: dependency.text.clone(),
            }),
        }
    }

    fn check_conflicts(&self) -> Result<()> {
        for id in &self.chosen {
            for field in &self.index.get(*id).conflicts {
                for atom in dependencies(field).into_iter().flat_map(|d| d.alternatives) {
                    let other = self
                        .chosen
                        .iter()
                        .find(|other| *other != id && self.index.satisfies(**other, &atom, self.wanted.arch));
                    if let Some(other) = other {
                        return Err(GuestError::Conflict {
                            package: self.index.get(*id).name.clone(),
                            other: self.index.get(*other).name.clone(),
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Does one of the two exclude the other? A package never conflicts with itself (Policy 7.4).
fn conflict(index: &PackageIndex, arch: &str, a: PackageId, b: PackageId) -> bool {
    let excludes = |a: PackageId, b: PackageId| {
        index.get(a).conflicts.iter().any(|field| {
            dependencies(field)
                .iter()
                .flat_map(|d| &d.alternatives)
                .any(|atom| index.satisfies(b, atom, arch))
        })
    };
    a != b && (excludes(a, b) || excludes(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line is `name version [Field=value;...]`.
    fn index(lines: &[&str]) -> PackageIndex {
        let mut text = String::new();
        for line in lines {
            let mut words = line.splitn(3, ' ');
            let (name, version) = (words.next().unwrap(), words.next().unwrap());
            text += &format!(
                "Package: {name}\nVersion: {version}\nArchitecture: riscv64\nFilename: pool/{name}.deb\n\
                 Size: 1\nSHA256: {:064}\n",
                0
            );
            for field in words.next().unwrap_or_default().split(';').filter(|f| !f.is_empty()) {
                let (key, value) = field.split_once('=').unwrap();
                text += &format!("{}: {value}\n", key.trim());
            }
            text.push('\n');
        }
        PackageIndex::parse(&text).unwrap()
    }

    fn closure(index: &PackageIndex, names: &[&str]) -> Result<Vec<String>> {
        let wanted = Wanted {
            arch: "riscv64",
            suite: "trixie",
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            provided: &["linux-initramfs-tool"],
        };
        Ok(resolve(index, &wanted)?.into_iter().map(|id| index.get(id).name.clone()).collect())
    }

    const BASE: &[&str] = &[
        "base-files 13 Essential=yes;Pre-Depends=awk",
        "mawk 1.3 Priority=required;Provides=awk;Depends=libc6 (>= 2.38)",
        "gawk 5 Provides=awk",
        "libc6 2.41-12 Depends=libgcc-s1",
        "libgcc-s1 14 Depends=libc6 (>= 2.35)",
        "debconf 1.5 Provides=debconf-2.0",
        "dbus 1.16 Depends=default-dbus-system-bus | dbus-system-bus;Provides=dbus-system-bus (= 1.16), \
         default-dbus-system-bus (= 1.16)",
        "dbus-broker 37 Provides=dbus-system-bus",
        "kernel 6.12 Depends=initramfs-tools (>= 0.120) | linux-initramfs-tool",
        "initramfs-tools 0.140",
        "needs-new 1 Depends=libc6 (>= 3)",
        "needs-bus 1 Depends=dbus-system-bus (>= 1.2)",
        "needs-broker 1 Depends=dbus-system-bus (>= 99)",
        "mta-a 1 Provides=mail-transport-agent;Conflicts=mail-transport-agent",
        "mta-b 1 Provides=mail-transport-agent;Conflicts=mail-transport-agent",
        "mailer 1 Depends=mta-a | mail-transport-agent",
        "foreign 1 Depends=libc6:amd64",
        "any 1 Depends=libc6:any (>= 2)",
    ];

    #[test]
    fn takes_required_essential_and_cycles() {
        let index = index(BASE);
        assert_eq!(closure(&index, &[]).unwrap(), ["base-files", "libc6", "libgcc-s1", "mawk"]);
    }

    #[test]
    fn virtual_and_versioned_provides() {
        let index = index(BASE);
        assert!(closure(&index, &["needs-bus"]).unwrap().contains(&"dbus".to_owned()));
        assert!(closure(&index, &["dbus"]).is_ok());
        assert!(matches!(closure(&index, &["needs-broker"]), Err(GuestError::Unsatisfied { .. })));
        assert!(matches!(closure(&index, &["needs-new"]), Err(GuestError::Unsatisfied { .. })));
    }

    #[test]
    fn what_the_image_provides_is_not_installed() {
        let index = index(BASE);
        assert!(!closure(&index, &["kernel"]).unwrap().contains(&"initramfs-tools".to_owned()));
    }

    #[test]
    fn conflicts_are_avoided_or_reported() {
        let index = index(BASE);
        let names = closure(&index, &["mta-b", "mailer"]).unwrap();
        assert!(names.contains(&"mta-b".to_owned()) && !names.contains(&"mta-a".to_owned()));
        assert!(matches!(closure(&index, &["mta-a", "mta-b"]), Err(GuestError::Conflict { .. })));
    }

    #[test]
    fn architecture_qualifiers() {
        let index = index(BASE);
        assert!(closure(&index, &["any"]).is_ok());
        assert!(matches!(closure(&index, &["foreign"]), Err(GuestError::Unsatisfied { .. })));
    }

    #[test]
    fn unknown_packages_are_named() {
        let error = closure(&index(BASE), &["no-such-thing"]).unwrap_err();
        assert!(error.to_string().contains("no-such-thing"), "{error}");
    }

    #[test]
    fn the_newest_version_counts() {
        let index =
            index(&["a-pkg 1 Essential=yes;Depends=gone", "a-pkg 2 Essential=yes", "a-pkg 1.5 Depends=gone"]);
        assert_eq!(closure(&index, &[]).unwrap(), ["a-pkg"]);
        assert_eq!(index.get(index.find("a-pkg").unwrap()).version, "2");
    }

    #[test]
    fn garbage_indexes() {
        assert!(PackageIndex::parse("").is_err());
        assert!(PackageIndex::parse("Package: ../../etc\nVersion: 1\n").is_err());
        assert!(PackageIndex::parse("\0\u{fffd}:\n\n\n:::\n Package: x").is_err());
    }
}
