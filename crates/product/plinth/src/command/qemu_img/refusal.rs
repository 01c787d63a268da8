//! What QEMU refuses to create, in its words: scripts look for them. The formats themselves refuse the same.

use plinth_image::format::{Format, Image, OptionKind, Options, luks};

use super::option_help::QCOW2_AMENDS;
use super::options::NewOptions;

/// Why QEMU would not create such an image, where it has words of its own for it.
pub fn refusal(format: Format, new: &NewOptions, bytes: u64) -> Option<String> {
    let specs = format.driver().map_or(&[][..], |d| d.options);
    for (name, value) in new.own.iter() {
        let spec = specs.iter().find(|s| s.name == name)?;
        if let OptionKind::Choice(choices) = spec.kind
            && !choices.contains(&value)
        {
            return Some(match (format, name) {
                (Format::Vmdk, _) => format!("invalid parameter value: {value}"),
                (_, "compat") => format!("Parameter 'version' does not accept value '{value}'"),
                _ => {
                    let name = name.trim_start_matches("encrypt.").replace('_', "-");
                    format!("Parameter '{name}' does not accept value '{value}'")
                }
            });
        }
    }
    match format {
        Format::Qcow2 => qcow2(new, bytes),
        Format::Vmdk => {
            let flat = new.own.text("subformat").is_some_and(|s| s.ends_with("Flat"));
            (flat && new.own.flag("zeroed_grain") == Some(true))
                .then(|| "Flat image can't enable zeroed grain".to_owned())
        }
        _ => None,
    }
}

fn qcow2(new: &NewOptions, bytes: u64) -> Option<String> {
    let own = &new.own;
    let cluster = own.size("cluster_size").ok()?.unwrap_or(64 << 10);
    let bits = own.number("refcount_bits").ok()?.unwrap_or(16);
    let on = |name: &str| own.flag(name) == Some(true);
    let old = matches!(own.text("compat"), Some("0.10" | "v2"));
    let newer = |what: &str, and: &str| {
        format!("{what} compatibility level 1.1 {and} above (use version=v3 or greater)")
    };
    let entry = if on("extended_l2") { 16 } else { 8 };
    /// Bytes of an L1 table at most, and clusters of images with subclusters at least.
    const MAX_L1: u64 = 32 << 20;
    const MIN_EXTENDED: u64 = 16 << 10;
    let preallocated = own.text("preallocation").is_some_and(|p| p != "off");
    let rules: [(bool, String); 13] = [
        (
            !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster),
            "Cluster size must be a power of two between 512 and 2048k".into(),
        ),
        (
            on("extended_l2") && cluster < MIN_EXTENDED,
            format!(
                "Extended L2 entries are only supported with cluster sizes of at least {MIN_EXTENDED} bytes"
            ),
        ),
        (on("extended_l2") && old, newer("Extended L2 entries are only supported with", "and")),
        (
            new.backing.is_some() && preallocated && !on("extended_l2"),
            "Backing file and preallocation can only be used at the same time if extended_l2 is on".into(),
        ),
        (on("data_file_raw") && own.text("data_file").is_none(), "data-file-raw requires data-file".into()),
        (
            on("data_file_raw") && new.backing.is_some(),
            "Backing file and data-file-raw cannot be used at the same time".into(),
        ),
        (own.text("data_file").is_some() && old, newer("External data files are only supported with", "and")),
        (on("lazy_refcounts") && old, newer("Lazy refcounts only supported with", "and")),
        (
            !bits.is_power_of_two() || bits > 64,
            "Refcount width must be a power of two and may not exceed 64 bits".into(),
        ),
        (bits != 16 && old, newer("Different refcount widths than 16 bits require", "or")),
        (
            own.text("compression_type").is_some_and(|c| c != "zlib") && old,
            newer("Non-zlib compression type is only supported with", "and"),
        ),
        (
            own.text("encrypt.format").is_some() && new.secret.is_none(),
            "Parameter 'encrypt.key-secret' is required for cipher".into(),
        ),
        (
            cluster.is_power_of_two() && bytes.div_ceil(cluster).div_ceil(cluster / entry) * 8 > MAX_L1,
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)".into(),
        ),
    ];
    rules.into_iter().find(|r| r.0).map(|r| r.1)
}

/// Why QEMU would not change options of an image in this way, where it has words of its own for it.
pub fn amend_refusal(image: &dyn Image, options: &Options) -> Option<String> {
    const KEYS: [&str; 5] = ["state", "keyslot", "new-secret", "old-secret", "iter-time"];
    let format = image.format();
    let (own, prefix): (&[&str], &str) = match format {
        Format::Luks => (&[], ""),
        _ => (&QCOW2_AMENDS, "encrypt."),
    };
    for (name, _) in options.iter() {
        if own.contains(&name) || name.strip_prefix(prefix).is_some_and(|n| KEYS.contains(&n)) {
            continue;
        }
        let known = format.driver().is_some_and(|d| d.options.iter().any(|o| o.name == name));
        let only = if known { "\nThis option is only supported for image creation" } else { "" };
        return Some(format!("Invalid parameter '{name}'{only}"));
    }
    if format != Format::Qcow2 {
        return None;
    }
    let details = image.describe().details;
    let old = match options.text("compat") {
        Some("0.10" | "v2") => true,
        Some("1.1" | "v3") => false,
        Some(other) => return Some(format!("Unknown compatibility level {other}")),
        None => details["compat"] == "0.10",
    };
    let bits = options.number("refcount_bits").ok()?;
    let other_bits = |n: Option<u64>| n.is_some_and(|n| n != 16);
    if details.contains_key("data-file-raw") {
        if old {
            return Some("Cannot downgrade an image with a data file".to_owned());
        }
    } else if options.text("data_file").is_some() {
        return Some("data-file can only be set for images that use an external data file".to_owned());
    }
    // Bits of the header that an old version does not have.
    let zstd = if details.get("compression-type").is_some_and(|t| t == "zstd") { 1 << 3 } else { 0 };
    let extended = if details.get("extended-l2") == Some(&true.into()) { 1 << 4 } else { 0 };
    if old && zstd + extended > 0 {
        let bits = zstd + extended;
        return Some(format!("Cannot downgrade an image with incompatible features {bits:#x} set"));
    }
    let rules = [
        (
            options.flag("data_file_raw") == Some(true) && details.get("data-file-raw") != Some(&true.into()),
            "data-file-raw cannot be set on existing images",
        ),
        (
            old && options.flag("lazy_refcounts") == Some(true),
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
        ),
        (
            old && other_bits(bits),
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
        ),
        (
            old && bits.is_none() && other_bits(details["refcount-bits"].as_u64()),
            "compat=0.10 requires refcount_bits=16",
        ),
    ];
    rules.into_iter().find(|r| r.0).map(|r| r.1.to_owned())
}

/// Why QEMU would not have changed a key slot, where we would not either.
pub fn amend_failure(why: String, options: &Options) -> String {
    let text = |name: &str| options.text(name).or_else(|| options.text(&format!("encrypt.{name}")));
    let slot = text("keyslot").unwrap_or_default();
    match why.as_str() {
        luks::SLOT_IN_USE => format!("Refusing to overwrite active keyslot {slot} - please erase it first"),
        luks::LAST_KEY => {
            let (what, they) = match text("old-secret") {
                Some(_) => (
                    "All the active keyslots match the (old) password that was given and".to_owned(),
                    "erasing them",
                ),
                None => (format!("Attempt to erase the only active keyslot {slot}"), "which"),
            };
            format!("{what} {they} will erase all the data in the image irreversibly - refusing operation")
        }
        _ => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_qemus_words() {
        let why = |text: &str, bytes| {
            let new = NewOptions { own: Options::parse(text).unwrap(), ..NewOptions::default() };
            refusal(Format::Qcow2, &new, bytes)
        };
        assert_eq!(why("cluster_size=64k,refcount_bits=8", 1 << 40), None);
        assert!(why("cluster_size=512", 1 << 40).unwrap().starts_with("The image size is too large"));
        assert!(why("compat=0.42", 0).unwrap().contains("'version' does not accept value '0.42'"));
        assert_eq!(
            why("compat=0.10,refcount_bits=8", 0).unwrap(),
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or \
             greater)"
        );
    }
}
