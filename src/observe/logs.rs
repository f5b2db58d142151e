//! Logs: text for people or JSON for collectors, on standard error. If nobody reads the log, lines are lost, but nothing
//! waits.
//!
//! For traces see [`crate::observe::traces`].

#[cfg(test)]
pub(crate) mod captured;
mod lines;
mod repeated;

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use serde::ser::{SerializeMap as _, Serializer as _};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_serde::SerdeMapVisitor;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::clock::Clock;
use crate::config::{Log, LogFormat, LogLevel};
use crate::message::failure::crashes_at;
use lines::Lines;
pub use repeated::{Repeat, Repeated};

/// The target of the audit lines, which are logged at every level.
pub(crate) const AUDIT: &str = concat!(env!("CARGO_CRATE_NAME"), "::dead_letters::audit");
/// There is one log, because there is one standard error.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Log lines that were lost because nobody read the log.
#[must_use]
pub fn lost() -> u64 {
    LINES.get().map_or(0, Lines::lost)
}

/// Waits until everything is written, at most two seconds. Called before the process ends.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush();
    }
}

/// Starts the log. The level applies to the worker; audit lines are logged at every level. Libraries log only warnings and
/// errors, because their traces hold logins and bodies. lapin logs nothing: its errors are logged where they are handled.
///
/// A panic becomes a log line too, so that collectors see one form. The line has its source location, not its text.
///
/// # Errors
/// The thread that writes cannot be started.
pub fn start(log: &Log) -> io::Result<()> {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("lapin", LevelFilter::OFF)
        .with_target(env!("CARGO_CRATE_NAME"), level)
        .with_target(AUDIT, level.max(LevelFilter::INFO));
    let registry = tracing_subscriber::registry().with(filter);
    let on_loss = |lost| tracing::warn!(lost, "log lines were lost, because the log was not read in time");
    let started = Lines::start(io::stderr(), on_loss)?;
    let lines = LINES.get_or_init(|| started).clone();
    // A second start, as in tests, keeps the form of the first.
    let _ = match log.format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            registry
                .with(tracing_subscriber::fmt::layer().with_writer(lines).with_ansi(ansi).with_target(false))
                .try_init()
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().event_format(JsonLines(Clock::system()));
            registry.with(layer.with_writer(lines)).try_init()
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "the program panicked, which is a bug: report it with this log");
        crashes_at(place);
    }));
    Ok(())
}

/// Writes one JSON object a line, with the message and its fields at the same level. tracing-subscriber's own form writes
/// each line in a hundred pieces and checks each for UTF-8, which is several times slower.
struct JsonLines(Clock);

impl JsonLines {
    fn line(&self, event: &Event<'_>) -> Result<Vec<u8>, serde_json::Error> {
        let metadata = event.metadata();
        let mut line = Vec::with_capacity(512);
        let mut serializer = serde_json::Serializer::new(&mut line);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("timestamp", &format_args!("{:.6}", self.0.now()))?;
        map.serialize_entry("level", metadata.level().as_str())?;
        let mut fields = SerdeMapVisitor::new(map);
        event.record(&mut fields);
        let mut map = fields.take_serializer()?;
        map.serialize_entry("target", metadata.target())?;
        map.end()?;
        line.push(b'\n');
        Ok(line)
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let line = self.line(event).map_err(|_| fmt::Error)?;
        writer.write_str(std::str::from_utf8(&line).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn line_is_one_json_object_whatever_it_says() {
        let clock = Clock::new(|| "2026-03-01T10:00:00.0000015Z".parse().unwrap());
        let (mut reader, writer) = std::io::pipe().unwrap();
        let layer = tracing_subscriber::fmt::layer().event_format(JsonLines(clock)).with_writer(Arc::new(writer));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let (error, none) = ("7x".parse::<u64>().unwrap_err(), None::<u64>);
            tracing::warn!(id = "\"a\"\n\u{1}ñ", %error, ?none, code = 403_u64, open = true, "was {}", "settled");
        });
        let expected = concat!(
            r#"{"timestamp":"2026-03-01T10:00:00.000001Z","level":"WARN","message":"was settled","id":"\"a\"\n\u0001ñ","#,
            r#""error":"invalid digit found in string","none":"None","code":403,"open":true,"#,
            r#""target":"wolkvox_task_worker::observe::logs::tests"}"#,
            "\n"
        );
        let mut written = String::new();
        reader.read_to_string(&mut written).unwrap();
        assert_eq!(written, expected);
    }
}
