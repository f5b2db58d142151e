//! Reads the workers' logs to find the messages that they report as possible duplicates.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Weak};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::world::World;

/// The beginning of the log message about a possible duplicate.
const POSSIBLE_DUPLICATE: &str = "the CRM may have two tasks for this message";

thread_local! {
    static WORLD: RefCell<Weak<World>> = RefCell::default();
    /// The async tasks of workers that have reported a possible duplicate and not settled its message yet.
    static REPORTED: RefCell<BTreeSet<tokio::task::Id>> = RefCell::default();
}

/// From now on reports belong to this world.
pub(crate) fn watch(world: &Arc<World>) {
    WORLD.set(Arc::downgrade(world));
}

/// The running async task settles a message: its report is about that message.
pub(crate) fn settles(number: usize) {
    let is_reported = tokio::task::try_id().is_some_and(|task| REPORTED.with_borrow_mut(|tasks| tasks.remove(&task)));
    if let (true, Some(world)) = (is_reported, WORLD.with_borrow(Weak::upgrade)) {
        world.checker().reported(number);
    }
}

/// Runs an episode and reads its workers' logs.
pub(crate) async fn watched<T>(episode: impl Future<Output = T>) -> T {
    REPORTED.take();
    let _guard = tracing::subscriber::set_default(LogReader);
    episode.await
}

struct LogReader;

/// Whether an event's message reports a possible duplicate.
struct IsReport(bool);

impl Visit for IsReport {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 |= field.name() == "message" && format!("{value:?}").starts_with(POSSIBLE_DUPLICATE);
    }
}

impl Subscriber for LogReader {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN && metadata.target().ends_with("observe::events")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut is_report = IsReport(false);
        event.record(&mut is_report);
        if let (true, Some(task)) = (is_report.0, tokio::task::try_id()) {
            REPORTED.with_borrow_mut(|tasks| tasks.insert(task));
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
