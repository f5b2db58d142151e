//! Tests of rules and templates, by topic.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::broker::HeaderValue;
use crate::config::{Loaded, Sources};
use crate::message::sample::Sample;

mod bounds;
mod documentation;
mod events;
mod hostile;
mod jinja;
mod problems;
mod reloading;
mod strict;
mod values;

pub(super) const NOW: Timestamp = Timestamp::constant(1_767_261_600, 0);

/// A configuration file with these lines, loaded.
pub(super) fn config(text: &str) -> Result<Config, Problems> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("wtw-rules-{}-{}.toml", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = Temporary(std::env::temp_dir().join(name));
    std::fs::write(&path.0, text).unwrap();
    let environment = vec![("WTW_CRM_OPERATION".into(), "demo".into())];
    let sources = Sources { file: Some(path.0.clone()), environment, ..Sources::default() };
    Config::load(&sources, &[]).map(|Loaded { config, .. }| config)
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The mapper of a configuration file with these lines.
pub(super) fn mapper(text: &str) -> Mapper {
    Mapper::new(&config(text).unwrap_or_else(|problems| panic!("{problems}")))
        .unwrap_or_else(|problems| panic!("{problems}"))
}

/// A rule with these lines of `[rules.task]`. Its other fields are valid.
pub(super) fn rule(before_task: &str, fields: &str) -> String {
    let usual = [
        ("name", "'n'"),
        ("name_module", "'cases'"),
        ("id_record", "'1'"),
        ("completion_date", "'2027-03-01 10:00:00'"),
        ("wolkvox_owner", "'o'"),
    ];
    let is_given = |name: &str| fields.lines().any(|line| line.split('=').next().unwrap_or_default().trim() == name);
    let rest: Vec<String> =
        usual.iter().filter(|(name, _)| !is_given(name)).map(|(name, value)| format!("{name} = {value}")).collect();
    format!("[[rules]]\nname = \"r\"\n{before_task}\n[rules.task]\n{fields}\n{}\n", rest.join("\n"))
}

/// A message with this body.
pub(super) fn event(body: &str) -> Sample {
    Sample { body: body.into(), routing_key: "a.b".to_owned(), exchange: "x".to_owned(), ..Sample::default() }
}

/// Maps a message that was not seen before.
pub(super) fn map(mapper: &Mapper, sample: Sample) -> Result<Mapped, Failure> {
    let message = sample.message().unwrap();
    mapper.map(&message, &RetryState::new(&message), NOW)
}

/// One field of the task that a rule's template creates from an event; or the error, at start or for the event.
pub(super) fn field(template: &str, sample: Sample) -> Result<String, String> {
    let text = rule("", &format!("description = {template:?}"));
    let mapper = config(&text).and_then(|config| Mapper::new(&config)).map_err(|problems| {
        let lines: Vec<String> =
            problems.iter().map(|problem| format!("{}, {}", problem.key, problem.message)).collect();
        lines.join("; ")
    })?;
    let mapped = map(&mapper, sample).map_err(|failure| failure.message)?;
    let Mapped::Send { body, .. } = mapped else { panic!("{mapped:?}") };
    Ok(fields_of(&body)["description"].as_str().unwrap().to_owned())
}

pub(super) fn text_header(text: &str) -> HeaderValue {
    HeaderValue::LongString(text.into())
}
