//! Changes of a letter's body: single fields on the command line, or the whole of it in an editor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::config::Sources;
use crate::json_object::Members;
use crate::ledger::Digest;
use crate::message::task::FIELDS;
use crate::suggest::suggest;

/// One field and what it is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    field: String,
    value: Value,
}

impl Setting {
    /// Reads `field=value`.
    ///
    /// # Errors
    /// A field that no task has, or `remember` set to something else than true or false.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (field, value) = text.split_once('=').ok_or("is not field=value")?;
        if !FIELDS.contains(&field) {
            let meant = suggest(field, FIELDS).map(|field| format!("; did you mean {field}?")).unwrap_or_default();
            return Err(format!("{field:?} is no field of a task{meant}"));
        }
        let value = match (field, value) {
            ("remember", "true") => Value::Bool(true),
            ("remember", "false") => Value::Bool(false),
            ("remember", _) => return Err("remember is true or false".to_owned()),
            _ => Value::String(value.to_owned()),
        };
        Ok(Self { field: field.to_owned(), value })
    }
}

/// A body with fields set. The rest keeps its values; the fields may change places.
///
/// # Errors
/// When the body is no JSON object, or gives a field more than once that is not set.
pub fn set(body: &[u8], settings: &[Setting]) -> Result<Vec<u8>, String> {
    let Members(members) =
        serde_json::from_slice(body).map_err(|error| format!("the body is not a JSON object: {error}"))?;
    let mut object: BTreeMap<Cow<str>, Box<RawValue>> = BTreeMap::new();
    for (field, value) in members {
        let is_set = settings.iter().any(|setting| setting.field == field);
        if object.insert(field.clone(), value.to_owned()).is_some() && !is_set {
            return Err(format!("the body gives {field:?} more than once: set that field too, or use --edit"));
        }
    }
    for Setting { field, value } in settings {
        object.insert(Cow::Borrowed(field), to_raw_value(value).map_err(|error| error.to_string())?);
    }
    serde_json::to_vec(&object).map_err(|error| error.to_string())
}

/// The body as it would be sent.
pub(super) fn changed(body: &[u8], settings: &[Setting]) -> Result<Vec<u8>, String> {
    if settings.is_empty() { Ok(body.to_vec()) } else { set(body, settings) }
}

/// Whether a digest is that of a body, as it is or as it would be sent.
pub(super) fn is_of(digest: &Digest, body: &[u8], settings: &[Setting]) -> bool {
    *digest == Digest::of(body) || changed(body, settings).is_ok_and(|changed| *digest == Digest::of(&changed))
}

/// A body in a file that its owner alone can read.
pub(super) struct Draft {
    path: PathBuf,
    original: Vec<u8>,
}

impl Draft {
    /// Writes the body down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn new(body: &[u8]) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("dead-letter-{}.json", uuid::Uuid::now_v7()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(body)).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, original: body.to_vec() })
    }

    /// Opens it in an editor, until that is closed; what it holds then.
    ///
    /// # Errors
    /// When the editor cannot be started, or ends with an error.
    pub(super) fn edit(&self, editor: &OsString) -> Result<Vec<u8>, String> {
        // Through a shell, as others do: the variable may hold arguments.
        let mut line = editor.clone();
        line.push(" \"$@\"");
        let status = Command::new("sh").arg("-c").arg(line).arg("sh").arg(&self.path).status();
        let status = status.map_err(|error| format!("the editor cannot be started: {error}"))?;
        if !status.success() {
            return Err(format!("the editor {} ended with {status}", editor.display()));
        }
        std::fs::read(&self.path).map_err(|error| self.kept(&error.to_string()))
    }

    /// Why nothing came of it, with the place where the text is kept.
    pub(super) fn kept(&self, why: &str) -> String {
        if std::fs::read(&self.path).is_ok_and(|body| body == self.original) {
            self.remove();
            return format!("{why}\nnothing was edited; the letter is where it was");
        }
        format!("{why}\n{}; the letter is where it was", self.place())
    }

    /// Where the text is.
    pub(super) fn place(&self) -> String {
        format!("the edited body is kept in {}", self.path.display())
    }

    /// Throws it away.
    pub(super) fn done(self) {
        self.remove();
    }

    fn remove(&self) {
        // A file that stays is no reason to fail.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The editor that the operator prefers.
pub(super) fn editor(sources: &Sources) -> OsString {
    let preferred = sources.variable("VISUAL").or_else(|| sources.variable("EDITOR"));
    preferred.map_or_else(|| "vi".into(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(body: &str, settings: &[&str]) -> Result<String, String> {
        let settings = settings.iter().map(|text| Setting::parse(text)).collect::<Result<Vec<_>, _>>()?;
        set(body.as_bytes(), &settings).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn fields_are_set_and_the_rest_is_kept() {
        let set = change(r#"{"name":"a","id_record":7}"#, &["name=b=c", "remember=true", "description="]);
        assert_eq!(set.as_deref(), Ok(r#"{"description":"","id_record":7,"name":"b=c","remember":true}"#));
        assert_eq!(change(r#"{"name":"a","name":"b"}"#, &["name=c"]).as_deref(), Ok(r#"{"name":"c"}"#));
        for (body, setting, why) in [
            ("{}", "name", "not field=value"),
            ("{}", "nam=x", "did you mean name?"),
            ("{}", "remember=yes", "true or false"),
            ("[]", "name=x", "not a JSON object"),
            ("\u{ff}", "name=x", "not a JSON object"),
            (r#"{"name":"a","name":"b"}"#, "priority=high", "\"name\" more than once"),
        ] {
            assert!(change(body, &[setting]).unwrap_err().contains(why), "{body} {setting}");
        }
    }
}
