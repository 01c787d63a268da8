//! Writer of the archive Linux unpacks as its first root file system: cpio in the "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// An initramfs in the making. Everything in it belongs to root.
#[derive(Debug, Default)]
pub struct Cpio {
    out: Vec<u8>,
    inode: u32,
}

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_REGULAR: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHAR: u32 = 0o020_000;

impl Cpio {
    /// A directory. Its parent has to be in the archive before it.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, TYPE_DIRECTORY | 0o755, (0, 0), b"");
    }

    /// A regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, TYPE_REGULAR | mode, (0, 0), content);
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, TYPE_SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// A character device.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, TYPE_CHAR | mode, (major, minor), b"");
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.out.resize(self.out.len().next_multiple_of(512), 0);
        self.out
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        let links = 1;
        // inode, mode, uid, gid, nlink, mtime, size, device, rdevice, name size, checksum
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            major,
            minor,
            path.len() as u32 + 1,
            0,
        ];
        self.out.extend_from_slice(b"070701");
        for field in fields {
            self.out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.out.extend_from_slice(path.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(content);
        self.pad();
        self.inode += 1;
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_aligned_and_complete() {
        let mut cpio = Cpio::default();
        cpio.directory("bin");
        cpio.file("bin/a", 0o755, b"12345");
        cpio.symlink("sh", "bin/a");
        cpio.char_device("console", 0o600, 5, 1);
        let bytes = cpio.finish();
        let mut at = 0;
        let mut names = Vec::new();
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + i * 8..at + 14 + i * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = std::str::from_utf8(&bytes[at + 110..at + 109 + name_size]).unwrap().to_owned();
            if name == "console" {
                assert_eq!((field(1), field(9), field(10)), (0o020_600, 5, 1));
            }
            at = (at + 110 + name_size).next_multiple_of(4);
            at = (at + size).next_multiple_of(4);
            names.push(name);
            if names.last().is_some_and(|n| n == "TRAILER!!!") {
                break;
            }
        }
        assert_eq!(names, ["bin", "bin/a", "sh", "console", "TRAILER!!!"]);
    }
}
