//! Enabling systemd units: the links that `deb-systemd-helper enable` and `systemctl enable` make from
//! a unit's `[Install]` section (systemd.unit(5)).

use std::collections::HashSet;

use crate::error::Result;
use crate::ext4::{Extents, ImageWriter};
use crate::rootfs::{Unpacked, read_file};
use crate::tree::{Meta, Tree};

const UNITS: &str = "/usr/lib/systemd/system";
const ENABLED: &str = "/etc/systemd/system";
/// Where Debian remembers which links packages have made, so that an upgrade respects what the
/// administrator has disabled.
const STATE: &str = "/var/lib/systemd/deb-systemd-helper-enabled";
/// Networking, which no package enables by itself.
const OWN_UNITS: &[&str] = &["systemd-networkd.service"];

/// Enables the units that the packages' scripts would enable, and our own.
pub fn enable_units(
    image: &ImageWriter,
    tree: &mut Tree<Extents>,
    packages: &[Unpacked],
    time: i64,
) -> Result<()> {
    for unit in OWN_UNITS {
        if let Some(links) = links_of(image, tree, unit)? {
            make_links(tree, &links, time)?;
        }
    }
    for package in packages {
        let Some((script, _)) = package.control.files.get("postinst") else { continue };
        for unit in units_of_script(&String::from_utf8_lossy(script)) {
            let Some(links) = links_of(image, tree, &unit)? else { continue };
            make_links(tree, &links, time)?;
            let file = Meta::root(0o644, time);
            let mut list = String::new();
            for (link, _) in &links {
                list += &format!("{ENABLED}/{link}\n");
                tree.file(&format!("{STATE}/{link}"), file, "")?;
            }
            tree.file(&format!("{STATE}/{unit}.dsh-also"), file, list)?;
        }
    }
    Ok(())
}

/// The units that a script enables in the way debhelper writes it.
fn units_of_script(script: &str) -> Vec<String> {
    let mut units: Vec<String> = script
        .split("deb-systemd-helper enable '")
        .skip(1)
        .filter_map(|rest| rest.split('\'').next())
        .filter(|unit| is_plain_unit(unit))
        .map(str::to_owned)
        .collect();
    units.dedup();
    units
}

/// Templates are left to the guest: their instances are not ours to guess.
fn is_plain_unit(name: &str) -> bool {
    !name.is_empty()
        && name.contains('.')
        && !name.starts_with('.')
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.:\\".contains(&c))
}

/// A link below `/etc/systemd/system` and the unit it points to.
type Link = (String, String);

/// The links that enable a unit and those in its `Also=`; `None` when there is no such unit.
fn links_of(image: &ImageWriter, tree: &Tree<Extents>, unit: &str) -> Result<Option<Vec<Link>>> {
    let (mut links, mut seen, mut open) = (Vec::new(), HashSet::new(), vec![unit.to_owned()]);
    while let Some(unit) = open.pop() {
        if !is_plain_unit(&unit) || !seen.insert(unit.clone()) {
            continue;
        }
        let Some(text) = read_file(image, tree, &format!("{UNITS}/{unit}"))? else {
            if links.is_empty() && seen.len() == 1 {
                return Ok(None);
            }
            continue;
        };
        let install = Install::parse(&String::from_utf8_lossy(&text));
        links.extend(install.links.into_iter().map(|link| (link.replace("%n", &unit), unit.clone())));
        open.extend(install.also);
    }
    Ok(Some(links))
}

/// The `[Install]` section: links with `%n` for the unit's name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Install {
    links: Vec<String>,
    also: Vec<String>,
}

impl Install {
    fn parse(text: &str) -> Self {
        let mut install = Self::default();
        let mut inside = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                inside = line == "[Install]";
            } else if inside
                && let Some((key, value)) = line.split_once('=')
                && !line.starts_with(['#', ';'])
            {
                let names = value.split_whitespace().filter(|name| is_plain_unit(name));
                match key.trim() {
                    "WantedBy" => install.links.extend(names.map(|n| format!("{n}.wants/%n"))),
                    "RequiredBy" => install.links.extend(names.map(|n| format!("{n}.requires/%n"))),
                    "UpheldBy" => install.links.extend(names.map(|n| format!("{n}.upholds/%n"))),
                    "Alias" => install.links.extend(names.map(str::to_owned)),
                    "Also" => install.also.extend(names.map(str::to_owned)),
                    _ => {}
                }
            }
        }
        install
    }
}

fn make_links(tree: &mut Tree<Extents>, links: &[Link], time: i64) -> Result<()> {
    for (link, unit) in links {
        tree.symlink(&format!("{ENABLED}/{link}"), &format!("{UNITS}/{unit}"), time)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_install_sections() {
        let text = "[Unit]\nWantedBy=no.target\n[Install]\n# c\nWantedBy=multi-user.target x.target\n\
                    Alias=dbus-a.service\nAlso=a.socket\nWantedBy=../evil\n";
        let install = Install::parse(text);
        assert_eq!(install.links, ["multi-user.target.wants/%n", "x.target.wants/%n", "dbus-a.service"]);
        assert_eq!(install.also, ["a.socket"]);
    }

    #[test]
    fn finds_units_in_scripts() {
        let script = "deb-systemd-helper enable 'a.timer' >/dev/null\ndeb-systemd-helper unmask 'b.service'\n\
                      deb-systemd-helper enable 'c@.service'\ndeb-systemd-helper enable '../x'\n";
        assert_eq!(units_of_script(script), ["a.timer"]);
    }
}
