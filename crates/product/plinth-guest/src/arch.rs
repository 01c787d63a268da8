//! What differs between guest architectures, as data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::GuestError;

/// An architecture that guests are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestArch {
    /// 64-bit RISC-V.
    Riscv64,
    /// 64-bit x86.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

/// What the builder has to know about an architecture.
#[derive(Debug)]
pub(crate) struct ArchData {
    /// Debian's name of the architecture.
    pub debian: &'static str,
    /// The kernel metapackage.
    pub kernel: &'static str,
    /// The serial console of the boards we build for.
    pub console: &'static str,
}

static ALL: [(GuestArch, ArchData); 3] = [
    (GuestArch::Riscv64, ArchData { debian: "riscv64", kernel: "linux-image-riscv64", console: "ttyS0" }),
    (GuestArch::Amd64, ArchData { debian: "amd64", kernel: "linux-image-cloud-amd64", console: "ttyS0" }),
    (GuestArch::Arm64, ArchData { debian: "arm64", kernel: "linux-image-cloud-arm64", console: "ttyAMA0" }),
];

impl GuestArch {
    pub(crate) fn data(self) -> &'static ArchData {
        match self {
            Self::Riscv64 => &ALL[0].1,
            Self::Amd64 => &ALL[1].1,
            Self::Arm64 => &ALL[2].1,
        }
    }
}

impl fmt::Display for GuestArch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.data().debian)
    }
}

impl FromStr for GuestArch {
    type Err = GuestError;

    /// Takes Debian's names and the kernel's.
    fn from_str(text: &str) -> Result<Self, GuestError> {
        match text {
            "riscv64" => Ok(Self::Riscv64),
            "amd64" | "x86_64" | "x86-64" => Ok(Self::Amd64),
            "arm64" | "aarch64" => Ok(Self::Arm64),
            _ => Err(GuestError::Invalid(format!(
                "no guest image can be built for \"{text}\"; the architectures are riscv64, amd64 and arm64"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (arch, data) in &ALL {
            assert_eq!(arch.data().debian, data.debian);
            assert_eq!(arch.to_string().parse::<GuestArch>().unwrap(), *arch);
        }
        assert!("sparc".parse::<GuestArch>().is_err());
    }
}
