//! The files that `depmod` makes in `/usr/lib/modules/VERSION`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

use super::index::Index;
use super::info::ModuleInfo;
use super::module_name;

/// Everything `depmod` would write: file names and contents.
///
/// `modules` are paths with what the modules say, `order` is `modules.order`, `builtin` is
/// `modules.builtin` and `builtin_info` is `modules.builtin.modinfo`.
pub fn depmod(
    modules: &[(String, ModuleInfo)],
    order: &str,
    builtin: &str,
    builtin_info: &[u8],
) -> Vec<(&'static str, Vec<u8>)> {
    let set = Set::new(modules, order);
    let (dep, dep_bin) = set.dependencies();
    let (alias, alias_bin) = set.aliases();
    let (symbols, symbols_bin) = set.symbols();
    let mut builtin_bin = Index::default();
    for name in builtin.lines().filter_map(module_name) {
        builtin_bin.add(&name, 0, "");
    }
    vec![
        ("modules.dep", dep.into_bytes()),
        ("modules.dep.bin", dep_bin),
        ("modules.alias", alias.into_bytes()),
        ("modules.alias.bin", alias_bin),
        ("modules.symbols", symbols.into_bytes()),
        ("modules.symbols.bin", symbols_bin),
        ("modules.softdep", set.texts("softdep", |info| &info.softdeps).into_bytes()),
        ("modules.weakdep", set.texts("weakdep", |info| &info.weakdeps).into_bytes()),
        ("modules.devname", set.device_names().into_bytes()),
        ("modules.builtin.bin", builtin_bin.encode()),
        ("modules.builtin.alias.bin", builtin_aliases(builtin_info)),
    ]
}

/// The modules in the order of the kernel's build, which ranks them.
struct Set<'a> {
    modules: Vec<(&'a str, String, &'a ModuleInfo)>,
    by_name: HashMap<String, usize>,
}

impl<'a> Set<'a> {
    fn new(modules: &'a [(String, ModuleInfo)], order: &str) -> Self {
        let plain = |path: &str| path.split_once(".ko").map_or(path.to_owned(), |(stem, _)| stem.to_owned());
        let ranks: HashMap<String, usize> = order.lines().map(plain).zip(0..).collect();
        let mut modules: Vec<_> = modules
            .iter()
            .filter_map(|(path, info)| Some((path.as_str(), module_name(path)?, info)))
            .collect();
        modules.sort_by_cached_key(|(path, ..)| {
            (ranks.get(&plain(path)).copied().unwrap_or(usize::MAX), (*path).to_owned())
        });
        let by_name = modules.iter().enumerate().map(|(i, (_, name, _))| (name.clone(), i)).collect();
        Self { modules, by_name }
    }

    fn ranked(&self) -> impl Iterator<Item = (u32, &str, &ModuleInfo)> {
        (0..).zip(&self.modules).map(|(rank, (_, name, info))| (rank, name.as_str(), *info))
    }

    /// Each module with all it needs, what is loaded first last.
    fn dependencies(&self) -> (String, Vec<u8>) {
        let mut text = String::new();
        let mut index = Index::default();
        for (rank, (path, name, _)) in (0..).zip(&self.modules) {
            let mut needed = Vec::new();
            self.collect(name, &mut HashSet::new(), &mut needed);
            needed.pop(); // the module itself
            let mut line = format!("{path}:");
            for other in needed.iter().rev() {
                line.push(' ');
                line.push_str(other);
            }
            index.add(name, rank, &line);
            text.push_str(&line);
            text.push('\n');
        }
        (text, index.encode())
    }

    /// Appends the paths of a module's dependencies, then its own. Depth is bounded by the number of
    /// modules, each of which is entered once.
    fn collect<'s>(&'s self, name: &str, seen: &mut HashSet<usize>, out: &mut Vec<&'s str>) {
        let Some(&at) = self.by_name.get(name) else { return };
        if seen.insert(at) {
            let (path, _, info) = &self.modules[at];
            for needed in &info.depends {
                self.collect(needed, seen, out);
            }
            out.push(path);
        }
    }

    fn aliases(&self) -> (String, Vec<u8>) {
        let mut text = "# Aliases extracted from modules themselves.\n".to_owned();
        let mut index = Index::default();
        for (rank, name, info) in self.ranked() {
            for alias in &info.aliases {
                // Writing to a String does not fail.
                let _ = writeln!(text, "alias {alias} {name}");
                index.add(&normalized(alias), rank, name);
            }
        }
        (text, index.encode())
    }

    fn symbols(&self) -> (String, Vec<u8>) {
        let mut text = "# Aliases for symbols, used by symbol_request().\n".to_owned();
        let mut index = Index::default();
        for (rank, name, info) in self.ranked() {
            for symbol in &info.symbols {
                let _ = writeln!(text, "alias symbol:{symbol} {name}");
                index.add(&format!("symbol:{symbol}"), rank, name);
            }
        }
        (text, index.encode())
    }

    fn texts(&self, keyword: &str, of: fn(&ModuleInfo) -> &[String]) -> String {
        let mut text = String::new();
        for (_, name, info) in self.ranked() {
            for value in of(info) {
                let _ = writeln!(text, "{keyword} {name} {value}");
            }
        }
        text
    }

    /// Device nodes whose first opening loads a module: `name node type major:minor`.
    fn device_names(&self) -> String {
        let mut text = "# Device nodes to trigger on-demand module loading.\n".to_owned();
        for (_, name, info) in self.ranked() {
            let node = info.aliases.iter().find_map(|a| a.strip_prefix("devname:"));
            let number = info.aliases.iter().find_map(|alias| {
                let (kind, numbers) = alias.split_once("-major-")?;
                let (major, minor) = numbers.split_once('-')?;
                let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
                let kind = match kind {
                    "char" => 'c',
                    "block" => 'b',
                    _ => return None,
                };
                Some(format!("{kind}{major}:{minor}"))
            });
            if let (Some(node), Some(number)) = (node, number) {
                let _ = writeln!(text, "{name} {node} {number}");
            }
        }
        text
    }
}

/// `-` and `_` are the same in names, except inside brackets of a pattern.
fn normalized(alias: &str) -> String {
    let mut brackets = false;
    alias
        .chars()
        .map(|c| {
            match c {
                '[' => brackets = true,
                ']' => brackets = false,
                _ => {}
            }
            if c == '-' && !brackets { '_' } else { c }
        })
        .collect()
}

/// `modules.builtin.modinfo` has `module.key=value` strings.
fn builtin_aliases(info: &[u8]) -> Vec<u8> {
    let mut index = Index::default();
    let mut ranks: BTreeMap<&str, u32> = BTreeMap::new();
    for field in info.split(|c| *c == 0).filter_map(|s| std::str::from_utf8(s).ok()) {
        if let Some((key, alias)) = field.split_once('=')
            && let Some((name, "alias")) = key.split_once('.')
        {
            let next = ranks.len() as u32;
            let rank = *ranks.entry(name).or_insert(next);
            index.add(&normalized(alias), rank, &name.replace('-', "_"));
        }
    }
    index.encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(depends: &[&str], aliases: &[&str]) -> ModuleInfo {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        ModuleInfo { depends: owned(depends), aliases: owned(aliases), ..ModuleInfo::default() }
    }

    #[test]
    fn writes_the_tables() {
        let modules = [
            ("kernel/fs/ext4.ko.xz".to_owned(), info(&["jbd2", "crc16"], &["fs-ext4"])),
            ("kernel/fs/jbd2.ko.xz".to_owned(), info(&["crc16"], &[])),
            ("kernel/lib/crc16.ko.xz".to_owned(), info(&[], &[])),
            (
                "kernel/fs/fuse.ko.xz".to_owned(),
                info(&[], &["char-major-10-229", "devname:fuse", "fs[a-z]-x"]),
            ),
        ];
        let order = "kernel/lib/crc16.ko\nkernel/fs/jbd2.ko\nkernel/fs/ext4.ko\n";
        let files: HashMap<_, _> =
            depmod(&modules, order, "kernel/fs/a-b.ko\n", b"a-b.alias=fs-x\0a-b.license=GPL\0")
                .into_iter()
                .collect();
        let text = |name: &str| String::from_utf8(files[name].clone()).unwrap();
        assert_eq!(
            text("modules.dep"),
            "kernel/lib/crc16.ko.xz:\nkernel/fs/jbd2.ko.xz: kernel/lib/crc16.ko.xz\n\
             kernel/fs/ext4.ko.xz: kernel/fs/jbd2.ko.xz kernel/lib/crc16.ko.xz\nkernel/fs/fuse.ko.xz:\n"
        );
        assert!(text("modules.alias").contains("alias fs-ext4 ext4\n"));
        assert!(files["modules.alias.bin"].windows(4).any(|w| w == b"ext4"));
        assert_eq!(normalized("fs[a-z]-x"), "fs[a-z]_x");
        assert!(text("modules.devname").ends_with("fuse fuse c10:229\n"));
        assert!(files["modules.builtin.alias.bin"].windows(4).any(|w| w == b"fs_x"));
    }

    #[test]
    fn cycles_end() {
        let modules = [("a.ko".to_owned(), info(&["b"], &[])), ("b.ko".to_owned(), info(&["a"], &[]))];
        let files = depmod(&modules, "", "", b"");
        assert!(String::from_utf8(files[0].1.clone()).unwrap().starts_with("a.ko: b.ko\n"));
    }
}
