//! Tests of the cases of [`decide`].

use jiff::Timestamp;

use super::*;
use crate::ledger::{ClaimId, Owner};

const EPOCH: u32 = 3;

fn facts() -> DeliveryFacts {
    DeliveryFacts {
        digest: Digest::of(b"body"),
        attempts: 0,
        delivered_before: false,
        is_copy: false,
        replay: None,
        possibly_created: false,
        proves_unsent: true,
        epoch: Some(EPOCH),
        others_resend: true,
    }
}

fn redelivered() -> DeliveryFacts {
    DeliveryFacts { delivered_before: true, ..facts() }
}

fn unproven() -> DeliveryFacts {
    DeliveryFacts { proves_unsent: false, ..redelivered() }
}

fn replay(count: u32) -> DeliveryFacts {
    DeliveryFacts { replay: Some(mark(count)), ..facts() }
}

fn mark(count: u32) -> ReplayMark {
    ReplayMark { failed_at: "2026-03-02T10:00:00.000Z".to_owned(), count }
}

fn entry(result: KnownResult) -> Entry {
    Entry {
        version: 7,
        digest: Digest::of(b"body"),
        result,
        doubted: result == KnownResult::InDoubt,
        claim: None,
        attempts: 2,
        orphans: 0,
        replay: None,
        epoch: EPOCH,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn claimed() -> Entry {
    Entry { claim: Some(claim()), ..entry(KnownResult::NotCreated) }
}

fn claim() -> Claim {
    Claim { id: ClaimId(1), owner: Owner(2), at: Timestamp::UNIX_EPOCH }
}

/// The plan for a message that is sent: attempts so far, in doubt, doubted, reset. None if it is not sent.
fn sent(entry: Option<&Entry>, facts: &DeliveryFacts) -> Option<(u32, bool, bool, bool)> {
    match decide(entry, false, facts) {
        Decision::Proceed(plan) => {
            assert_eq!(plan.expected, entry.map(|entry| entry.version), "{facts:?}");
            Some((plan.attempts, plan.in_doubt, plan.doubted, plan.reset))
        }
        Decision::Duplicate { .. }
        | Decision::Conflict
        | Decision::Poison(_)
        | Decision::InProgress
        | Decision::Orphaned(_) => None,
    }
}

#[test]
fn message_without_an_entry_is_in_doubt_unless_it_is_known_to_be_unsent() {
    let copy = DeliveryFacts { attempts: 2, is_copy: true, ..facts() };
    let doubtful_copy = DeliveryFacts { possibly_created: true, ..copy.clone() };
    for (facts, expected) in [
        (facts(), (0, false, false, false)),
        (redelivered(), (0, false, false, false)),
        (unproven(), (0, true, true, false)),
        (DeliveryFacts { proves_unsent: false, ..facts() }, (0, false, false, false)),
        (copy, (2, false, false, false)),
        (doubtful_copy, (2, true, true, false)),
        (replay(1), (0, false, false, true)),
        (DeliveryFacts { possibly_created: true, ..replay(1) }, (0, false, true, true)),
        (DeliveryFacts { delivered_before: true, ..replay(1) }, (0, false, false, true)),
        (DeliveryFacts { delivered_before: true, proves_unsent: false, ..replay(1) }, (0, true, true, false)),
    ] {
        assert_eq!(sent(None, &facts), Some(expected), "{facts:?}");
    }
}

#[test]
fn entry_holds_the_attempts_and_whether_the_task_may_exist() {
    let (not_created, in_doubt) = (entry(KnownResult::NotCreated), entry(KnownResult::InDoubt));
    let old = |result| Entry { epoch: EPOCH - 1, ..entry(result) };
    let copy = DeliveryFacts { attempts: 3, is_copy: true, ..facts() };
    let doubtful_copy = DeliveryFacts { is_copy: true, possibly_created: true, ..facts() };
    let doubtful_replay = DeliveryFacts { possibly_created: true, ..replay(1) };
    for (entry, facts, expected) in [
        // Another message with the same id starts with its own attempts; the same message goes on.
        (&not_created, facts(), (0, false, false, false)),
        (&not_created, redelivered(), (2, false, false, false)),
        (&not_created, copy, (3, false, false, false)),
        (&in_doubt, facts(), (0, true, true, false)),
        (&in_doubt, redelivered(), (2, true, true, false)),
        // An entry proves something only if it was written after the last time that this ledger may have missed a request.
        (&not_created, unproven(), (2, false, false, false)),
        (&old(KnownResult::NotCreated), unproven(), (2, true, true, false)),
        (&old(KnownResult::NotCreated), redelivered(), (2, false, false, false)),
        (&not_created, DeliveryFacts { epoch: None, ..unproven() }, (2, true, true, false)),
        // A worker with another ledger put the copy in doubt. An operator decides about a replay.
        (&not_created, doubtful_copy.clone(), (2, false, true, false)),
        (&old(KnownResult::NotCreated), doubtful_copy, (2, true, true, false)),
        (&old(KnownResult::NotCreated), doubtful_replay, (0, false, true, true)),
    ] {
        assert_eq!(sent(Some(entry), &facts), Some(expected), "{entry:?} {facts:?}");
    }
}

#[test]
fn replay_resets_an_entry_once() {
    let reset = |count| Entry { replay: Some(mark(count)), ..entry(KnownResult::InDoubt) };
    let again = |count| DeliveryFacts { delivered_before: true, ..replay(count) };
    let other = |count| {
        let mark = ReplayMark { failed_at: "2026-03-02T11:00:00.000Z".to_owned(), count };
        Entry { replay: Some(mark), ..reset(count) }
    };
    for (entry, facts, expected) in [
        (entry(KnownResult::InDoubt), replay(1), (0, false, true, true)),
        (entry(KnownResult::InDoubt), again(1), (0, false, true, true)),
        (reset(1), replay(2), (0, false, true, true)),
        // A replay that is delivered again after its start is not reset a second time.
        (reset(1), again(1), (2, true, true, false)),
        (reset(1), replay(1), (2, true, true, false)),
        // In between, another message with the same id was replayed.
        (reset(2), again(1), (2, true, true, false)),
        (other(1), again(1), (2, true, true, false)),
        (other(1), replay(1), (0, false, true, true)),
        (other(1), again(2), (0, false, true, true)),
        // A worker with another ledger may have started the replay.
        (Entry { epoch: 0, ..reset(1) }, DeliveryFacts { proves_unsent: false, ..again(2) }, (2, true, true, false)),
    ] {
        assert_eq!(sent(Some(&entry), &facts), Some(expected), "{entry:?} {facts:?}");
    }
}

#[test]
fn created_task_is_never_sent_again() {
    let created = entry(KnownResult::Created);
    let doubted = Entry { doubted: true, ..created.clone() };
    let claimed = Entry { claim: Some(claim()), ..created.clone() };
    let earlier = Entry { epoch: EPOCH - 1, ..created.clone() };
    let other = |facts: DeliveryFacts| DeliveryFacts { digest: Digest::of(b"other"), ..facts };
    let copy = |others_resend| DeliveryFacts { is_copy: true, possibly_created: true, others_resend, ..facts() };
    for (entry, facts, decision) in [
        (&created, facts(), Decision::Duplicate { doubted: false }),
        (&created, replay(1), Decision::Duplicate { doubted: false }),
        (&created, unproven(), Decision::Duplicate { doubted: false }),
        (&claimed, facts(), Decision::Duplicate { doubted: false }),
        (&doubted, redelivered(), Decision::Duplicate { doubted: true }),
        (&doubted, facts(), Decision::Duplicate { doubted: false }),
        (&earlier, unproven(), Decision::Duplicate { doubted: true }),
        (&earlier, DeliveryFacts { others_resend: false, ..unproven() }, Decision::Duplicate { doubted: false }),
        // A worker with another ledger may have sent a copy.
        (&created, copy(true), Decision::Duplicate { doubted: true }),
        (&created, copy(false), Decision::Duplicate { doubted: false }),
        (&created, other(facts()), Decision::Conflict),
        (&created, other(replay(1)), Decision::Conflict),
    ] {
        assert_eq!(decide(Some(entry), false, &facts), decision, "{entry:?} {facts:?}");
    }
}

#[test]
fn open_claim_is_waited_for_until_its_owner_is_gone() {
    for facts in [facts(), redelivered(), replay(1), unproven()] {
        assert_eq!(decide(Some(&claimed()), false, &facts), Decision::InProgress);
        assert_eq!(decide(Some(&claimed()), true, &facts), Decision::Orphaned(claim()));
    }
}

#[test]
fn message_is_poison_after_five_orphans_in_a_row_until_it_is_replayed() {
    let orphaned = |orphans| Entry { orphans, ..entry(KnownResult::InDoubt) };
    let Decision::Proceed(plan) = decide(Some(&orphaned(POISON_ORPHANS - 1)), false, &redelivered()) else {
        panic!("it is sent");
    };
    assert!(plan.is_suspect && plan.in_doubt);
    assert_eq!(decide(Some(&orphaned(POISON_ORPHANS)), false, &redelivered()), Decision::Poison(2));
    assert_eq!(decide(Some(&orphaned(POISON_ORPHANS)), false, &facts()), Decision::Poison(2));
    let Decision::Proceed(plan) = decide(Some(&orphaned(POISON_ORPHANS)), false, &replay(1)) else {
        panic!("it is sent");
    };
    assert!(plan.reset && plan.is_suspect);
}
