//! `--cpu`.

use std::str::FromStr;

/// What the guest's CPUs have: `PROPERTY=on|off[,...]`. Which properties there are, the instruction set says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuOption {
    pub properties: Vec<(String, bool)>,
}

impl CpuOption {
    /// What was last said of property `name`.
    pub fn get(&self, name: &str) -> Option<bool> {
        self.properties.iter().rev().find(|(n, _)| n == name).map(|(_, on)| *on)
    }
}

impl FromStr for CpuOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let property = |part: &str| match part.split_once('=') {
            Some((name, "on")) if !name.is_empty() => Ok((name.to_owned(), true)),
            Some((name, "off")) if !name.is_empty() => Ok((name.to_owned(), false)),
            _ => Err(format!("`{part}` is not PROPERTY=on or PROPERTY=off")),
        };
        Ok(Self { properties: text.split(',').map(property).collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties() {
        let option: CpuOption = "v=on,x=off,v=off".parse().unwrap();
        assert_eq!((option.get("v"), option.get("x"), option.get("y")), (Some(false), Some(false), None));
        for wrong in ["", "v", "v=1", "=on", "v=on,"] {
            assert!(wrong.parse::<CpuOption>().is_err(), "{wrong}");
        }
    }
}
