//! The lists of options that `-o help` prints, in the words that QEMU has for them: scripts look there for what the
//! tool can do.

use plinth_image::format::{Format, OptionKind};

use super::getopt::Parsed;
use super::names::qemu_name;
use super::options::{can_have_backing, check_lists};
use super::{Exit, Result, say};

/// Options of the host's files, which are shown where a file is named.
const OF_FILES: [(&str, OptionKind, &str); 2] = [
    ("extent_size_hint", OptionKind::Size, "Extent size hint for the image file, 0 to disable"),
    ("nocow", OptionKind::Flag, "Turn off copy-on-write (valid only on btrfs)"),
];

/// Options that key slots are changed with.
const OF_KEYS: [(&str, OptionKind, &str); 5] = [
    ("iter-time", OptionKind::Number, "Time to spend in PBKDF in milliseconds"),
    ("keyslot", OptionKind::Number, "Select a single keyslot to modify explicitly"),
    ("new-secret", OptionKind::Text, "New secret to set in the matching keyslots. Empty string to erase"),
    ("old-secret", OptionKind::Text, "Select all keyslots that match this password"),
    ("state", OptionKind::Text, "Select new state of affected keyslots (active/inactive)"),
];

/// QEMU's words for an option, where it has the option too.
fn words(format: Format, name: &str) -> Option<&'static str> {
    let own = match (format, name) {
        (Format::Qcow2, "cluster_size") => "qcow2 cluster size",
        (Format::Qed, "cluster_size") => "Cluster size (in bytes)",
        (Format::Parallels, "cluster_size") => "Parallels image cluster size",
        (Format::Raw, "preallocation") => "Preallocation mode (allowed values: off, falloc, full)",
        (Format::Vmdk, "backing_fmt") => "Must be 'vmdk' if present",
        (Format::Vhdx, "size") => "Virtual disk size; max of 64TB.",
        (Format::Vhdx, "subformat") => {
            "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'."
        }
        (Format::Vhd, "subformat") => {
            "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} "
        }
        (Format::Vmdk, "subformat") => {
            "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | \
             twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} "
        }
        (Format::Luks, "key-secret") => "ID of the secret that provides the keyslot passphrase",
        _ => "",
    };
    if !own.is_empty() {
        return Some(own);
    }
    Some(match name.trim_start_matches("encrypt.") {
        "adapter_type" => {
            "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX"
        }
        "backing_file" => "File name of a base image",
        "backing_fmt" => "Image format of the base image",
        "block_size" => "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
        "cipher-alg" => "Name of encryption cipher algorithm",
        "cipher-mode" => "Name of encryption cipher mode",
        "compat" => "Compatibility level (v2 [0.10] or v3 [1.1])",
        "compat6" => "VMDK version 6 image",
        "compression_type" => "Compression method used for image cluster compression",
        "data_file" => "File name of an external data file",
        "data_file_raw" => "The external data file must stay valid as a raw image",
        "encryption" => "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
        "extended_l2" => "Extended L2 tables",
        "force_size" => {
            "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based \
             calculation"
        }
        "format" => "Encrypt the image, format choices: 'aes', 'luks'",
        "hash-alg" => "Name of encryption hash algorithm",
        "hwversion" => "VMDK hardware version",
        "iter-time" => "Time to spend in PBKDF in milliseconds",
        "ivgen-alg" => "Name of IV generator algorithm",
        "ivgen-hash-alg" => "Name of IV generator hash algorithm",
        "key-secret" => "ID of secret providing qcow AES key or LUKS passphrase",
        "lazy_refcounts" => "Postpone refcount updates",
        "log_size" => "Log size; min 1MB.",
        "preallocation" => "Preallocation mode (allowed values: off, metadata, falloc, full)",
        "refcount_bits" => "Width of a reference count entry in bits",
        "size" => "Virtual disk size",
        "static" => "VDI static (pre-allocated) image",
        "table_size" => "L1/L2 table size (in clusters)",
        "toolsversion" => "VMware guest tools version",
        "zeroed_grain" => "Enable efficient zero writes using the zeroed-grain GTE feature",
        _ => return None,
    })
}

/// Lines of a list, sorted by the options' names.
fn list(mut options: Vec<(String, OptionKind, String)>) -> String {
    options.sort_by(|a, b| a.0.cmp(&b.0));
    options.dedup_by(|a, b| a.0 == b.0);
    let line = |(name, kind, help): &(String, OptionKind, String)| {
        let value = match kind {
            OptionKind::Size => "<size>",
            OptionKind::Number => "<num>",
            OptionKind::Flag => "<bool (on/off)>",
            OptionKind::Choice(_) | OptionKind::Text => "<str>",
        };
        format!("  {:<22} - {help}\n", format!("{name}={value}"))
    };
    options.iter().map(line).collect()
}

/// All options of new images of a format, with their texts.
fn of_new(format: Format) -> Option<Vec<(String, OptionKind, String)>> {
    let driver = format.driver().filter(|d| d.create.is_some())?;
    let mut options: Vec<(String, OptionKind, String)> = Vec::new();
    let mut add = |name: &str, kind: OptionKind, help: &str| {
        options.push((name.to_owned(), kind, words(format, name).unwrap_or(help).to_owned()));
    };
    for spec in driver.options {
        add(spec.name, spec.kind, spec.help);
    }
    add("size", OptionKind::Size, "");
    if can_have_backing(format) {
        add("backing_file", OptionKind::Text, "");
        add("backing_fmt", OptionKind::Text, "");
    }
    match format {
        Format::Qcow2 => add("encrypt.key-secret", OptionKind::Text, ""),
        Format::Luks => add("key-secret", OptionKind::Text, ""),
        _ => {}
    }
    Some(options)
}

/// Prints the options of new images of a format.
pub fn for_new(format: Format, with_file: bool) -> Result {
    let name = qemu_name(format);
    let Some(mut options) = of_new(format) else {
        return Err(Exit::failed(format!("Format driver '{name}' does not support image creation")));
    };
    if with_file {
        options.extend(OF_FILES.map(|(name, kind, help)| (name.to_owned(), kind, help.to_owned())));
        return say(&format!("Supported options:\n{}", list(options)));
    }
    // Preallocation of raw images is the file's affair.
    options.retain(|o| format != Format::Raw || o.0 != "preallocation");
    say(&format!(
        "Supported {name} options:\n{}\nThe protocol level may support further options.\n\
         Specify the target filename to include those options.\n",
        list(options)
    ))
}

/// Options of qcow2 that can be changed later.
pub const QCOW2_AMENDS: [&str; 6] =
    ["compat", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits", "size"];

/// Prints the options that can be changed.
pub fn for_change(format: Format) -> Result {
    let name = qemu_name(format);
    let keys = |prefix: &str| OF_KEYS.map(|(n, kind, help)| (format!("{prefix}{n}"), kind, help.to_owned()));
    let options = match format {
        Format::Luks => keys("").to_vec(),
        Format::Qcow2 => {
            let mut options = of_new(format).unwrap_or_default();
            options.retain(|o| o.0.starts_with("backing_") || QCOW2_AMENDS.contains(&o.0.as_str()));
            options.extend(keys("encrypt."));
            options
        }
        _ => return Err(Exit::failed(format!("Format driver '{name}' does not support option amendment"))),
    };
    say(&format!("Amend options for '{name}':\n{}", list(options)))
}

/// True if the user asks which options there are.
pub fn wanted(parsed: &Parsed) -> Result<bool> {
    check_lists(parsed)?;
    let asks = |text: &&str| text.replace(",,", "\0").split(',').any(|part| matches!(part, "help" | "?"));
    Ok(parsed.values("o").iter().any(asks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_words_and_a_place() {
        let mut options = of_new(Format::Qcow2).unwrap();
        assert!(options.iter().all(|o| !o.2.is_empty()));
        options.truncate(1);
        assert_eq!(list(options), "  cluster_size=<size>    - qcow2 cluster size\n");
        for driver in plinth_image::format::DRIVERS.iter().filter(|d| d.create.is_some()) {
            assert!(of_new(driver.format).unwrap().iter().all(|o| !o.2.is_empty()), "{}", driver.format);
        }
    }
}
