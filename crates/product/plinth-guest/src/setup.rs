//! What a new guest needs besides its packages: accounts, names, network, and the script of the first
//! boot. All of it that does not need the guest's CPU is done here.

use crate::arch::GuestArch;
use crate::dpkg::{State, database_name, state};
use crate::error::Result;
use crate::ext4::{Extents, ImageWriter};
use crate::mirror::Mirror;
use crate::rootfs::{Unpacked, read_file};
use crate::tree::{Meta, Tree};

const FIRST_BOOT: &str = include_str!("scripts/first-boot.sh");
const CONFMODULE: &str = include_str!("scripts/confmodule");
/// Programs that stand in for slower ones during the first boot.
const STAND_INS: &[(&str, &str)] = &[
    ("deb-systemd-helper", include_str!("scripts/bin/deb-systemd-helper")),
    ("dpkg-maintscript-helper", include_str!("scripts/bin/dpkg-maintscript-helper")),
    ("invoke-rc.d", include_str!("scripts/bin/invoke-rc.d")),
    ("systemd-hwdb", include_str!("scripts/bin/systemd-hwdb")),
];
const HERE: &str = "/usr/lib/plinth";
/// The group that may read shadow files (base-passwd).
const SHADOW_GROUP: u32 = 42;

/// What the user decides about a guest.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The host name.
    pub hostname: &'a str,
    /// The suite that apt follows.
    pub suite: &'a str,
    /// The mirror that apt uses.
    pub mirror: &'a Mirror,
    /// The UUID of the root file system.
    pub uuid: &'a str,
    /// The time of the build, seconds since 1970.
    pub time: i64,
    /// The guest's architecture.
    pub arch: GuestArch,
}

/// What is known about packages for the first boot.
pub struct Steps<'a> {
    /// Base packages: their `preinst` scripts do nothing on a fresh system, and their `postinst` scripts
    /// need no more than the defaults of debconf.
    pub base: &'a dyn Fn(&Unpacked) -> bool,
    /// Packages whose configuration the builder has done.
    pub done: &'a dyn Fn(&Unpacked) -> bool,
}

impl Setup<'_> {
    /// Puts the files into the tree.
    pub fn apply(
        &self,
        image: &ImageWriter,
        tree: &mut Tree<Extents>,
        packages: &[Unpacked],
        steps: &Steps<'_>,
    ) -> Result<()> {
        self.accounts(image, tree)?;
        self.configuration(tree)?;
        self.first_boot(tree, packages, steps)
    }

    fn file(&self, tree: &mut Tree<Extents>, path: &str, content: impl Into<Vec<u8>>) -> Result<()> {
        tree.file(path, Meta::root(0o644, self.time), content).map(drop)
    }

    /// The accounts of base-passwd with shadow files, root without a password.
    fn accounts(&self, image: &ImageWriter, tree: &mut Tree<Extents>) -> Result<()> {
        let read = |name: &str| -> Result<String> {
            let path = format!("/usr/share/base-passwd/{name}.master");
            let bytes = read_file(image, tree, &path)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (passwd, group) = (read("passwd")?, read("group")?);
        let days = self.time / (24 * 60 * 60);
        let shadow: String = names(&passwd)
            .map(|name| {
                let password = if name == "root" { "" } else { "*" };
                format!("{name}:{password}:{days}:0:99999:7:::\n")
            })
            .collect();
        let group_shadow: String = names(&group).map(|name| format!("{name}:*::\n")).collect();
        self.file(tree, "/etc/passwd", shadowed(&passwd))?;
        self.file(tree, "/etc/group", shadowed(&group))?;
        let secret = Meta { mode: 0o640, uid: 0, gid: SHADOW_GROUP, mtime: self.time };
        tree.file("/etc/shadow", secret, shadow)?;
        tree.file("/etc/gshadow", secret, group_shadow)?;
        Ok(())
    }

    fn configuration(&self, tree: &mut Tree<Extents>) -> Result<()> {
        let host = self.hostname;
        self.file(tree, "/etc/hostname", format!("{host}\n"))?;
        self.file(
            tree,
            "/etc/hosts",
            format!(
                "127.0.0.1\tlocalhost\n127.0.1.1\t{host}\n::1\t\tlocalhost ip6-localhost ip6-loopback\n\
                 ff02::1\t\tip6-allnodes\nff02::2\t\tip6-allrouters\n"
            ),
        )?;
        self.file(tree, "/etc/fstab", format!("UUID={} / ext4 defaults 0 1\n", self.uuid))?;
        self.file(tree, "/etc/locale.conf", "LANG=C.UTF-8\n")?;
        self.file(
            tree,
            "/etc/systemd/network/80-dhcp.network",
            "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
        )?;
        // An interpreted CPU, or a busy host, is slower than systemd's 90 seconds allow for: without this
        // the console would have no login when its device is late.
        self.file(
            tree,
            "/etc/systemd/system.conf.d/50-emulated.conf",
            "[Manager]\nDefaultDeviceTimeoutSec=30min\nDefaultTimeoutStartSec=30min\n",
        )?;
        // An empty file means: a new identity at the first boot, but no interview of the user.
        self.file(tree, "/etc/machine-id", "")?;
        tree.symlink("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf", self.time)?;
        self.file(tree, "/etc/apt/sources.list.d/debian.sources", self.sources())
    }

    fn sources(&self) -> String {
        let Mirror { uri, security, .. } = self.mirror;
        let suite = self.suite;
        let signed = "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.pgp\n";
        if matches!(suite, "sid" | "unstable" | "experimental") {
            return format!("Types: deb\nURIs: {uri}\nSuites: {suite}\n{signed}");
        }
        let mut text = format!("Types: deb\nURIs: {uri}\nSuites: {suite} {suite}-updates\n{signed}");
        if let Some(security) = security {
            text += &format!("\nTypes: deb\nURIs: {security}\nSuites: {suite}-security\n{signed}");
        }
        text
    }

    fn first_boot(&self, tree: &mut Tree<Extents>, packages: &[Unpacked], steps: &Steps<'_>) -> Result<()> {
        let arch = self.arch;
        let preinsts: String = packages
            .iter()
            .filter(|package| !(steps.base)(package) && !(steps.done)(package))
            .filter(|package| package.control.files.contains_key("preinst"))
            .map(|package| {
                let id = database_name(package);
                format!("{} {arch} /var/lib/dpkg/info/{id}.preinst\n", package.name())
            })
            .collect();
        let dpkg = packages.iter().find(|p| p.name() == "dpkg");
        let dpkg = dpkg.and_then(|p| p.control.stanza.get("Version")).unwrap_or_default();
        let base: String = packages
            .iter()
            .filter(|package| (steps.base)(package) && !(steps.done)(package))
            .filter(|package| state(package) == State::Unpacked)
            .map(|package| format!("{}\n", database_name(package)))
            .collect();
        self.file(tree, &format!("{HERE}/preinsts"), preinsts)?;
        self.file(tree, &format!("{HERE}/base"), base)?;
        self.file(tree, &format!("{HERE}/confmodule"), CONFMODULE)?;
        for (name, script) in STAND_INS {
            tree.file(&format!("{HERE}/bin/{name}"), Meta::root(0o755, self.time), *script)?;
        }
        self.file(tree, &format!("{HERE}/built"), format!("{}\n", self.time))?;
        self.file(tree, &format!("{HERE}/dpkg-version"), format!("{dpkg}\n"))?;
        tree.file(&format!("{HERE}/first-boot"), Meta::root(0o755, self.time), FIRST_BOOT)?;
        // Scripts count on awk before the package that brings it is configured.
        if packages.iter().any(|p| p.name() == "mawk" && state(p) == State::Unpacked)
            && !tree.exists("/usr/bin/awk")
        {
            tree.symlink("/etc/alternatives/awk", "/usr/bin/mawk", self.time)?;
            tree.symlink("/usr/bin/awk", "/etc/alternatives/awk", self.time)?;
        }
        Ok(())
    }
}

fn names(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name)
}

/// The table with `x` where a password would be.
fn shadowed(table: &str) -> String {
    table
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let (_, rest) = rest.split_once(':')?;
            Some(format!("{name}:x:{rest}\n"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_move_to_the_shadow() {
        let table = "root:*:0:0:root:/root:/bin/bash\ngarbage\ndaemon:*:1:1:daemon:/usr/sbin:/bin/false\n";
        assert_eq!(
            shadowed(table),
            "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        );
        assert_eq!(names(table).collect::<Vec<_>>(), ["root", "daemon"]);
    }

    #[test]
    fn apt_sources() {
        let mut mirror = Mirror {
            uri: "http://m.example/debian".into(),
            proxy: None,
            security: Some("http://s/x".into()),
        };
        let sources = |suite: &str, mirror: &Mirror| {
            let setup = Setup { hostname: "h", suite, mirror, uuid: "", time: 0, arch: GuestArch::Riscv64 };
            setup.sources()
        };
        assert!(sources("trixie", &mirror).contains("URIs: http://s/x\nSuites: trixie-security\n"));
        mirror.security = None;
        assert!(!sources("trixie", &mirror).contains("security"));
        assert!(!sources("sid", &mirror).contains("sid-updates"));
    }
}
