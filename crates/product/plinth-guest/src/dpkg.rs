//! dpkg's database, as it is after unpacking and before configuring (dpkg(1), /usr/share/doc/dpkg).

use std::collections::BTreeMap;
use std::fmt::Write;

use md5::{Digest, Md5};

use crate::cache::hex;
use crate::error::Result;
use crate::ext4::{Extents, ImageWriter};
use crate::rootfs::{Unpacked, read_file};
use crate::tree::{Meta, Tree};

const ADMIN: &str = "/var/lib/dpkg";

/// How far a package is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its `postinst` still has to run.
    Unpacked,
    /// Nothing is left to do.
    Installed,
}

/// A package has nothing left to do when no script of it would run. What dpkg itself does when it
/// configures, moving configuration files to their names, is done here.
pub fn state(package: &Unpacked) -> State {
    if package.control.files.contains_key("postinst") { State::Unpacked } else { State::Installed }
}

/// Writes the database of `packages` into the tree. `done` names packages whose configuration the
/// builder has done itself.
pub fn write_database(
    image: &ImageWriter,
    tree: &mut Tree<Extents>,
    packages: &[Unpacked],
    done: &dyn Fn(&Unpacked) -> bool,
    mtime: i64,
) -> Result<()> {
    let file = Meta::root(0o644, mtime);
    for folder in ["alternatives", "info", "parts", "triggers", "updates"] {
        tree.directory(&format!("{ADMIN}/{folder}"), Meta::root(0o755, mtime))?;
    }
    for empty in ["available", "diversions", "statoverride", "lock", "triggers/Lock", "triggers/Unincorp"] {
        tree.file(&format!("{ADMIN}/{empty}"), file, "")?;
    }
    tree.file(&format!("{ADMIN}/info/format"), file, "1\n")?;
    let mut status = String::new();
    let mut triggers = Triggers::default();
    for package in packages {
        let state = if done(package) { State::Installed } else { state(package) };
        let conffiles = conffiles(image, tree, package)?;
        status.push_str(&stanza(package, state, &conffiles));
        triggers.add(package);
        let id = database_name(package);
        tree.file(&format!("{ADMIN}/info/{id}.list"), file, file_list(package))?;
        for (name, (content, mode)) in &package.control.files {
            let meta = Meta::root(if mode & 0o111 != 0 { 0o755 } else { 0o644 }, mtime);
            tree.file(&format!("{ADMIN}/info/{id}.{name}"), meta, content.clone())?;
        }
    }
    tree.file(&format!("{ADMIN}/status"), file, status)?;
    for (name, content) in triggers.files {
        tree.file(&format!("{ADMIN}/triggers/{name}"), file, content)?;
    }
    Ok(())
}

/// `name`, or `name:arch` for packages that can be there for several architectures at once.
pub fn database_name(package: &Unpacked) -> String {
    let stanza = &package.control.stanza;
    match (stanza.get("Multi-Arch"), stanza.get("Architecture")) {
        (Some("same"), Some(arch)) => format!("{}:{arch}", package.name()),
        _ => package.name().to_owned(),
    }
}

/// Configuration files with the MD5 sums of their content.
fn conffiles(image: &ImageWriter, tree: &Tree<Extents>, package: &Unpacked) -> Result<Vec<(String, String)>> {
    let Some((list, _)) = package.control.files.get("conffiles") else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    // Lines with a flag before the path name files that are to go away.
    for path in String::from_utf8_lossy(list).lines().filter(|line| line.starts_with('/')) {
        if let Some(content) = read_file(image, tree, path)? {
            found.push((path.to_owned(), hex(&Md5::digest(&content))));
        }
    }
    Ok(found)
}

fn stanza(package: &Unpacked, state: State, conffiles: &[(String, String)]) -> String {
    let state = match state {
        State::Unpacked => "unpacked",
        State::Installed => "installed",
    };
    let mut text = format!("Package: {}\nStatus: install ok {state}\n", package.name());
    for (name, value) in package.control.stanza.fields().filter(|(name, _)| *name != "Package") {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}: {value}");
    }
    if !conffiles.is_empty() {
        text.push_str("Conffiles:\n");
        for (path, sum) in conffiles {
            let _ = writeln!(text, " {path} {sum}");
        }
    }
    text.push('\n');
    text
}

fn file_list(package: &Unpacked) -> Vec<u8> {
    let mut list = Vec::new();
    for (entry, _) in &package.entries {
        list.push(b'/');
        list.extend_from_slice(if entry.path.is_empty() { b"." } else { &entry.path });
        list.push(b'\n');
    }
    list
}

/// Who wants to hear of what (deb-triggers(5)): `File` for paths, a file of its own for each name.
#[derive(Default)]
struct Triggers {
    files: BTreeMap<String, String>,
}

impl Triggers {
    fn add(&mut self, package: &Unpacked) {
        let Some((text, _)) = package.control.files.get("triggers") else { return };
        for line in String::from_utf8_lossy(text).lines() {
            let mut words = line.split_whitespace();
            let options = match words.next() {
                Some("interest" | "interest-await") => "",
                Some("interest-noawait") => "/noawait",
                _ => continue,
            };
            let Some(name) = words.next() else { continue };
            let id = database_name(package);
            if name.starts_with('/') {
                *self.files.entry("File".into()).or_default() += &format!("{name} {id}{options}\n");
            } else if name.bytes().all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c)) {
                *self.files.entry(name.into()).or_default() += &format!("{id}{options}\n");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stanzas;
    use crate::deb::{Control, Entry, EntryKind};

    fn package(control: &str, files: &[(&str, &str)]) -> Unpacked {
        let files = files.iter().map(|(n, c)| ((*n).to_owned(), (c.as_bytes().to_vec(), 0o755))).collect();
        let entry = |path: &str, kind| {
            (Entry { path: path.as_bytes().to_vec(), meta: Meta::root(0o755, 0), kind }, None)
        };
        Unpacked {
            control: Control { stanza: stanzas(control).next().unwrap(), files },
            entries: vec![entry("", EntryKind::Directory), entry("usr/a", EntryKind::Fifo)],
        }
    }

    #[test]
    fn stanzas_say_the_state() {
        let package = package("Package: a\nVersion: 1\nDescription: x\n long", &[("postinst", "")]);
        let text = stanza(&package, state(&package), &[("/etc/a".into(), "00".into())]);
        assert_eq!(
            text,
            "Package: a\nStatus: install ok unpacked\nVersion: 1\nDescription: x\n long\nConffiles:\n /etc/a 00\n\n"
        );
    }

    #[test]
    fn names_and_lists() {
        let same = package("Package: libc6\nArchitecture: riscv64\nMulti-Arch: same", &[]);
        assert_eq!(database_name(&same), "libc6:riscv64");
        assert_eq!(state(&same), State::Installed);
        assert_eq!(file_list(&same), b"/.\n/usr/a\n");
    }

    #[test]
    fn triggers_are_registered() {
        let text =
            "# x\ninterest-noawait /usr/lib/sysctl.d\ninterest ldconfig\nactivate y\ninterest ../../evil\n";
        let mut triggers = Triggers::default();
        triggers.add(&package("Package: a\nVersion: 1", &[("triggers", text)]));
        assert_eq!(triggers.files["File"], "/usr/lib/sysctl.d a/noawait\n");
        assert_eq!(triggers.files["ldconfig"], "a\n");
        assert_eq!(triggers.files.len(), 2);
    }
}
