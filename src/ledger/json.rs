//! What stores keep, as JSON that people can read with `redis-cli GET` or `sqlite3`.

/// The JSON of an entry, or of what the ledger knows about itself.
pub(super) fn text(value: &impl serde::Serialize) -> String {
    // Cannot fail: the fields are numbers and texts.
    serde_json::to_string(value).unwrap_or_default()
}

/// A digest in hexadecimal.
pub(super) mod hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in crate::ledger) fn serialize<S: Serializer>(digest: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        to.serialize_str(&text)
    }

    pub(in crate::ledger) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(D::Error::custom("not a digest")) };
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| D::Error::custom("not a digest"))
    }
}
