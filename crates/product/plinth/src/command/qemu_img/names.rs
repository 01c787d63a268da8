//! QEMU's names and numbers.

use plinth_image::format::{Format, parse_size};
use plinth_image::graph::Cache;

use super::{Exit, Result, warn};

/// What QEMU calls a format.
pub fn qemu_name(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        other => other.name(),
    }
}

/// A format by QEMU's name.
pub fn format(name: &str) -> Option<Format> {
    match name {
        "host_device" | "file" => Some(Format::Raw),
        "vhd" => None,
        _ => name.parse().ok(),
    }
}

/// A format that has to be there.
pub fn known_format(name: &str) -> Result<Format> {
    format(name).ok_or_else(|| Exit::failed(unknown(name)))
}

/// Why nothing can be created in a format that Plinth does not have.
pub fn unknown(name: &str) -> String {
    /// Formats that only QEMU has; it does not create most of them either.
    const OTHERS: [&str; 4] = ["bochs", "qcow", "vvfat", "quorum"];
    match OTHERS.contains(&name) {
        true => format!("Format driver '{name}' does not support image creation"),
        false => format!("Unknown file format '{name}'"),
    }
}

/// A number of bytes; QEMU's `cvtnum`.
pub fn number(what: &str, text: &str) -> Result<u64> {
    number_between(what, text, 0, i64::MAX as u64)
}

/// A number of bytes within bounds.
pub fn number_between(what: &str, text: &str, least: u64, most: u64) -> Result<u64> {
    match size(text) {
        Some(Ok(n)) if (least..=most).contains(&n) => Ok(n),
        None => {
            warn(&format!("Invalid {what} specified. You may use k, M, G, T, P or E suffixes for"));
            Err(Exit::failed("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."))
        }
        _ => Err(Exit::failed(format!("Invalid {what} specified. Must be between {least} and {most}."))),
    }
}

/// A size as QEMU reads it: also hexadecimal. `None`: it is none; `Some(Err)`: it is too large.
pub fn size(text: &str) -> Option<std::result::Result<u64, ()>> {
    let text = text.trim_start();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return match u64::from_str_radix(hex, 16) {
            Ok(n) => Some(Ok(n)),
            Err(_) if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) => Some(Err(())),
            Err(_) => None,
        };
    }
    if let Some(digits) = text.strip_prefix('-') {
        return (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(Err(()));
    }
    let plain = text.strip_suffix(['b', 'B']).unwrap_or(text);
    if plain.ends_with(['b', 'B', 'i']) || text.ends_with(char::is_whitespace) {
        return None;
    }
    let digits = plain.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let looks = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match parse_size(plain) {
        Ok(n) => Some(Ok(n)),
        Err(_) if looks && plain.len() - digits.len() <= 1 => {
            let unit = plain[digits.len()..].to_ascii_lowercase();
            matches!(unit.as_str(), "" | "k" | "m" | "g" | "t" | "p" | "e").then_some(Err(()))
        }
        Err(_) => None,
    }
}

/// How the page cache is used, by the name of a cache mode.
pub fn cache(mode: &str) -> Option<Cache> {
    match mode {
        "none" | "off" | "directsync" => Some(Cache::Direct),
        "writeback" | "unsafe" | "writethrough" => Some(Cache::Cached),
        _ => None,
    }
}

/// How the page cache is used for a source that is read once, by the name of a cache mode if there is one.
pub fn source_cache(mode: Option<&str>) -> std::result::Result<Cache, String> {
    match mode {
        None => Ok(Cache::Spared),
        Some(mode) => cache(mode).ok_or_else(|| format!("Invalid source cache option: {mode}")),
    }
}

/// True for JSON, from `--output`.
pub fn json_wanted(output: Option<&str>) -> Result<bool> {
    match output {
        None | Some("human") => Ok(false),
        Some("json") => Ok(true),
        Some(_) => Err(Exit::failed("--output must be used with human or json as argument.")),
    }
}

/// A size for people: three significant digits, and the unit in which less than 1000 are left.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}B", three_digits(value), UNITS[unit])
}

/// A number below 1000 as printf(3)'s `%.3g` shows it.
fn three_digits(value: f64) -> String {
    let places = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.places$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (197_120, "192 KiB"),
            (8 << 20, "8 MiB"),
            ((1 << 30) + (1 << 29), "1.5 GiB"),
            (1023 << 20, "0.999 GiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(size("0x10"), Some(Ok(16)));
        assert_eq!(size("1k"), Some(Ok(1024)));
        assert_eq!(size("8E"), Some(Err(())));
        assert_eq!(size("-1"), Some(Err(())));
        for bad in ["", "k", "--1", "-", "-1k", "1z", "1kk", "a", "1 k", "1kilobyte", "0x"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }
}
