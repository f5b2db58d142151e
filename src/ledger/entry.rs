//! What the ledger knows of one message, and what each operation does to that: the one place that decides it, for every
//! store. Pure.
//!
//! | operation | on no entry | on an entry |
//! | --- | --- | --- |
//! | [`Change::Claim`] | a claimed entry, if none was expected | the claim is added if the version is the expected one, no claim is open and no task is created; else nothing, and the entry is the answer |
//! | [`Change::Finish`] `Created` | an entry that says so | `Created`, whatever claim is open |
//! | [`Change::Finish`] otherwise | nothing | the result, if that claim is open; `InDoubt` stays until `Created` |
//! | [`Change::Withdraw`] | an entry without a claim | that claim is removed if it is open; the version changes in any case |
//!
//! A claim whose answer was lost can arrive after its withdrawal. It finds another version than it expects and does nothing.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

/// SHA-256 of a message's body as it arrived.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `body`.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Digest({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// What is known about whether the task exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownResult {
    /// No request created it.
    NotCreated,
    /// A request may have created it.
    InDoubt,
    /// The CRM said that it created it. This is never taken back.
    Created,
}

impl KnownResult {
    /// Every result, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::NotCreated, Self::InDoubt, Self::Created];

    /// The name in stores, pages and output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotCreated => "not_created",
            Self::InDoubt => "in_doubt",
            Self::Created => "created",
        }
    }

    /// The result of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|result| result.as_str() == name)
    }
}

/// Identifies one claim. Random, so that no two claims of any worker have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimId(pub u64);

/// Identifies one worker process. Random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// Who is sending the message now; written before the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which claim it is.
    pub id: ClaimId,
    /// Whose it is.
    pub owner: Owner,
    /// When it was made, by the owner's clock. For people only: nothing is decided by it.
    pub at: Timestamp,
}

/// Tells one replay of a message from another: when it was dead-lettered, and how often it had been replayed before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayMark {
    /// `x-wtw-failed-at` as it stood; empty where RabbitMQ dead-lettered the message.
    pub failed_at: String,
    /// `x-wtw-replay-count`.
    pub count: u32,
}

/// What the ledger knows of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Changes with every change of the entry.
    pub version: u64,
    /// Of the body that was sent or claimed last; of the one that created the task, once it exists.
    pub digest: Digest,
    /// Whether the task exists.
    pub result: KnownResult,
    /// Whether there may be one task more than `result` says: an attempt before was in doubt.
    pub doubted: bool,
    /// The open claim.
    pub claim: Option<Claim>,
    /// Attempts so far, the one of the open claim included.
    pub attempts: u32,
    /// Orphans in a row: claims whose owner was gone before it recorded a result.
    pub orphans: u32,
    /// The replay that the entry was last reset for.
    pub replay: Option<ReplayMark>,
    /// The ledger's [`epoch`](super::Ledger::epoch) at the last change.
    pub epoch: u32,
    /// When it changed last.
    pub at: Timestamp,
}

/// A claim to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClaim {
    /// The claim.
    pub claim: Claim,
    /// Of the body to send.
    pub digest: Digest,
    /// Attempts so far, this one included.
    pub attempts: u32,
    /// The request may be the second one, for a reason that no entry of this ledger shows.
    pub in_doubt: bool,
    /// Start over: what is known of earlier attempts does not count, because an operator replayed the message.
    pub reset: bool,
    /// The replay that the message is, if it is one.
    pub replay: Option<ReplayMark>,
    /// The ledger's epoch.
    pub epoch: u32,
}

/// How one attempt ended, as far as the ledger is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// The CRM said that it created the task.
    Created,
    /// It did not create the task.
    NotCreated,
    /// It may have created the task.
    InDoubt,
    /// Its owner was gone before it recorded a result.
    Orphaned,
}

/// An operation on an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Claim the message, if its entry has the expected version.
    Claim {
        /// The version that the caller has seen; none if there was no entry.
        expected: Option<u64>,
        /// The claim.
        new: NewClaim,
    },
    /// Record how the attempt of a claim ended.
    Finish {
        /// The claim.
        id: ClaimId,
        /// Of the body that was sent.
        digest: Digest,
        /// How it ended.
        result: AttemptResult,
        /// Attempts so far.
        attempts: u32,
        /// Now.
        at: Timestamp,
        /// The ledger's epoch.
        epoch: u32,
    },
    /// Take a claim back whose request was not sent.
    Withdraw(NewClaim),
}

/// What a [`Change`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It was carried out, or had been before. With the entry after it, if there is one.
    Done(Option<Entry>),
    /// The claim was not made, since this is what the ledger has.
    Conflict(Option<Entry>),
}

/// What `change` makes of `entry`: the new entry, if it is another one, and the answer.
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
        // Given again, since its answer was lost.
        return (None, Changed::Done(entry));
    }
    let is_created = entry.as_ref().is_some_and(|entry| entry.result == KnownResult::Created);
    if entry.as_ref().map(|entry| entry.version) != expected || open.is_some() || is_created {
        return (None, Changed::Conflict(entry));
    }
    let mut after = entry.unwrap_or_else(|| unclaimed(new));
    if new.reset {
        (after.result, after.orphans) = (KnownResult::NotCreated, 0);
    }
    if new.replay.is_some() {
        after.replay.clone_from(&new.replay);
    }
    if new.in_doubt {
        (after.result, after.doubted) = (KnownResult::InDoubt, true);
    }
    after.version = after.version.wrapping_add(1);
    (after.claim, after.digest, after.attempts) = (Some(new.claim), new.digest, new.attempts);
    (after.epoch, after.at) = (new.epoch, new.claim.at);
    (Some(after.clone()), Changed::Done(Some(after)))
}

/// The entry of a message that was not sent before.
fn unclaimed(new: &NewClaim) -> Entry {
    Entry {
        // Random, so that an entry that was removed and created again never has a version that another worker has seen.
        version: new.claim.id.0,
        digest: new.digest,
        result: if new.in_doubt { KnownResult::InDoubt } else { KnownResult::NotCreated },
        doubted: new.in_doubt,
        claim: None,
        attempts: new.attempts.saturating_sub(1),
        orphans: 0,
        replay: None,
        epoch: new.epoch,
        at: new.claim.at,
    }
}

fn withdraw(entry: Option<Entry>, new: &NewClaim) -> Entry {
    let mut after = entry.unwrap_or_else(|| unclaimed(new));
    after.version = after.version.wrapping_add(1);
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
    let mut after = entry.cloned().unwrap_or(Entry {
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
    });
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
    /// Whether the entry may be forgotten: it has no open claim and is older than `retention`.
    #[must_use]
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
