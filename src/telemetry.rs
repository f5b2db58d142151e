//! Logs: text for people, JSON for collectors, both on standard error. Traces: see [`traces`].

pub mod traces;

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat, LogLevel};
use crate::failure::crashes_at;

/// Begins to log. The level is the worker's; libraries are heard at `warn` at most, since their traces hold logins and
/// bodies, and lapin not at all: what it reports comes back as an error that is logged where it is handled.
///
/// A panic becomes a log line too, so that collectors see one form only; of what it says only the place is told.
pub fn start(log: &Log) {
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
        .with_target(env!("CARGO_CRATE_NAME"), level);
    let registry = tracing_subscriber::registry().with(filter);
    // A second start, as in tests, keeps the first one's form.
    let _ = match log.format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            registry
                .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false))
                .try_init()
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
            registry.with(layer.with_span_list(false).with_writer(std::io::stderr)).try_init()
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "a task panicked");
        crashes_at(place);
    }));
}
