//! The reference of a message: twelve characters in its task's text, by which people search for the message. Pure.
//!
//! Every attempt and every replay of a message has the same reference, so two tasks with one reference are duplicates.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// RFC 4648 in lower case. It has neither 0 nor 1, which look like letters.
const ALPHABET: [u8; 32] = *b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of a reference, of five bits each.
const LENGTH: usize = 12;

/// The first 60 bits of a message's key in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reference(u64);

impl Reference {
    /// Computes the reference of a message: the first bits of its key in the ledger, which is a SHA-256 over work queue,
    /// operation and message id. Eight bytes with its length precede each part, so that no two triples give the same input.
    #[must_use]
    pub fn new(queue: &str, operation: &str, message_id: impl AsRef<[u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in [queue.as_bytes(), operation.as_bytes(), message_id.as_ref()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let key: [u8; 32] = hash.finalize().into();
        Self(key.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte)) >> 4)
    }

    /// The 60 bits that the ledger is searched for.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Finds the reference in a text that people paste: alone, as `[ref:…]` or `ref:…`, or within a task's name or
    /// description.
    #[must_use]
    pub fn within(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let marked = lower.rmatch_indices("ref:").find_map(|(at, mark)| {
            let rest = lower.get(at + mark.len()..)?.trim_start();
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            rest.get(..end)?.parse().ok()
        });
        marked.or_else(|| text.parse().ok())
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

/// Why a text is not a reference.
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

    /// Reads it as people copy it: upper or lower case, alone or as `[ref:…]`.
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
    fn reference_is_the_first_sixty_bits_of_the_ledgers_key_in_base32() {
        // `printf '\0\0\0\0\0\0\0\1q\0\0\0\0\0\0\0\2op\0\0\0\0\0\0\0\2id' | sha256sum | xxd -r -p | base32`
        assert_eq!(Reference::new("q", "op", "id").to_string(), "uqaexocqmi5j");
        assert_eq!(Reference(u64::MAX >> 4).to_string(), "777777777777");
        for id in ["id", "", "é 17"] {
            let key = crate::ledger::Key::new("q", "op", id);
            assert_eq!(crate::ledger::KeyPrefix::new(Reference::new("q", "op", id).bits()), key.prefix(), "{id}");
        }
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
    fn reference_is_found_in_pasted_text() {
        let reference = Reference::new("q", "op", "id");
        for text in [
            "uqaexocqmi5j",
            " UQAEXOCQMI5J\n",
            "[ref:uqaexocqmi5j]",
            "ref:uqaexocqmi5j",
            "Ref: uqaexocqmi5j.",
            "Call Ana about ref:17 [ref:uqaexocqmi5j]",
            "[ref:uqaexocqmi5j",
        ] {
            assert_eq!(Reference::within(text), Some(reference), "{text}");
        }
        for text in ["", "order-17", "ref:", "[ref:uqaexocqmi5]", "uqaexocqmi5j or another"] {
            assert_eq!(Reference::within(text), None, "{text}");
        }
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
