//! Known?: what the ledger says of a delivery, before anything else happens to it. Pure.

use std::time::Duration;

use jiff::Timestamp;

use crate::ledger::{Digest, Entry, State};

/// Intents found open at which a message is taken to crash the worker.
pub const POISON: u32 = 5;

/// What follows from the ledger's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing stands in the way; so many attempts are spent already.
    Fresh(u32),
    /// An operator decided anew: what the ledger knew before is to be forgotten.
    Afresh,
    /// Its task was created: it is acked without a post.
    Created,
    /// The id was used for another body.
    Conflict,
    /// Another worker may still be sending it: look again after this long.
    Wait(Duration),
    /// A worker died between sending and recording; so many attempts are spent, that one included.
    LeftOpen(u32),
    /// So many intents were left open that the message is taken to crash the worker; so many attempts are spent.
    Poison(u32),
    /// An earlier attempt may have made the task.
    PossiblyCreated(u32),
}

/// The delivery that is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Digest of its body.
    pub digest: Digest,
    /// Attempts that its headers tell of.
    pub attempts: u32,
    /// Whether it comes back from the dead-letter queue: an operator decided anew.
    pub replay: bool,
    /// When it was given up, for a replay.
    pub failed_at: Option<Timestamp>,
    /// Whether the broker delivered it before: the same message, not another one with its id.
    pub redelivered: bool,
    /// Whether it is a copy of ours, held or retried: the same message, too.
    pub copy: bool,
    /// The time of day.
    pub now: Timestamp,
    /// How long the latest record has been looked at already: the clock may have been set back since it was made.
    pub watched: Duration,
    /// How long another worker's intent can be open.
    pub patience: Duration,
}

/// Judges an entry. See the contract's chapter on the ledger.
#[must_use]
pub fn judge(entry: Option<&Entry>, asked: &Asked) -> Known {
    let Some(entry) = entry else {
        return Known::Fresh(asked.attempts);
    };
    if entry.state == State::Created {
        return if entry.digest == asked.digest { Known::Created } else { Known::Conflict };
    }
    let open = entry.state == State::Open;
    if open {
        let age = Duration::try_from(asked.now.duration_since(entry.at)).unwrap_or_default().max(asked.watched);
        if age < asked.patience {
            return Known::Wait(asked.patience - age);
        }
    }
    // The operator decided about what the dead letter tells. What came after it counts: a replay that was cut off between
    // its copy's confirm and the letter's ack is there twice, and its twin may have begun already.
    let before = asked.failed_at.map(|failed_at| entry.at <= failed_at);
    // A replay that was delivered before may have begun anew itself, and an open intent be its own whenever it seems to have
    // been made, since the clock may have been set back. Where it is seen that it was, nothing tells what came after.
    let set_back = asked.failed_at.is_some_and(|failed_at| asked.now < failed_at);
    let afresh = if asked.redelivered { !open && !set_back && before == Some(true) } else { before != Some(false) };
    if asked.replay && afresh {
        return Known::Afresh;
    }
    // An intent that the headers count already was found open by an earlier delivery.
    let uncounted = open && entry.attempts > asked.attempts;
    // What an earlier delivery of this very message spent; another message with the same id starts afresh.
    let same = asked.redelivered || asked.copy;
    let spent = if same || uncounted { entry.attempts.max(asked.attempts) } else { asked.attempts };
    if entry.open_intents >= POISON {
        return Known::Poison(spent);
    }
    match (uncounted, open || entry.possibly_created) {
        (true, _) => Known::LeftOpen(spent),
        (false, true) => Known::PossiblyCreated(spent),
        (false, false) => Known::Fresh(spent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(25);

    fn asked(attempts: u32) -> Asked {
        Asked {
            digest: Digest::of(b"body"),
            attempts,
            replay: false,
            failed_at: None,
            redelivered: false,
            copy: false,
            now: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(100),
            watched: Duration::ZERO,
            patience: PATIENCE,
        }
    }

    fn entry(state: State, attempts: u32) -> Entry {
        Entry {
            digest: Digest::of(b"body"),
            state,
            attempts,
            open_intents: u32::from(state == State::Open),
            possibly_created: state == State::Unknown,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_is_known_decides() {
        let redelivered = |attempts| Asked { redelivered: true, ..asked(attempts) };
        let replay = |attempts| Asked { replay: true, ..asked(attempts) };
        let again = |failed_at| Asked { replay: true, redelivered: true, failed_at, ..asked(0) };
        let first = |failed_at| Asked { failed_at: Some(failed_at), ..replay(0) };
        let (earlier, later) = (Timestamp::UNIX_EPOCH - jiff::SignedDuration::from_secs(1), Timestamp::UNIX_EPOCH);
        let other = |attempts| Asked { digest: Digest::of(b"other"), ..asked(attempts) };
        let early = |attempts| Asked { now: Timestamp::UNIX_EPOCH, ..asked(attempts) };
        // The clock was set back since.
        let future =
            Entry { at: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(7_200), ..entry(State::Open, 1) };
        let poison = Entry { open_intents: POISON, ..entry(State::Open, 7) };
        for (entry, asked, known) in [
            (None, asked(2), Known::Fresh(2)),
            (Some(entry(State::Created, 1)), asked(0), Known::Created),
            (Some(entry(State::Created, 1)), replay(0), Known::Created),
            (Some(entry(State::Created, 1)), other(0), Known::Conflict),
            (Some(entry(State::Closed, 2)), asked(0), Known::Fresh(0)),
            (Some(entry(State::Closed, 2)), redelivered(0), Known::Fresh(2)),
            (Some(entry(State::Closed, 2)), redelivered(3), Known::Fresh(3)),
            (Some(entry(State::Closed, 2)), Asked { copy: true, ..asked(0) }, Known::Fresh(2)),
            (Some(entry(State::Unknown, 2)), asked(0), Known::PossiblyCreated(0)),
            (Some(entry(State::Unknown, 2)), redelivered(0), Known::PossiblyCreated(2)),
            (Some(entry(State::Unknown, 2)), replay(0), Known::Afresh),
            (Some(entry(State::Unknown, 2)), again(Some(later)), Known::Afresh),
            (Some(entry(State::Unknown, 2)), again(Some(earlier)), Known::PossiblyCreated(2)),
            // Given up at a time that has not come again: the clock was set back, and what is known may be its own.
            (Some(entry(State::Closed, 2)), again(Some(future.at)), Known::Fresh(2)),
            (Some(entry(State::Open, 1)), again(Some(earlier)), Known::LeftOpen(1)),
            (Some(entry(State::Open, 1)), again(Some(later)), Known::LeftOpen(1)),
            (Some(entry(State::Open, 1)), again(None), Known::LeftOpen(1)),
            (Some(entry(State::Open, 1)), early(0), Known::Wait(PATIENCE)),
            (Some(entry(State::Open, 1)), Asked { watched: PATIENCE, ..early(0) }, Known::LeftOpen(1)),
            (Some(future), asked(0), Known::Wait(PATIENCE)),
            (Some(future), Asked { watched: PATIENCE, ..asked(0) }, Known::LeftOpen(1)),
            (Some(entry(State::Open, 1)), asked(0), Known::LeftOpen(1)),
            (Some(entry(State::Open, 3)), redelivered(1), Known::LeftOpen(3)),
            (Some(entry(State::Open, 1)), replay(0), Known::Afresh),
            (Some(entry(State::Open, 1)), Asked { replay: true, ..early(0) }, Known::Wait(PATIENCE)),
            (Some(entry(State::Open, 1)), first(later), Known::Afresh),
            (Some(entry(State::Open, 1)), first(earlier), Known::LeftOpen(1)),
            (Some(entry(State::Unknown, 2)), first(later), Known::Afresh),
            (Some(entry(State::Unknown, 2)), first(earlier), Known::PossiblyCreated(0)),
            (Some(entry(State::Open, 2)), asked(2), Known::PossiblyCreated(2)),
            (Some(poison), asked(4), Known::Poison(7)),
            (Some(poison), replay(0), Known::Afresh),
        ] {
            assert_eq!(judge(entry.as_ref(), &asked), known, "{entry:?} {asked:?}");
        }
    }
}
