//! Tables of cases for each operation on an entry, and properties that hold for any order of operations.

use proptest::prelude::*;

use super::*;

mod replays;

const OWNER: Owner = Owner(7);

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + milliseconds).unwrap()
}

fn digest(body: u8) -> Digest {
    Digest::of(&[body])
}

fn new(id: u64, attempts: u32) -> NewClaim {
    NewClaim {
        claim: Claim { id: ClaimId(id), owner: OWNER, at: at(0) },
        digest: digest(0),
        attempts,
        in_doubt: false,
        reset: false,
        replay: None,
        epoch: 1,
    }
}

fn mark(count: u32) -> Option<ReplayMark> {
    Some(ReplayMark { failed_at: "2026-11-29T10:00:00.000Z".to_owned(), count })
}

fn claim(expected: Option<u64>, new: NewClaim) -> Change {
    Change::Claim { expected, new }
}

fn finish(id: u64, result: AttemptResult, attempts: u32) -> Change {
    Change::Finish { id: ClaimId(id), digest: digest(0), result, attempts, at: at(9), epoch: 2 }
}

/// An entry after three attempts.
fn closed() -> Entry {
    Entry {
        version: 100,
        digest: digest(0),
        result: KnownResult::NotCreated,
        doubted: false,
        claim: None,
        attempts: 3,
        orphans: 0,
        replay: None,
        epoch: 1,
        at: at(-50),
    }
}

/// The same entry with claim 5 open for the fourth attempt.
fn open() -> Entry {
    Entry { claim: Some(Claim { id: ClaimId(5), owner: OWNER, at: at(-50) }), attempts: 4, ..closed() }
}

fn in_doubt(entry: Entry) -> Entry {
    Entry { result: KnownResult::InDoubt, doubted: true, ..entry }
}

fn created(entry: Entry) -> Entry {
    Entry { result: KnownResult::Created, ..entry }
}

/// The entry after `change`.
fn after(entry: &Entry, change: &Change) -> Entry {
    let (after, changed) = apply(Some(entry.clone()), change);
    assert_eq!(changed, Changed::Done(after.clone()), "{change:?}");
    after.unwrap()
}

fn assert_nothing(entry: Option<Entry>, change: &Change) {
    assert_eq!(apply(entry.clone(), change), (None, Changed::Done(entry)), "{change:?}");
}

#[test]
fn claim_without_an_entry_makes_one() {
    let claimed = |new: NewClaim, result, doubted| Entry {
        version: new.claim.id.0 + 1,
        digest: new.digest,
        result,
        doubted,
        claim: Some(new.claim),
        attempts: new.attempts,
        orphans: 0,
        replay: new.replay,
        epoch: new.epoch,
        at: new.claim.at,
    };
    let doubtful = NewClaim { in_doubt: true, ..new(5, 1) };
    let replayed = NewClaim { replay: mark(2), reset: true, epoch: 9, digest: digest(3), ..new(5, 4) };
    for (new, result, doubted) in [
        (new(5, 1), KnownResult::NotCreated, false),
        (doubtful, KnownResult::InDoubt, true),
        (replayed, KnownResult::NotCreated, false),
    ] {
        let (after, changed) = apply(None, &claim(None, new.clone()));
        assert_eq!(after, Some(claimed(new, result, doubted)));
        assert_eq!(changed, Changed::Done(after));
    }
}

#[test]
fn claim_of_an_entry_keeps_its_result_unless_it_resets_it() {
    let expected = |new: &NewClaim, entry: Entry| Entry {
        version: 101,
        claim: Some(new.claim),
        digest: new.digest,
        attempts: new.attempts,
        epoch: new.epoch,
        at: new.claim.at,
        ..entry
    };
    let orphaned = Entry { orphans: 4, ..in_doubt(closed()) };
    let plain = NewClaim { digest: digest(1), epoch: 9, ..new(6, 4) };
    let reset = NewClaim { reset: true, replay: mark(1), attempts: 1, ..plain.clone() };
    let doubtful = NewClaim { in_doubt: true, ..plain.clone() };
    let both = NewClaim { in_doubt: true, ..reset.clone() };
    let started_over = Entry { result: KnownResult::NotCreated, orphans: 0, replay: mark(1), ..orphaned.clone() };
    for (before, new, after) in [
        (closed(), plain.clone(), closed()),
        (orphaned.clone(), plain.clone(), orphaned.clone()),
        // The attempts before the reset may have created a task.
        (orphaned.clone(), reset, started_over.clone()),
        (closed(), doubtful, in_doubt(closed())),
        (orphaned, both, in_doubt(started_over)),
        (Entry { replay: mark(1), ..closed() }, plain, Entry { replay: mark(1), ..closed() }),
    ] {
        let after = expected(&new, after);
        let change = claim(Some(100), new);
        assert_eq!(apply(Some(before), &change), (Some(after.clone()), Changed::Done(Some(after))), "{change:?}");
    }
}

#[test]
fn claim_conflicts_when_the_entry_has_changed() {
    let reset = NewClaim { reset: true, replay: mark(1), ..new(6, 1) };
    for (entry, expected, new) in [
        (None, Some(100), new(6, 1)),
        (Some(closed()), None, new(6, 1)),
        (Some(closed()), Some(99), new(6, 1)),
        (Some(closed()), Some(101), new(6, 1)),
        (Some(open()), Some(100), new(6, 1)),
        (Some(open()), Some(100), reset.clone()),
        (Some(created(closed())), Some(100), new(6, 1)),
        (Some(created(closed())), Some(100), reset),
        // The claim is repeated after another worker finished it as an orphan.
        (Some(Entry { version: 101, ..in_doubt(closed()) }), Some(100), new(5, 4)),
    ] {
        let change = claim(expected, new);
        assert_eq!(apply(entry.clone(), &change), (None, Changed::Conflict(entry)), "{change:?}");
    }
}

#[test]
fn repeated_claim_succeeds_and_changes_nothing() {
    let change = claim(Some(100), new(6, 4));
    let claimed = after(&closed(), &change);
    assert_nothing(Some(claimed.clone()), &change);
    // Another worker recorded the created task of an earlier claim: the claim stays open, and the caller reads the result.
    let created = after(&claimed, &finish(4, AttemptResult::Created, 3));
    assert_nothing(Some(created), &change);
}

#[test]
fn claim_that_arrives_after_its_withdrawal_conflicts() {
    for (entry, expected) in [(None, None), (Some(closed()), Some(100)), (Some(in_doubt(closed())), Some(100))] {
        let before = entry.clone();
        let (withdrawn, _) = apply(entry, &Change::Withdraw(new(6, 4)));
        let withdrawn = withdrawn.unwrap();
        assert_eq!((withdrawn.claim, withdrawn.attempts), (None, 3));
        assert_eq!(withdrawn.result, before.map_or(KnownResult::NotCreated, |entry| entry.result));
        let (after, changed) = apply(Some(withdrawn.clone()), &claim(expected, new(6, 4)));
        assert_eq!((after, changed), (None, Changed::Conflict(Some(withdrawn))));
    }
}

#[test]
fn withdrawal_removes_its_own_claim_once() {
    let other = Change::Withdraw(new(6, 4));
    assert_eq!(after(&open(), &other), Entry { version: 101, ..open() });
    let own = Change::Withdraw(new(5, 4));
    let once = after(&open(), &own);
    assert_eq!(once, Entry { version: 101, claim: None, attempts: 3, ..open() });
    assert_eq!(after(&once, &own), Entry { version: 102, ..once });
    // The created task of an earlier claim stays recorded.
    let created = created(open());
    assert_eq!(after(&created, &own), Entry { version: 101, claim: None, attempts: 3, ..created });
}

#[test]
fn finish_of_the_open_claim_records_its_result() {
    let orphaned = Entry { orphans: 2, ..in_doubt(open()) };
    let (not_created, doubt) = (KnownResult::NotCreated, KnownResult::InDoubt);
    for (before, how, result, doubted, orphans) in [
        (open(), AttemptResult::Created, KnownResult::Created, false, 0),
        (open(), AttemptResult::NotCreated, not_created, false, 0),
        (open(), AttemptResult::InDoubt, doubt, true, 0),
        (open(), AttemptResult::Orphaned, doubt, true, 1),
        // The result stays in doubt until `created` is recorded.
        (orphaned.clone(), AttemptResult::NotCreated, doubt, true, 0),
        (orphaned.clone(), AttemptResult::InDoubt, doubt, true, 0),
        (orphaned.clone(), AttemptResult::Orphaned, doubt, true, 3),
        (orphaned, AttemptResult::Created, KnownResult::Created, true, 0),
        (Entry { orphans: u32::MAX, ..open() }, AttemptResult::Orphaned, doubt, true, u32::MAX),
        // Another worker's claim, written before this task was recorded as created.
        (created(open()), AttemptResult::NotCreated, KnownResult::Created, false, 0),
        (created(open()), AttemptResult::InDoubt, KnownResult::Created, false, 0),
    ] {
        let expected = Entry {
            version: 101,
            result,
            doubted,
            claim: None,
            attempts: 6,
            orphans,
            epoch: 2,
            at: at(9),
            ..before.clone()
        };
        assert_eq!(after(&before, &finish(5, how, 6)), expected, "{how:?}");
    }
}

#[test]
fn finish_of_a_claim_that_is_not_open_changes_nothing_unless_created() {
    for how in [AttemptResult::NotCreated, AttemptResult::InDoubt, AttemptResult::Orphaned] {
        for entry in [None, Some(closed()), Some(open()), Some(in_doubt(open())), Some(created(closed()))] {
            assert_nothing(entry, &finish(4, how, 6));
        }
    }
}

#[test]
fn created_is_recorded_whatever_claim_is_open_and_never_taken_back() {
    let change = Change::Finish {
        id: ClaimId(4),
        digest: digest(1),
        result: AttemptResult::Created,
        attempts: 2,
        at: at(9),
        epoch: 2,
    };
    let recorded = |entry| Entry { version: 101, digest: digest(1), epoch: 2, at: at(9), ..created(entry) };
    assert_eq!(after(&closed(), &change), recorded(closed()));
    assert_eq!(after(&in_doubt(closed()), &change), recorded(in_doubt(closed())));
    // The request of the other claim may create a second task.
    assert_eq!(after(&open(), &change), Entry { doubted: true, ..recorded(open()) });
    let (from_nothing, _) = apply(None, &change);
    let from_nothing = from_nothing.unwrap();
    assert_eq!((from_nothing.result, from_nothing.attempts), (KnownResult::Created, 2));
    assert_eq!((from_nothing.at, from_nothing.epoch, from_nothing.claim), (at(9), 2, None));

    assert_nothing(Some(created(closed())), &change);
    assert_nothing(Some(created(open())), &change);
    let both = after(
        &created(open()),
        &Change::Finish {
            id: ClaimId(5),
            digest: digest(1),
            result: AttemptResult::Created,
            attempts: 4,
            at: at(9),
            epoch: 2,
        },
    );
    assert_eq!((both.result, both.digest), (KnownResult::Created, digest(0)), "the first created body stays");
}

#[test]
fn entry_expires_at_its_age_unless_a_claim_is_open() {
    let second = Duration::from_secs(1);
    let changed = Entry { at: at(0), ..closed() };
    for (now, is_expired) in [(at(-5000), false), (at(999), false), (at(1000), true), (at(1_000_000), true)] {
        assert_eq!(changed.is_expired(now, second), is_expired, "{now}");
        assert!(!Entry { at: at(0), ..open() }.is_expired(now, second), "{now}");
    }
    assert!(!changed.is_expired(at(1_000_000), Duration::MAX));
    assert!(!changed.is_expired(Timestamp::MIN, Duration::MAX));
}

/// One operation of a worker. A claim may be based on an old version.
#[derive(Clone, Debug)]
enum Step {
    Claim {
        seen: usize,
        new: NewClaim,
    },
    Finish {
        id: u64,
        result: AttemptResult,
    },
    Withdraw(NewClaim),
    /// Repeats the operation of an earlier step.
    Again(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let results =
        [AttemptResult::Created, AttemptResult::NotCreated, AttemptResult::InDoubt, AttemptResult::Orphaned].to_vec();
    let any_new = (1..6_u64, 1..4_u32, prop::bool::weighted(0.2), prop::bool::weighted(0.2)).prop_map(
        |(id, attempts, in_doubt, reset)| NewClaim {
            in_doubt,
            reset,
            replay: reset.then(|| mark(attempts)).flatten(),
            ..new(id * 1000, attempts)
        },
    );
    let step = prop_oneof![
        4 => (0..3_usize, any_new.clone()).prop_map(|(seen, new)| Step::Claim { seen, new }),
        4 => (1..6_u64, prop::sample::select(results)).prop_map(|(id, result)| Step::Finish { id: id * 1000, result }),
        2 => any_new.prop_map(Step::Withdraw),
        3 => (0..80_usize).prop_map(Step::Again),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn invariants_hold_whatever_the_order_of_operations(steps in steps()) {
        let mut entry: Option<Entry> = None;
        // All versions so far, and none for no entry. A worker may have read any of them.
        let mut seen = vec![None];
        let (mut given, mut claimed): (Vec<Change>, Vec<ClaimId>) = (Vec::new(), Vec::new());
        for step in steps {
            let change = match step {
                Step::Claim { seen: back, new } if !claimed.contains(&new.claim.id) => {
                    claim(seen[seen.len().saturating_sub(back + 1)], new)
                }
                Step::Claim { .. } => continue,
                Step::Finish { id, result } => finish(id, result, 1),
                Step::Withdraw(new) => Change::Withdraw(new),
                Step::Again(back) => match given.iter().rev().nth(back) {
                    Some(change) => change.clone(),
                    None => continue,
                },
            };
            given.push(change.clone());
            let (after, changed) = apply(entry.clone(), &change);
            if let (Change::Claim { new, .. }, Some(after)) = (&change, &after) {
                prop_assert!(!claimed.contains(&new.claim.id), "claim {:?} was accepted twice", new.claim.id);
                prop_assert!(entry.as_ref().is_none_or(|before| before.claim.is_none()), "two open claims");
                prop_assert_eq!(after.claim, Some(new.claim));
                claimed.push(new.claim.id);
            }
            if let Some(after) = after {
                prop_assert!(!seen.contains(&Some(after.version)), "version {} was used before", after.version);
                if let Some(before) = &entry {
                    check_kept(before, &after, &change)?;
                }
                seen.push(Some(after.version));
                entry = Some(after);
            }
            match changed {
                Changed::Done(answer) | Changed::Conflict(answer) => prop_assert_eq!(&answer, &entry),
            }
        }
    }
}

/// Checks what no operation may undo: a doubt, a created task, another worker's claim.
fn check_kept(before: &Entry, after: &Entry, change: &Change) -> Result<(), TestCaseError> {
    prop_assert!(after.doubted || !before.doubted, "a doubt was forgotten by {change:?}");
    if before.result == KnownResult::Created {
        prop_assert_eq!((after.result, after.digest), (KnownResult::Created, before.digest));
    }
    let is_reset = matches!(change, Change::Claim { new, .. } if new.reset);
    if before.result == KnownResult::InDoubt && !is_reset {
        prop_assert_ne!(after.result, KnownResult::NotCreated);
    }
    let own = match change {
        Change::Claim { .. } => return Ok(()),
        Change::Finish { id, .. } => *id,
        Change::Withdraw(new) => new.claim.id,
    };
    if before.claim.is_some_and(|open| open.id != own) {
        prop_assert_eq!(after.claim, before.claim, "{:?} removed another claim", change);
    }
    Ok(())
}
