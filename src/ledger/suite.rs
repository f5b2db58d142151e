//! The test suite that every store must pass. The integration tests include this file, too, and run it against Redis. So its
//! imports go through `super`, and its modules have explicit paths.

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/model.rs"]
mod model;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use jiff::Timestamp;

pub(super) use self::fixture::{FakeClock, Fixture, digest, finish, first, key};
pub(super) use self::model::{Model, SHORT_RETENTION, steps};
use super::entry::apply;
use super::{
    AttemptResult, Change, Changed, Claim, ClaimId, Clock, Entry, Key, KnownResult, Ledger, LedgerMetadata, Limits,
    NewClaim, Owner, ReplayMark,
};

const SECOND: i64 = 1000;
const HOUR: i64 = 3600 * SECOND;
pub(super) const LONG_RETENTION: Limits =
    Limits { retention: Duration::from_secs(7 * 24 * 3600), max_entries: 1_000_000 };
/// The shortest retention that can be configured.
const SHORTEST: Duration = Duration::from_secs(24 * 3600);

/// Runs all tests of the suite. `make` returns a new, empty ledger each time.
pub(super) async fn suite(make: impl AsyncFn(Limits, Clock) -> Arc<dyn Ledger>) {
    let fixture = async |limits| {
        let clock = FakeClock::new();
        let ledger = make(limits, clock.clock()).await;
        Fixture { ledger, clock }
    };
    entries_come_back_as_they_were_written(&fixture(LONG_RETENTION).await).await;
    one_of_forty_concurrent_claims_succeeds(&fixture(LONG_RETENTION).await).await;
    change_whose_answer_was_lost_counts_once(&fixture(LONG_RETENTION).await).await;
    withdrawal_leaves_no_attempt_and_no_doubt(&fixture(LONG_RETENTION).await).await;
    created_is_recorded_whatever_claim_is_open(&fixture(LONG_RETENTION).await).await;
    keys_are_never_confused(&fixture(LONG_RETENTION).await).await;
    concurrent_changes_of_many_messages_are_all_stored(&fixture(LONG_RETENTION).await).await;
    let minute = Limits { retention: Duration::from_secs(60), ..LONG_RETENTION };
    entries_expire_unless_a_claim_is_open(&fixture(minute).await).await;
    forgetting_is_spread_over_changes(&fixture(minute).await).await;
    let small = Limits { max_entries: 3, ..LONG_RETENTION };
    oldest_entries_are_forgotten_first(&fixture(small).await).await;
    open_claims_are_never_forgotten(&fixture(small).await).await;
    let shortest = Limits { retention: SHORTEST, ..LONG_RETENTION };
    for milliseconds in [30 * SECOND, HOUR, -30 * SECOND, -HOUR] {
        wrong_clock_of_another_worker_loses_nothing(&fixture(shortest).await, milliseconds).await;
    }
    about_is_stored_and_replaced_only_if_unchanged(&fixture(LONG_RETENTION).await, &fixture(LONG_RETENTION).await)
        .await;
}

/// An entry with its times cut to milliseconds, as stores keep them.
fn in_milliseconds(entry: Entry) -> Entry {
    let cut = |at: Timestamp| Timestamp::from_millisecond(at.as_millisecond()).unwrap();
    let claim = entry.claim.map(|claim| Claim { at: cut(claim.at), ..claim });
    Entry { claim, at: cut(entry.at), ..entry }
}

async fn entries_come_back_as_they_were_written(fixture: &Fixture) {
    let at = Timestamp::new(1_700_000_000, 123_456_789).unwrap();
    let replay = |failed_at: &str, count| Some(ReplayMark { failed_at: failed_at.to_owned(), count });
    let odd = NewClaim {
        claim: Claim { id: ClaimId(u64::MAX), owner: Owner(u64::MAX - 1), at },
        attempts: u32::MAX,
        in_doubt: true,
        replay: replay("\"'; DROP TABLE entry; \u{0} ñ 𝄞", u32::MAX),
        ..first(0, at)
    };
    let before_1970 = NewClaim { replay: replay("", 0), ..first(1 << 63, Timestamp::new(-5, 0).unwrap()) };
    for (id, new) in [("odd", odd), ("old", before_1970), ("plain", first(1, at))] {
        assert_eq!(fixture.get(id).await, None);
        let expected = apply(None, &Change::Claim { expected: None, new: new.clone() }).0.map(in_milliseconds);
        let Changed::Done(claimed) = fixture.change(id, Change::Claim { expected: None, new: new.clone() }).await
        else {
            panic!("{id}");
        };
        assert_eq!(claimed.map(in_milliseconds), expected);
        assert_eq!(fixture.get(id).await.map(in_milliseconds), expected);
        let result = Change::Finish {
            id: new.claim.id,
            digest: digest(1),
            result: AttemptResult::Orphaned,
            attempts: 2,
            at,
            epoch: u32::MAX,
        };
        let expected = apply(expected, &result).0.map(in_milliseconds);
        fixture.change(id, result).await;
        assert_eq!(fixture.get(id).await.map(in_milliseconds), expected);
    }
    assert_eq!(fixture.ledger.entries(), 3);
}

async fn one_of_forty_concurrent_claims_succeeds(fixture: &Fixture) {
    let mut expected = None;
    for round in 0..3 {
        let ids = round * 40..(round + 1) * 40;
        let claims = ids.map(|id| Change::Claim { expected, new: first(id, fixture.clock.now()) });
        let answers = join_all(claims.map(|claim| fixture.change("a", claim))).await;
        let entry = fixture.get("a").await.unwrap();
        let won = answers.iter().filter(|answer| matches!(answer, Changed::Done(_))).count();
        assert_eq!(won, 1);
        for answer in answers {
            let (Changed::Done(seen) | Changed::Conflict(seen)) = answer;
            assert_eq!(seen, Some(entry.clone()));
        }
        fixture.finish("a", entry.claim.unwrap().id.0, AttemptResult::NotCreated).await;
        expected = fixture.get("a").await.map(|entry| entry.version);
    }
    assert_eq!(fixture.get("a").await.unwrap().attempts, 1);
}

/// Starts the change, drops the future before its answer, and makes the same change again.
async fn change_twice(fixture: &Fixture, id: &str, change: &Change) -> Changed {
    let key = key(id);
    let lost = fixture.ledger.change(&key, change.clone()).now_or_never();
    drop(lost);
    fixture.change(id, change.clone()).await
}

async fn change_whose_answer_was_lost_counts_once(fixture: &Fixture) {
    let claim = Change::Claim { expected: None, new: first(1, fixture.clock.now()) };
    let Changed::Done(Some(claimed)) = change_twice(fixture, "a", &claim).await else { panic!("the own claim") };
    assert_eq!((claimed.claim.map(|claim| claim.id), claimed.attempts), (Some(ClaimId(1)), 1));

    let orphaned = finish(1, AttemptResult::Orphaned, 1, fixture.clock.now());
    change_twice(fixture, "a", &orphaned).await;
    let entry = fixture.get("a").await.unwrap();
    assert_eq!((entry.orphans, entry.result, entry.claim), (1, KnownResult::InDoubt, None));

    // The first claim arrives again, too late.
    assert_eq!(fixture.change("a", claim).await, Changed::Conflict(Some(entry)));
    fixture.claim("a", 2).await;
    change_twice(fixture, "a", &finish(2, AttemptResult::Created, 2, fixture.clock.now())).await;
    let entry = fixture.get("a").await.unwrap();
    assert_eq!((entry.result, entry.attempts, entry.orphans), (KnownResult::Created, 2, 0));
}

async fn withdrawal_leaves_no_attempt_and_no_doubt(fixture: &Fixture) {
    fixture.claim("a", 1).await;
    fixture.finish("a", 1, AttemptResult::NotCreated).await;
    for claim in [2, 3] {
        let attempts = fixture.claim("a", claim).await.attempts;
        assert_eq!(attempts, 2);
        let new = NewClaim { attempts, ..first(claim, fixture.clock.now()) };
        change_twice(fixture, "a", &Change::Withdraw(new)).await;
        let entry = fixture.get("a").await.unwrap();
        assert_eq!((entry.attempts, entry.orphans, entry.claim), (1, 0, None));
        assert_eq!((entry.result, entry.doubted), (KnownResult::NotCreated, false));
    }
    // A withdrawal that arrives before its claim.
    let late = first(4, fixture.clock.now());
    change_twice(fixture, "b", &Change::Withdraw(late.clone())).await;
    let entry = fixture.get("b").await.unwrap();
    assert_eq!((entry.attempts, entry.claim, entry.result), (0, None, KnownResult::NotCreated));
    let claim = Change::Claim { expected: None, new: late };
    assert_eq!(fixture.change("b", claim).await, Changed::Conflict(Some(entry)));
    fixture.create("b", 5).await;
    assert!(fixture.is_created("b").await);
}

async fn created_is_recorded_whatever_claim_is_open(fixture: &Fixture) {
    fixture.claim("a", 1).await;
    fixture.finish("a", 1, AttemptResult::Orphaned).await;
    fixture.claim("a", 2).await;
    // The answer to the orphan's request arrives after all.
    fixture.finish("a", 1, AttemptResult::Created).await;
    let entry = fixture.get("a").await.unwrap();
    assert_eq!((entry.result, entry.doubted), (KnownResult::Created, true));
    assert_eq!(entry.claim.map(|claim| claim.id), Some(ClaimId(2)));
    for result in [AttemptResult::NotCreated, AttemptResult::InDoubt, AttemptResult::Orphaned, AttemptResult::Created] {
        fixture.finish("a", 2, result).await;
        assert!(fixture.is_created("a").await, "{result:?}");
    }
    let entry = fixture.get("a").await.unwrap();
    assert_eq!(entry.claim, None);
    let claim = Change::Claim { expected: Some(entry.version), new: first(3, fixture.clock.now()) };
    assert_eq!(fixture.change("a", claim).await, Changed::Conflict(Some(entry)));
    // Also without an entry, for example after it was forgotten.
    fixture.finish("b", 9, AttemptResult::Created).await;
    assert!(fixture.is_created("b").await);
    fixture.finish("c", 9, AttemptResult::InDoubt).await;
    assert_eq!(fixture.get("c").await, None);
}

async fn keys_are_never_confused(fixture: &Fixture) {
    let keys = [
        Key::new("ab", "c", "d"),
        Key::new("a", "bc", "d"),
        Key::new("a", "b", "cd"),
        Key::new("", "abc", "d"),
        Key::new("abc", "d", ""),
        Key::new("q", "o", [0, 255, b'\r', b'\n', b' ', 0x80]),
        Key::new("q", "o", [0, 255, b'\r', b'\n', b' ']),
        Key::new("q", "o", []),
    ];
    for (id, key) in (1..).zip(&keys) {
        let claim = Change::Claim { expected: None, new: first(id, fixture.clock.now()) };
        assert!(matches!(fixture.ledger.change(key, claim).await.unwrap(), Changed::Done(_)), "{key:?}");
    }
    for (id, key) in (1..).zip(&keys) {
        let entry = fixture.ledger.get(key).await.unwrap().unwrap();
        assert_eq!(entry.claim.map(|claim| claim.id), Some(ClaimId(id)), "{key:?}");
        let found = fixture.ledger.find(key.prefix()).await.unwrap();
        assert_eq!(found, Some(entry), "{key:?} by its reference");
    }
    assert_eq!(fixture.ledger.find(Key::new("a", "b", "c").prefix()).await.unwrap(), None);
}

async fn concurrent_changes_of_many_messages_are_all_stored(fixture: &Fixture) {
    join_all((0..200_u64).map(|id| fixture.create(id.to_string(), id))).await;
    assert_eq!(fixture.ledger.entries(), 200);
    for id in 0..200 {
        assert!(fixture.is_created(id.to_string()).await, "{id}");
    }
}

async fn entries_expire_unless_a_claim_is_open(fixture: &Fixture) {
    fixture.create("created", 1).await;
    fixture.claim("closed", 2).await;
    fixture.finish("closed", 2, AttemptResult::InDoubt).await;
    fixture.claim("open", 3).await;
    let (created, closed) = (fixture.get("created").await, fixture.get("closed").await);
    fixture.clock.forward(60 * SECOND - 1);
    assert_eq!((fixture.get("created").await, fixture.get("closed").await), (created.clone(), closed.clone()));
    fixture.clock.forward(1);
    assert_eq!((fixture.get("created").await, fixture.get("closed").await), (None, None));
    // An entry that was removed and created again never has a version that another worker has seen.
    for (id, before) in [("created", created), ("closed", closed)] {
        let claim = Change::Claim { expected: before.map(|entry| entry.version), new: first(4, fixture.clock.now()) };
        assert_eq!(fixture.change(id, claim).await, Changed::Conflict(None));
        assert_eq!(fixture.claim(id, 5).await.attempts, 1);
    }
    fixture.clock.forward(1_000_000 * SECOND);
    for id in ["created", "closed", "open"] {
        assert!(fixture.get(id).await.is_some_and(|entry| entry.claim.is_some()), "{id}");
    }
}

async fn forgetting_is_spread_over_changes(fixture: &Fixture) {
    join_all((0..100_u64).map(|id| fixture.create(id.to_string(), id))).await;
    fixture.clock.forward(60 * SECOND);
    let mut before = fixture.ledger.entries();
    assert_eq!(before, 100);
    for claim in 1000..1100 {
        fixture.create("later", claim).await;
        fixture.clock.forward(60 * SECOND);
        let left = fixture.ledger.entries();
        assert!(before - left.min(before) <= 32, "one message removed {before} - {left} entries");
        before = left;
    }
    assert_eq!(before, 1);
}

async fn oldest_entries_are_forgotten_first(fixture: &Fixture) {
    for (id, claim) in [("a", 1), ("b", 2), ("c", 3)] {
        fixture.create(id, claim).await;
        fixture.clock.forward(SECOND);
    }
    fixture.claim("retried", 4).await;
    assert_eq!(fixture.get("a").await, None);
    fixture.finish("retried", 4, AttemptResult::NotCreated).await;
    for (id, claim) in [("d", 5), ("e", 6)] {
        fixture.clock.forward(SECOND);
        fixture.create(id, claim).await;
    }
    fixture.clock.forward(SECOND);
    // Its age counts from its last claim, not from its first.
    fixture.claim("retried", 7).await;
    fixture.finish("retried", 7, AttemptResult::Created).await;
    fixture.clock.forward(SECOND);
    fixture.create("f", 8).await;
    for (id, is_kept) in [("b", false), ("c", false), ("d", false), ("e", true), ("retried", true), ("f", true)] {
        assert_eq!(fixture.get(id).await.is_some(), is_kept, "{id}");
    }
    assert_eq!(fixture.ledger.entries(), 3);
}

async fn open_claims_are_never_forgotten(fixture: &Fixture) {
    for claim in 0..50_u64 {
        fixture.claim(claim.to_string(), claim).await;
        fixture.create(format!("other {claim}"), 2000 + claim).await;
    }
    for claim in 0..50_u64 {
        let entry = fixture.get(claim.to_string()).await;
        assert_eq!(entry.and_then(|entry| entry.claim).map(|claim| claim.id), Some(ClaimId(claim)));
    }
    for claim in 0..50_u64 {
        fixture.finish(claim.to_string(), claim, AttemptResult::Created).await;
    }
    fixture.create("last", 3000).await;
    assert!(fixture.is_created("last").await);
    assert!(fixture.ledger.entries() <= 3, "{}", fixture.ledger.entries());
}

/// Another worker's clock is ahead by `milliseconds`. No claim and no entry is lost for that.
async fn wrong_clock_of_another_worker_loses_nothing(fixture: &Fixture, milliseconds: i64) {
    let theirs = FakeClock::new();
    theirs.forward(milliseconds);
    let claim = Change::Claim { expected: None, new: first(1, theirs.now()) };
    assert!(matches!(fixture.change("a", claim).await, Changed::Done(_)));
    let mine = Change::Claim { expected: None, new: first(2, fixture.clock.now()) };
    assert!(matches!(fixture.change("a", mine).await, Changed::Conflict(Some(_))));
    let result = finish(1, AttemptResult::Created, 1, theirs.now());
    fixture.change("a", result).await;
    assert!(fixture.is_created("a").await);
    fixture.create("b", 3).await;
    // This worker's clock is set while the ledger is open.
    fixture.clock.forward(milliseconds);
    for id in 0..100_u64 {
        fixture.create(id.to_string(), 100 + id).await;
    }
    assert!(fixture.is_created("a").await && fixture.is_created("b").await);
    let entry = fixture.get("a").await.unwrap();
    assert_eq!((entry.attempts, entry.orphans, entry.doubted), (1, 0, false));
}

async fn about_is_stored_and_replaced_only_if_unchanged(fixture: &Fixture, other: &Fixture) {
    let first = fixture.ledger.about();
    assert_eq!((first.proves_unsent, first.other_owner, first.epoch), (false, false, 0));
    assert_ne!(first.id, other.ledger.about().id);
    let identities = "é\"'".to_owned();
    let proven = LedgerMetadata { proves_unsent: true, other_owner: true, epoch: 7, identities, ..first.clone() };
    assert!(fixture.ledger.set_about(first.clone(), proven.clone()).await.unwrap());
    let lost = LedgerMetadata { epoch: 8, ..first.clone() };
    assert!(!fixture.ledger.set_about(first, lost).await.unwrap(), "another worker has replaced what was seen");
    assert_eq!(fixture.ledger.about(), proven);
    assert_eq!(fixture.ledger.reload_about().await.unwrap(), proven);
    assert_eq!((fixture.ledger.about().proves_unsent, fixture.ledger.epoch()), (true, 7));
    fixture.ledger.check().await.unwrap();
    assert_eq!(fixture.ledger.about(), proven);
}

/// Tests that a ledger survives its process. `open` opens the same ledger each time; no other handle of it is open then.
pub(super) async fn durable_suite(open: impl AsyncFn(Clock) -> Arc<dyn Ledger>) {
    let clock = FakeClock::new();
    let reopened = async || Fixture { ledger: open(clock.clock()).await, clock: clock.clone() };
    let fixture = reopened().await;
    let about = LedgerMetadata {
        proves_unsent: true,
        other_owner: true,
        epoch: 0,
        identities: "rules".to_owned(),
        ..fixture.ledger.about()
    };
    fixture.ledger.set_about(fixture.ledger.about(), about.clone()).await.unwrap();
    fixture.create("created", 1).await;
    let (claimed, changed) = (fixture.claim("claimed", 2).await, clock.now());
    drop(fixture);

    for milliseconds in [0, HOUR, -2 * HOUR] {
        clock.forward(milliseconds);
        let fixture = reopened().await;
        assert!(fixture.ledger.about().proves_the_same(&about));
        let last_change = fixture.ledger.about().last_change.unwrap();
        assert!(last_change.duration_since(changed).unsigned_abs() < Duration::from_secs(60), "{last_change}");
        assert_eq!(fixture.ledger.entries(), 2);
        assert!(fixture.is_created("created").await);
        assert_eq!(fixture.get("claimed").await, Some(claimed.clone()));
        let other = Change::Claim { expected: Some(claimed.version), new: first(3, clock.now()) };
        assert_eq!(fixture.change("claimed", other).await, Changed::Conflict(Some(claimed.clone())));
    }
}
