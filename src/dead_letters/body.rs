//! Reads values from a message's JSON body, and indents it for people. Pure.

use serde_json::value::RawValue;

use crate::json_object::Members;

/// The value at a path of a JSON body: a string without its quotation marks, anything else as it is written.
#[must_use]
pub fn value_at(body: &[u8], path: &str) -> Option<String> {
    let mut json = std::str::from_utf8(body).ok()?;
    for name in path.split('.') {
        let members: Members<'_> = serde_json::from_str(json).ok()?;
        json = members.get(name)?.get();
    }
    let value: &RawValue = serde_json::from_str(json).ok()?;
    Some(crate::json_object::text(value).map_or_else(|| value.get().to_owned(), std::borrow::Cow::into_owned))
}

/// A JSON body with line breaks and indentation; names, order and values stay the same. None when it is not JSON.
#[must_use]
pub fn indented(body: &str) -> Option<String> {
    serde_json::from_str::<&RawValue>(body).ok()?;
    let mut out = String::with_capacity(body.len() * 2);
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    let mut rest = body.trim().chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth.min(40)));
    };
    while let Some(c) = rest.next() {
        if in_text {
            in_text = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            out.push(c);
            continue;
        }
        match c {
            '"' => {
                in_text = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while rest.next_if(|c| c.is_whitespace()).is_some() {}
                if let Some(end) = rest.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_whitespace() => {}
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_at_a_path_is_returned_as_written() {
        let body = br#"{"customer":{"id":12345678901234567890123,"name":"An\u0061"},"list":[1]}"#;
        for (path, value) in [
            ("customer.id", Some("12345678901234567890123")),
            ("customer.name", Some("Ana")),
            ("list", Some("[1]")),
            ("customer.none", None),
            ("list.0", None),
        ] {
            assert_eq!(value_at(body, path).as_deref(), value, "{path}");
        }
        assert_eq!(value_at(b"\xff", "a"), None);
    }

    #[test]
    fn body_is_indented_without_changing_values() {
        let body = r#" {"id":12345678901234567890123,"t":"a, {\"b\": [\\","e":{},"l":[1,[ ]]} "#;
        let shown = indented(body).unwrap();
        assert_eq!(
            shown,
            "{\n  \"id\": 12345678901234567890123,\n  \"t\": \"a, {\\\"b\\\": [\\\\\",\n  \"e\": {},\n  \"l\": [\n    1,\n    []\n  ]\n}"
        );
        assert_eq!(indented("{not json"), None);
        assert!(indented(&"[".repeat(100_000)).is_none(), "too deep to be read");
    }
}
