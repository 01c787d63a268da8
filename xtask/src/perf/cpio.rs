//! Writes an initial RAM file system: the "newc" format of the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow one another; the
//! later one's files replace those of the earlier one.

/// An archive that grows in memory.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Cpio {
    /// Adds a folder.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file that may be run.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, content);
    }

    /// The archive with its last entry.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        // Magic, inode, mode, user, group, links, time, size, two device numbers of two fields each,
        // the name's length with its zero byte, and an unused checksum.
        let fields =
            [self.inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Cpio;

    #[test]
    fn entries_are_aligned_and_carry_their_size() {
        let mut cpio = Cpio::default();
        cpio.directory("perf");
        cpio.program("perf/x", b"hello");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        // Header of 110 bytes and "perf" with its zero: 115, padded to 116.
        let second = &bytes[116..];
        assert_eq!(&second[..6], b"070701");
        assert_eq!(&second[54..62], b"00000005");
        assert_eq!(&second[110..117], b"perf/x\0");
        assert_eq!(&second[120..125], b"hello");
        let tail = String::from_utf8_lossy(&bytes);
        assert!(tail.contains("TRAILER!!!"));
    }
}
