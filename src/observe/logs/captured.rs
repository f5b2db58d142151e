//! Captures what a test logs on its thread.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::Value;
use tracing::Dispatch;
use tracing::subscriber::{DefaultGuard, set_default};
use tracing_subscriber::layer::SubscriberExt as _;

use super::JsonLines;
use crate::clock::Clock;
use crate::sync::lock;

/// A second subscriber, so that tracing asks each thread whether a line is wanted. With one subscriber, it asks only the first
/// thread that reaches a log statement; if that is another test's, the line is lost.
static SECOND: OnceLock<Dispatch> = OnceLock::new();

/// Captures log lines until it is dropped.
pub(crate) struct Captured {
    written: Written,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    /// Captures the lines of this thread.
    pub(crate) fn start() -> Self {
        SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::registry()));
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(JsonLines(Clock::system()));
        let layer = layer.with_writer(move || writer.clone());
        Self { written, _guard: set_default(tracing_subscriber::registry().with(layer)) }
    }

    /// The lines so far; the next call returns only newer ones.
    pub(crate) fn take(&self) -> Vec<Value> {
        let written = std::mem::take(&mut *lock(&self.written.0));
        let lines = written.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }
}
