//! Sizes with units.

use std::str::FromStr;

/// A number of bytes, written with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 16] = [
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("p", 1 << 50),
    ("pib", 1 << 50),
    ("pb", 1_000_000_000_000_000),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        if number.is_empty() || number.starts_with('.') || number.ends_with('.') {
            return Err("write a number and a unit, such as 512M or 1.5GiB".to_owned());
        }
        if unit.is_empty() {
            return Err(format!(
                "the number has no unit: write {number}M for mebibytes or {number}B for bytes"
            ));
        }
        let name = unit.to_ascii_lowercase();
        let scale = UNITS.iter().find(|(n, _)| *n == name).map(|u| u.1).ok_or_else(|| {
            format!(
                "'{unit}' is not a unit: use K, M, G, T (powers of 1024, as KiB and so on) or kB, MB, GB, TB"
            )
        })?;
        let too_large = || "the size is too large".to_owned();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let bytes = whole.checked_mul(scale).ok_or_else(too_large)?;
        let Some(places) = u32::try_from(fraction.len()).ok().filter(|&p| p <= 18) else {
            return Err("the number has too many decimal places".to_owned());
        };
        let part: u64 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| too_large())? };
        let part = u128::from(part) * u128::from(scale) / 10u128.pow(places);
        let bytes = bytes.checked_add(part as u64).ok_or_else(too_large)?;
        if bytes == 0 {
            return Err("the size is zero".to_owned());
        }
        Ok(Self(bytes))
    }
}

/// A number of bytes for people: with the largest binary unit that leaves at least 1.
pub fn show(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut shown = format!("{bytes} bytes");
    let mut scale = 1024u64;
    for unit in units {
        if bytes < scale {
            break;
        }
        let tenths = u128::from(bytes) * 10 / u128::from(scale);
        shown = if tenths.is_multiple_of(10) {
            format!("{} {unit}", tenths / 10)
        } else {
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        };
        scale = scale.saturating_mul(1024);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        let bytes = |t: &str| t.parse::<Size>().map(|s| s.0);
        assert_eq!(bytes("512M"), Ok(512 << 20));
        assert_eq!(bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(bytes("2g"), Ok(2 << 30));
        assert_eq!(bytes("10MB"), Ok(10_000_000));
        assert_eq!(bytes("4096B"), Ok(4096));
        assert!(bytes("512").unwrap_err().contains("512M for mebibytes or 512B for bytes"));
        for bad in [
            "",
            "M",
            "-1M",
            "1..5G",
            "0M",
            "1X",
            "99999999999999999999M",
            "20000P",
            ".5G",
            "1.0000000000000000001G",
        ] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show(100), "100 bytes");
        assert_eq!(show(512 << 20), "512 MiB");
        assert_eq!(show(3 << 29), "1.5 GiB");
    }
}
