//! Tests of what an entry keeps of replays and doubts.

use super::*;

#[test]
fn withdrawal_records_a_doubt_and_the_replay_that_is_in_doubt() {
    let doubt = Change::Withdraw(NewClaim { in_doubt: true, replay: mark(2), ..new(6, 4) });
    let recorded = after(&closed(), &doubt);
    assert_eq!(recorded, Entry { version: 101, replay: mark(2), ..in_doubt(closed()) });
    for known in [created(closed()), open()] {
        assert_eq!(after(&known, &doubt), Entry { version: 101, ..known });
    }
}

#[test]
fn entry_keeps_the_latest_replay_by_its_count() {
    for (known, claimed, kept) in [(None, 1, 1), (mark(1), 2, 2), (mark(2), 1, 2)] {
        let entry = Entry { replay: known, ..closed() };
        let (claimed, _) =
            apply(Some(entry), &claim(Some(100), NewClaim { reset: true, replay: mark(claimed), ..new(6, 4) }));
        assert_eq!(claimed.unwrap().replay, mark(kept));
    }
}
