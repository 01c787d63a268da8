//! Unique identifiers of images.

use std::fmt;

use crate::{Error, ErrorKind};

/// A unique identifier, as it is stored: the first three fields little endian, as Microsoft and VirtualBox have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid(pub [u8; 16]);

/// Where the bytes of the text are in what is stored.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// None at all.
    pub const NIL: Self = Self([0; 16]);

    /// One that nobody else has (RFC 9562, version 4).
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn random() -> Result<Self, Error> {
        let mut bytes = [0; 16];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::new(ErrorKind::Io, "cannot make a unique identifier", e))?;
        bytes[7] = bytes[7] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// Reads a text, with or without braces.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        if text.len() != 36 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 16];
        let mut digits = text.bytes();
        for (n, &at) in ORDER.iter().enumerate() {
            if matches!(n, 4 | 6 | 8 | 10) && digits.next()? != b'-' {
                return None;
            }
            let digit = |d: Option<u8>| char::from(d?).to_digit(16);
            bytes[at] = (digit(digits.next())? << 4 | digit(digits.next())?) as u8;
        }
        Some(Self(bytes))
    }

    /// One whose text is stored in its own order, as VHD has it.
    pub fn from_text_order(bytes: [u8; 16]) -> Self {
        let mut guid = Self::NIL;
        ORDER.iter().zip(bytes).for_each(|(&at, b)| guid.0[at] = b);
        guid
    }

    /// The bytes in the order of the text.
    pub fn text_order(self) -> [u8; 16] {
        ORDER.map(|at| self.0[at])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, b) in self.text_order().into_iter().enumerate() {
            if matches!(n, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes() {
        let text = "2dc27766-f623-4200-9d64-115e9bfd4a08";
        let guid = Guid::parse(&format!("{{{}}}", text.to_uppercase())).unwrap();
        assert_eq!(guid.0[..6], [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6]);
        assert_eq!(guid.to_string(), text);
        assert_eq!(Guid::from_text_order(guid.text_order()), guid);
        assert_ne!(Guid::random().unwrap(), Guid::random().unwrap());
        for bad in ["", "2dc27766-f623-4200-9d64-115e9bfd4a0", "2dc27766-f623-4200-9d64-115e9bfd4a0g", "é"] {
            assert_eq!(Guid::parse(bad), None, "{bad}");
        }
    }
}
