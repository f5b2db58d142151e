//! The ledger's entry for one message, and how claiming, finishing and withdrawing change it. Pure; every store uses it.
//!
//! | operation | on no entry | on an entry |
//! | --- | --- | --- |
//! | [`Change::Claim`] | makes an entry with the claim, if the caller expected none | adds the claim if the version is the expected one, no claim is open and no task is created; else changes nothing and returns the entry |
//! | [`Change::Finish`] `Created` | makes an entry with the result `Created` | sets the result `Created`, whatever claim is open |
//! | [`Change::Finish`] otherwise | changes nothing | sets the result if that claim is open; `InDoubt` stays until `Created` |
//! | [`Change::Withdraw`] | makes an entry without a claim | removes that claim if it is open; changes the version in any case |
//!
//! A withdrawal always changes the version. A claim that arrives after its own withdrawal therefore expects an old version, and
//! changes nothing.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a message's body as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(#[serde(with = "super::json::hex")] pub [u8; 32]);

impl Digest {
    /// The digest of `body`.
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

/// What is known about whether the task exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownResult {
    /// No request created it.
    NotCreated,
    /// A request may have created it.
    InDoubt,
    /// The CRM said that it created it. This is never taken back.
    Created,
}

/// Identifies one claim. Random, so that no two claims of any worker have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClaimId(pub u64);

/// Identifies one worker process. Random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner(pub u64);

/// Who is sending the message now; written before the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Identifies this claim.
    pub id: ClaimId,
    /// The worker process that made it.
    pub owner: Owner,
    /// When it was made, by the owner's clock. Only shown to people: no decision uses it.
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::required")]
    pub at: Timestamp,
}

/// Identifies one replay of a message by the time when it was dead-lettered and the number of earlier replays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayMark {
    /// The text of `x-wtw-failed-at`; empty if RabbitMQ dead-lettered the message.
    pub failed_at: String,
    /// `x-wtw-replay-count`.
    pub count: u32,
}

/// What the ledger knows of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Changes with every change of the entry: a claim names the version that its worker has seen.
    pub version: u64,
    /// The digest of the body that was claimed or sent last. Once the task exists: of the body that created it.
    pub digest: Digest,
    /// Whether the task exists.
    pub result: KnownResult,
    /// An earlier attempt was in doubt, so there may be one task more than `result` says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub doubted: bool,
    /// The open claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// Attempts so far, including the one of the open claim.
    pub attempts: u32,
    /// Orphans in a row: claims whose owner ended before it recorded a result.
    #[serde(default)]
    pub orphans: u32,
    /// The replay that was claimed last, with the highest count so far: other messages with the same id can be replayed, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<ReplayMark>,
    /// The ledger's [`epoch`](super::Ledger::epoch) at the last change.
    pub epoch: u32,
    /// When the entry changed last.
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::required")]
    pub at: Timestamp,
}

/// A claim to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClaim {
    /// The claim.
    pub claim: Claim,
    /// The digest of the body to send.
    pub digest: Digest,
    /// Attempts so far, including this one.
    pub attempts: u32,
    /// An earlier request may have created the task, although the entry does not say so.
    pub in_doubt: bool,
    /// Forget the results of earlier attempts, because an operator replayed the message.
    pub reset: bool,
    /// Which replay the message is; none if it is no replay.
    pub replay: Option<ReplayMark>,
    /// The ledger's epoch.
    pub epoch: u32,
}

/// How one attempt ended, in the ledger's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// The CRM said that it created the task.
    Created,
    /// The CRM did not create the task.
    NotCreated,
    /// The CRM may have created the task.
    InDoubt,
    /// The claim's owner ended before it recorded a result.
    Orphaned,
}

/// An operation on an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Claim the message, if its entry has the expected version.
    Claim {
        /// The entry's version that the caller has seen; none if there was no entry.
        expected: Option<u64>,
        /// The claim.
        new: NewClaim,
    },
    /// Record how the attempt of a claim ended.
    Finish {
        /// The claim.
        id: ClaimId,
        /// The digest of the body that was sent.
        digest: Digest,
        /// How the attempt ended.
        result: AttemptResult,
        /// Attempts so far.
        attempts: u32,
        /// The time now.
        at: Timestamp,
        /// The ledger's epoch.
        epoch: u32,
    },
    /// Remove a claim whose request was not sent.
    Withdraw(NewClaim),
}

/// The result of a [`Change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It was carried out, now or by an earlier call with the same change. Holds the entry after it, if there is one.
    Done(Option<Entry>),
    /// The claim was not made, because the entry is not the expected one. Holds the entry that is there.
    Conflict(Option<Entry>),
}

/// Applies `change` to `entry`. Returns the entry to store, none if nothing changes, and the answer to the caller.
#[must_use]
pub fn apply(entry: Option<Entry>, change: &Change) -> (Option<Entry>, Changed) {
    match change {
        Change::Claim { expected, new } => claim(entry, *expected, new),
        Change::Finish { id, digest, result, attempts, at, epoch } => {
            let after = finish(entry.as_ref(), *id, *digest, *result, *attempts);
            let after = after.map(|after| Entry { at: *at, epoch: *epoch, ..after });
            (after.clone(), Changed::Done(after.or(entry)))
        }
        Change::Withdraw(new) => {
            let after = withdraw(entry, new);
            (Some(after.clone()), Changed::Done(Some(after)))
        }
    }
}

fn claim(entry: Option<Entry>, expected: Option<u64>, new: &NewClaim) -> (Option<Entry>, Changed) {
    let open = entry.as_ref().and_then(|entry| entry.claim);
    if open.is_some_and(|open| open.id == new.claim.id) {
        // The caller repeats the claim, because its answer was lost.
        return (None, Changed::Done(entry));
    }
    let is_created = entry.as_ref().is_some_and(|entry| entry.result == KnownResult::Created);
    if entry.as_ref().map(|entry| entry.version) != expected || open.is_some() || is_created {
        return (None, Changed::Conflict(entry));
    }
    let mut after = entry.unwrap_or_else(|| new_entry(new.claim.id, new.digest, new.attempts));
    if new.reset {
        (after.result, after.orphans) = (KnownResult::NotCreated, 0);
    }
    after.keep_replay(new);
    if new.in_doubt {
        (after.result, after.doubted) = (KnownResult::InDoubt, true);
    }
    after.version = after.version.wrapping_add(1);
    (after.claim, after.digest, after.attempts) = (Some(new.claim), new.digest, new.attempts);
    (after.epoch, after.at) = (new.epoch, new.claim.at);
    (Some(after.clone()), Changed::Done(Some(after)))
}

/// The entry of a message that has none yet. The caller sets epoch and time.
fn new_entry(id: ClaimId, digest: Digest, attempts: u32) -> Entry {
    Entry {
        // Random, so that an entry that is forgotten and made again never repeats a version that another worker has seen.
        version: id.0,
        digest,
        result: KnownResult::NotCreated,
        doubted: false,
        claim: None,
        attempts,
        orphans: 0,
        replay: None,
        epoch: 0,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn withdraw(entry: Option<Entry>, new: &NewClaim) -> Entry {
    let mut after = entry.unwrap_or_else(|| {
        let attempts = new.attempts.saturating_sub(1);
        Entry { epoch: new.epoch, at: new.claim.at, ..new_entry(new.claim.id, new.digest, attempts) }
    });
    after.version = after.version.wrapping_add(1);
    // The owner of an open claim will record whether the task exists.
    if new.in_doubt && after.claim.is_none() && after.result != KnownResult::Created {
        (after.result, after.doubted) = (KnownResult::InDoubt, true);
        // An earlier replay must not replace a later one that was claimed.
        let count = |replay: &Option<ReplayMark>| replay.as_ref().map(|replay| replay.count);
        if count(&new.replay) > count(&after.replay) {
            after.keep_replay(new);
        }
    }
    if after.claim.is_some_and(|open| open.id == new.claim.id) {
        (after.claim, after.attempts) = (None, after.attempts.saturating_sub(1));
    }
    after
}

fn finish(entry: Option<&Entry>, id: ClaimId, digest: Digest, result: AttemptResult, attempts: u32) -> Option<Entry> {
    let is_open = entry.and_then(|entry| entry.claim).is_some_and(|open| open.id == id);
    let has_other = entry.is_some_and(|entry| entry.claim.is_some()) && !is_open;
    let is_created = entry.is_some_and(|entry| entry.result == KnownResult::Created);
    if !is_open && (result != AttemptResult::Created || is_created) {
        return None;
    }
    let mut after = entry.cloned().unwrap_or_else(|| new_entry(id, digest, attempts));
    after.version = after.version.wrapping_add(1);
    if is_open {
        (after.claim, after.attempts) = (None, attempts);
    }
    after.orphans = if result == AttemptResult::Orphaned { after.orphans.saturating_add(1) } else { 0 };
    match result {
        _ if is_created => {}
        AttemptResult::Created => {
            (after.result, after.digest) = (KnownResult::Created, digest);
            after.doubted |= has_other;
        }
        AttemptResult::InDoubt | AttemptResult::Orphaned => {
            (after.result, after.doubted) = (KnownResult::InDoubt, true);
        }
        AttemptResult::NotCreated => {}
    }
    Some(after)
}

impl Entry {
    /// Stores which replay was claimed last, with the highest replay count so far.
    fn keep_replay(&mut self, new: &NewClaim) {
        if let Some(ReplayMark { failed_at, count }) = new.replay.clone() {
            let highest = self.replay.as_ref().map_or(0, |last| last.count);
            self.replay = Some(ReplayMark { failed_at, count: count.max(highest) });
        }
    }

    /// Whether the entry may be forgotten: it has no open claim and is older than `retention`.
    pub fn is_expired(&self, now: Timestamp, retention: Duration) -> bool {
        self.claim.is_none() && self.at.as_millisecond() <= horizon(now, retention)
    }
}

/// The moment, in milliseconds since 1970, up to which entries are older than `retention`.
pub(super) fn horizon(now: Timestamp, retention: Duration) -> i64 {
    let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    now.as_millisecond().saturating_sub(retention)
}

#[cfg(test)]
mod tests;
