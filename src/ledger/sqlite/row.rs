//! Reads and writes one entry as a row of the database, with a checksum.

use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, params};
use sha2::{Digest as _, Sha256};

use super::file::LedgerFile;
use crate::ledger::{Claim, ClaimId, Digest, Entry, Key, KnownResult, LedgerError, Owner, ReplayMark};

const COLUMNS: &str = "version, digest, result, doubted, claim_id, claim_owner, claim_at, attempts, orphans, \
                       replay_failed_at, replay_count, epoch, at, checksum";

/// The entry of a message. A row with values that this code does not write, or with a wrong checksum, is damage.
pub(super) fn get(connection: &Connection, file: &LedgerFile, key: &Key) -> Result<Option<Entry>, LedgerError> {
    let select = format!("SELECT {COLUMNS} FROM entry WHERE key = ?1");
    let row =
        connection.prepare_cached(&select).and_then(|mut select| select.query_row([key.as_bytes()], read).optional());
    match row {
        Ok(None) => Ok(None),
        Ok(Some((Some(entry), sum))) if sum == checksum(key, &entry) => Ok(Some(entry)),
        Err(error @ rusqlite::Error::SqliteFailure(..)) => Err(file.explain(&error)),
        Ok(Some(_)) | Err(_) => Err(file.damaged(format_args!("the entry {key} cannot be read"))),
    }
}

/// Reads an entry and its checksum. No entry if a column has a value that this code does not write.
fn read(row: &Row<'_>) -> rusqlite::Result<(Option<Entry>, i64)> {
    let digest: Vec<u8> = row.get(1)?;
    let result: String = row.get(2)?;
    let claim = match (row.get::<_, Option<i64>>(4)?, row.get::<_, Option<i64>>(5)?, row.get::<_, Option<i64>>(6)?) {
        (Some(id), Some(owner), Some(at)) => Some((id, owner, at)),
        _ => None,
    };
    let replay = match (row.get(9)?, row.get(10)?) {
        (Some(failed_at), Some(count)) => Some(ReplayMark { failed_at, count }),
        _ => None,
    };
    let (version, doubted, attempts): (i64, bool, u32) = (row.get(0)?, row.get(3)?, row.get(7)?);
    let (orphans, epoch, at, sum): (u32, u32, i64, i64) = (row.get(8)?, row.get(11)?, row.get(12)?, row.get(13)?);
    let entry = || {
        let claim = claim.map(|(id, owner, at)| {
            let at = Timestamp::from_millisecond(at).ok()?;
            Some(Claim { id: ClaimId(id.cast_unsigned()), owner: Owner(owner.cast_unsigned()), at })
        });
        Some(Entry {
            version: version.cast_unsigned(),
            digest: Digest(digest.try_into().ok()?),
            result: KnownResult::parse(&result)?,
            doubted,
            claim: match claim {
                Some(claim) => Some(claim?),
                None => None,
            },
            attempts,
            orphans,
            replay,
            epoch,
            at: Timestamp::from_millisecond(at).ok()?,
        })
    };
    Ok((entry(), sum))
}

/// Writes an entry. A claimed entry becomes the newest row, because the oldest rows are forgotten first.
pub(super) fn put(connection: &Connection, key: &Key, entry: &Entry, is_new: bool) -> rusqlite::Result<()> {
    let mut put: CachedStatement<'_> = if is_new || entry.claim.is_some() {
        connection.prepare_cached(&format!(
            "REPLACE INTO entry ({COLUMNS}, key) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
        ))?
    } else {
        connection.prepare_cached(
            "UPDATE entry SET version = ?1, digest = ?2, result = ?3, doubted = ?4, claim_id = ?5, claim_owner = ?6, \
             claim_at = ?7, attempts = ?8, orphans = ?9, replay_failed_at = ?10, replay_count = ?11, epoch = ?12, at = ?13, \
             checksum = ?14 WHERE key = ?15",
        )?
    };
    let (claim, replay) = (entry.claim.as_ref(), entry.replay.as_ref());
    put.execute(params![
        entry.version.cast_signed(),
        entry.digest.0,
        entry.result.as_str(),
        entry.doubted,
        claim.map(|claim| claim.id.0.cast_signed()),
        claim.map(|claim| claim.owner.0.cast_signed()),
        claim.map(|claim| claim.at.as_millisecond()),
        entry.attempts,
        entry.orphans,
        replay.map(|replay| &replay.failed_at),
        replay.map(|replay| replay.count),
        entry.epoch,
        entry.at.as_millisecond(),
        checksum(key, entry),
        key.as_bytes(),
    ])
    .map(drop)
}

/// SQLite has no checksums for its pages, so each row has its own.
fn checksum(key: &Key, entry: &Entry) -> i64 {
    let Entry { version, digest, result, doubted, claim, attempts, orphans, replay, epoch, at } = entry;
    let mut hash = Sha256::new();
    hash.update(key.as_bytes());
    hash.update(digest.0);
    hash.update(result.as_str());
    let claim = claim.map_or([0; 4], |claim| [1, claim.id.0, claim.owner.0, claim.at.as_millisecond().cast_unsigned()]);
    let [version, doubted] = [*version, u64::from(*doubted)];
    let numbers = [(*attempts).into(), (*orphans).into(), (*epoch).into(), at.as_millisecond().cast_unsigned()];
    for number in [version, doubted].into_iter().chain(claim).chain(numbers) {
        hash.update(number.to_be_bytes());
    }
    if let Some(replay) = replay {
        hash.update(replay.count.to_be_bytes());
        hash.update(&replay.failed_at);
    }
    hash.finalize().first_chunk().copied().map_or(0, i64::from_be_bytes)
}
