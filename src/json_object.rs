//! Splits a JSON object into its names and unparsed values, without copying. A value that cannot be parsed does not hide
//! the others.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object with more members is neither a task message nor a verdict, and comparing its keys takes long.
const MAX_MEMBERS: usize = 1_000;
/// The size of a task message. Larger objects allocate more memory.
const USUAL_MEMBERS: usize = 10;

/// The members of a JSON object in order, including repeated keys. Each value is parsed later, so that an error names its
/// member.
pub(crate) struct Members<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The value of a name. Of repeated keys the last one wins, as in most parsers.
    pub(crate) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(given, _)| given == name).map(|(_, value)| *value)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Without this attribute serde reads a [`Cow`] as a copy.
        #[derive(Deserialize)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::with_capacity(USUAL_MEMBERS);
                while let Some((Name(name), value)) = map.next_entry()? {
                    if members.len() == MAX_MEMBERS {
                        return Err(de::Error::custom(format_args!("it has more than {MAX_MEMBERS} fields")));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// The text of a JSON string; none for anything else. Without escapes it is borrowed.
pub(crate) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    // A raw value is valid JSON, so the text between the quotes has no further quotes and no control characters.
    let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(value.get()).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_borrowed_unless_they_have_escapes() {
        let object =
            r#"{ "plain" : "añadir" , "es\u0063aped": "a\tb\"c\\" , "half": "\ud83d", "number": 7, "number": 8 }"#;
        let members: Members<'_> = serde_json::from_str(object).unwrap();
        let text = |name| members.get(name).and_then(text);
        assert!(matches!(text("plain"), Some(Cow::Borrowed("añadir"))));
        assert_eq!(text("escaped").as_deref(), Some("a\tb\"c\\"));
        assert_eq!((text("half"), text("number"), text("none")), (None, None, None));
        assert_eq!(members.get("number").map(RawValue::get), Some("8"), "the last one counts");
        assert!(matches!(members.0.first(), Some((Cow::Borrowed("plain"), _))));
        let many = |count| format!("{{{}}}", vec!["\"a\":1"; count].join(","));
        assert!(serde_json::from_str::<Members<'_>>(&many(MAX_MEMBERS)).is_ok());
        assert!(serde_json::from_str::<Members<'_>>(&many(MAX_MEMBERS + 1)).is_err());
    }
}
