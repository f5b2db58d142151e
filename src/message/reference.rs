//! The reference of a message: twelve letters that people can read in a task and search for. Pure.
//!
//! It is the same for every attempt and every replay of a message, so two tasks with one reference are duplicates.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// RFC 4648, in lower case. It has neither 0 nor 1, which people take for letters.
const ALPHABET: [u8; 32] = *b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of a reference, of five bits each.
const LENGTH: usize = 12;

/// The first 60 bits of a message's key in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reference(u64);

impl Reference {
    /// The reference of one message: SHA-256 over work queue, operation and message id. Each of the first two is preceded by its
    /// length in eight bytes, so that no two triples give the same bytes.
    #[must_use]
    pub fn new(queue: &str, operation: &str, message_id: impl AsRef<[u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in [queue, operation] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(message_id);
        Self::of_key(hash.finalize().into())
    }

    /// The reference of a key, which is such a SHA-256.
    #[must_use]
    pub fn of_key(key: [u8; 32]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = key;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 4)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for position in (0..LENGTH).rev() {
            let letter = ALPHABET.get((self.0 >> (5 * position)) as usize & 31).copied().unwrap_or_default();
            fmt::Write::write_char(f, char::from(letter))?;
        }
        Ok(())
    }
}

/// Why a text is no reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoReference;

impl fmt::Display for NoReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a reference is twelve of the letters a to z and the digits 2 to 7, such as mfrggzdfmzta")
    }
}

impl std::error::Error for NoReference {}

impl FromStr for Reference {
    type Err = NoReference;

    /// Reads it as people copy it: in any case, alone or as `[ref:…]`.
    fn from_str(text: &str) -> Result<Self, NoReference> {
        let text = text.trim().to_ascii_lowercase();
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text);
        let letters = inner.strip_prefix("ref:").unwrap_or(inner).as_bytes();
        if letters.len() != LENGTH {
            return Err(NoReference);
        }
        letters.iter().try_fold(Self(0), |Self(bits), letter| {
            let value = ALPHABET.iter().position(|known| known == letter).ok_or(NoReference)?;
            Ok(Self(bits << 5 | value as u64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_is_the_first_sixty_bits_in_base32() {
        let mut key = [0; 32];
        key[..5].copy_from_slice(b"abcde");
        // RFC 4648: "abcde" is MFRGGZDF.
        assert_eq!(Reference::of_key(key).to_string(), "mfrggzdfaaaa");
        assert_eq!(Reference::of_key([0xff; 32]).to_string(), "777777777777");
        // `printf '\0\0\0\0\0\0\0\1q\0\0\0\0\0\0\0\2opid' | sha256sum | xxd -r -p | base32`
        assert_eq!(Reference::new("q", "op", "id").to_string(), "eteihddspxxh");
    }

    #[test]
    fn reference_differs_where_only_the_joined_parts_are_equal() {
        let references =
            [("q", "op", "id"), ("qo", "p", "id"), ("q", "o", "pid"), ("q", "opi", "d"), ("", "qop", "id")]
                .map(|(queue, operation, id)| Reference::new(queue, operation, id));
        for (index, one) in references.iter().enumerate() {
            assert!(references.iter().skip(index + 1).all(|other| other != one), "{references:?}");
        }
        assert_eq!(references[0], Reference::new("q", "op", "id"));
    }

    #[test]
    fn reference_is_read_as_people_copy_it() {
        let reference = Reference::new("q", "op", "id");
        for text in
            [format!("{reference}"), format!(" [ref:{reference}] "), format!("[REF:{reference}]").to_uppercase()]
        {
            assert_eq!(text.parse(), Ok(reference), "{text}");
        }
        for text in ["", "mfrggzdfaaa", "mfrggzdfaaaa2", "mfrggzdfaaa1", "[ref:]", "mfrggzdfaaaé"] {
            assert_eq!(text.parse::<Reference>(), Err(NoReference), "{text}");
        }
    }
}
