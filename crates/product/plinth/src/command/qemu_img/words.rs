//! QEMU's words for what the library says: scripts look for them.

use plinth_image::format::{Repair, UNKNOWN_FORMAT, luks, parallels, qcow2, vmdk};

/// What QEMU says instead of a message of ours.
pub fn in_qemus_words(text: &str) -> String {
    if let Some(format) = text.strip_prefix(UNKNOWN_FORMAT) {
        return format!("Could not open backing file: Unknown driver {format}");
    }
    if let Some(words) = of_vmdk(text) {
        return words;
    }
    match text {
        qcow2::NO_CRYPT_HEADER => "Missing CRYPTO header for crypt method 2",
        qcow2::NARROW_COUNTS => {
            "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if \
             the image cannot be opened for writing"
        }
        qcow2::OTHER_SIZE => "Internal snapshots prevent downgrade of image",
        qcow2::SMALL_FOR_EXTENDED => {
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"
        }
        luks::ALL_SLOTS_IN_USE => "Can't add a keyslot - all keyslots are in use",
        luks::NO_SUCH_KEY => "No keyslots match given (old) password for erase operation",
        other => other,
    }
    .to_owned()
}

fn of_vmdk(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix(vmdk::CUT_SHORT) {
        let bytes = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
        return Some(format!("File truncated, expecting at least {bytes} bytes"));
    }
    if let Some(rest) = text.strip_prefix(vmdk::BAD_EXTENT) {
        let line = rest.trim_start().strip_prefix('\'')?.rsplit_once('\'')?.0;
        return Some(format!("Invalid extent line: {line}"));
    }
    text.starts_with(vmdk::LARGE_DIRECTORY).then(|| "L1 size too big".to_owned())
}

/// One finding of a check.
pub fn finding(text: &str, repair: Repair) -> String {
    let did = |mends: bool| if mends { "Repairing" } else { "ERROR" };
    let all = did(repair == Repair::All);
    if let Some(n) = text.strip_prefix(qcow2::INCOMPLETE_SNAPSHOT) {
        return format!("{all} snapshot table entry{n} is incomplete");
    }
    if text == parallels::WRONG_START {
        return format!("{all} data_off field has incorrect value");
    }
    if let Some(bytes) = text.strip_suffix(parallels::UNUSED_TAIL) {
        let did = did(repair != Repair::No);
        return format!("{did} space leaked at the end of the image {}", bytes.trim_end());
    }
    if let Some(pair) = text.strip_suffix(parallels::SAME_PLACE) {
        let second = pair.trim_end().rsplit(' ').next().unwrap_or_default();
        return format!("{all} duplicate offset in BAT entry {second}");
    }
    in_qemus_words(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings() {
        let tail = format!("1048576 {}", parallels::UNUSED_TAIL);
        let leaked = "space leaked at the end of the image 1048576";
        assert_eq!(finding(&tail, Repair::No), format!("ERROR {leaked}"));
        assert_eq!(finding(&tail, Repair::Leaks), format!("Repairing {leaked}"));
        let pair = format!("clusters 3 and 17 {}", parallels::SAME_PLACE);
        assert_eq!(finding(&pair, Repair::Leaks), "ERROR duplicate offset in BAT entry 17");
        assert_eq!(finding("something else", Repair::All), "something else");
    }

    #[test]
    fn extents() {
        let bad = format!("{} 'RW 1 VMFS \"it's\" 1' the offset", vmdk::BAD_EXTENT);
        assert_eq!(in_qemus_words(&bad), "Invalid extent line: RW 1 VMFS \"it's\" 1");
        let cut = format!("{} 4096, beyond the file's end at 10", vmdk::CUT_SHORT);
        assert_eq!(in_qemus_words(&cut), "File truncated, expecting at least 4096 bytes");
    }
}
