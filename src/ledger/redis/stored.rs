//! Writes an entry as JSON for Redis, and reads it again. `redis-cli GET` shows it to people.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ledger::{Claim, ClaimId, Digest, Entry, KnownResult, Owner, ReplayMark};

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    digest: String,
    result: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    doubted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<StoredClaim>,
    attempts: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    orphans: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replay: Option<(String, u32)>,
    epoch: u32,
    at: i64,
}

#[derive(Serialize, Deserialize)]
struct StoredClaim {
    id: u64,
    owner: u64,
    at: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

pub(super) fn encode(entry: &Entry) -> String {
    let stored = Stored {
        version: entry.version,
        digest: entry.digest.0.iter().map(|byte| format!("{byte:02x}")).collect(),
        result: entry.result.as_str().to_owned(),
        doubted: entry.doubted,
        claim: entry.claim.map(|claim| StoredClaim {
            id: claim.id.0,
            owner: claim.owner.0,
            at: claim.at.as_millisecond(),
        }),
        attempts: entry.attempts,
        orphans: entry.orphans,
        replay: entry.replay.as_ref().map(|mark| (mark.failed_at.clone(), mark.count)),
        epoch: entry.epoch,
        at: entry.at.as_millisecond(),
    };
    // Cannot fail: the fields are numbers and texts.
    serde_json::to_string(&stored).unwrap_or_default()
}

/// The time that a score in the index means: milliseconds since 1970.
#[expect(clippy::cast_possible_truncation, reason = "a score that the worker wrote is a whole number")]
pub(super) fn score_time(score: f64) -> Option<Timestamp> {
    Timestamp::from_millisecond(score as i64).ok()
}

/// Reads what [`encode`] wrote. An empty text is no entry. None if the text cannot be read.
#[expect(clippy::option_option, reason = "three cases: unreadable, no entry, an entry")]
pub(super) fn decode(text: &str) -> Option<Option<Entry>> {
    if text.is_empty() {
        return Some(None);
    }
    let stored: Stored = serde_json::from_str(text).ok()?;
    let claim = match stored.claim {
        Some(claim) => Some(Claim {
            id: ClaimId(claim.id),
            owner: Owner(claim.owner),
            at: Timestamp::from_millisecond(claim.at).ok()?,
        }),
        None => None,
    };
    Some(Some(Entry {
        version: stored.version,
        digest: Digest(bytes(&stored.digest)?),
        result: KnownResult::parse(&stored.result)?,
        doubted: stored.doubted,
        claim,
        attempts: stored.attempts,
        orphans: stored.orphans,
        replay: stored.replay.map(|(failed_at, count)| ReplayMark { failed_at, count }),
        epoch: stored.epoch,
        at: Timestamp::from_millisecond(stored.at).ok()?,
    }))
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    let pairs = hex.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> = match pairs {
        (pairs, []) => pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect(),
        _ => None,
    };
    bytes?.try_into().ok()
}
