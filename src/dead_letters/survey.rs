//! Collects the messages that a filter selects, as candidates for an action.

use std::borrow::Cow;
use std::ops::ControlFlow;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::fetched::FetchedMessage;
use super::filter::Filter;
use super::list_entry::{Interner, ListEntry};
use super::plan::Candidate;
use super::scan::{ScanError, Scanned};
use super::{DeadLetters, Source};
use crate::ledger::Digest;

/// The messages that a filter selects.
pub struct Survey {
    /// The messages.
    pub candidates: Vec<Candidate>,
    /// How far the reading came.
    pub scanned: Scanned,
}

impl Candidate {
    /// A candidate from a message that was read.
    #[must_use]
    pub fn of(entry: &ListEntry, found: &FetchedMessage) -> Self {
        Self::new(entry, Digest::of(&found.message.body).0)
    }
}

impl DeadLetters {
    /// Reads `sources` and collects a candidate for each message that the filter selects at `now`.
    ///
    /// # Errors
    /// What the broker said, or that `stop` was cancelled.
    pub async fn survey(
        &self,
        sources: &[Source],
        filter: &Filter,
        now: Timestamp,
        stop: &CancellationToken,
        mut candidate: impl FnMut(&ListEntry, FetchedMessage) -> Candidate + Send,
    ) -> Result<Survey, ScanError> {
        let (mut candidates, mut texts) = (Vec::new(), Interner::default());
        let visit = |found: FetchedMessage| {
            let mut entry = ListEntry::new(&found, &mut texts);
            if filter.takes(&entry, now, || Cow::Borrowed(&found.message.body)) {
                entry.identify(&found);
                candidates.push(candidate(&entry, found));
            }
            ControlFlow::Continue(())
        };
        let scanned = self.scan(sources, stop, visit).await?;
        Ok(Survey { candidates, scanned })
    }
}
