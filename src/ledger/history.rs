//! What is remembered of one message, and what a record does to it: the one place that decides it, for every store.
//!
//! A history is a pile of layers: at most one outcome, at the bottom, and on it the intents that are open, or the task that
//! was created in spite of a doubt. An intent adds a layer and its withdrawal takes it off again, so that what was there
//! before needs no reconstruction.

use std::time::Duration;

use jiff::Timestamp;

use super::{Closing, Digest, Entry, Record, State};

/// Bytes of a layer as the stores keep it: digest, state, attempts, milliseconds.
const LAYER: usize = 32 + 1 + 4 + 8;
/// A message with more open intents than this has been left alone long before; the count stays.
const MOST_LAYERS: usize = 64;
/// How many outcomes a record sweeps at most, because of their age or of their number.
pub(super) const SWEEP: usize = 16;

/// See the module's documentation. Empty where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct History(Vec<Layer>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layer {
    digest: Digest,
    state: State,
    attempts: u32,
    /// Milliseconds since 1970: all stores keep the same precision, and Redis' scores hold it exactly.
    at: i64,
}

impl History {
    /// What the history says to those who ask.
    pub(super) fn entry(&self) -> Option<Entry> {
        let top = self.0.last()?;
        let open = self.0.iter().filter(|layer| layer.state == State::Open);
        Some(Entry {
            digest: top.digest,
            state: top.state,
            attempts: top.attempts,
            open_intents: u32::try_from(open.count()).unwrap_or(u32::MAX),
            possibly_created: self.0.iter().any(|layer| layer.state == State::Unknown),
            at: Timestamp::from_millisecond(top.at).unwrap_or(Timestamp::MAX),
        })
    }

    /// The history after `record`.
    pub(super) fn after(mut self, digest: Digest, record: Record, now: Timestamp) -> Self {
        let top = self.0.last().map(|layer| layer.state);
        if top == Some(State::Created) {
            return self;
        }
        let layer = |state, attempts| Layer { digest, state, attempts, at: now.as_millisecond() };
        match record {
            Record::Begin { .. } if top.is_some() => {}
            Record::Intend { attempts } | Record::Begin { attempts } => {
                if self.0.len() >= MOST_LAYERS {
                    self.0.remove(0);
                }
                // Nearly always it is the only one.
                self.0.reserve_exact(1);
                self.0.push(layer(State::Open, attempts));
            }
            Record::Withdraw if top == Some(State::Open) => drop(self.0.pop()),
            Record::Withdraw => {}
            Record::Close { result, attempts } => {
                self.0 = match (result, self.leaves_a_doubt()) {
                    (Closing::Created, false) => vec![layer(State::Created, attempts)],
                    // There may be two: whoever finds it tells so, should the one that recorded it have had no time to.
                    (Closing::Created, true) => vec![layer(State::Unknown, attempts), layer(State::Created, attempts)],
                    (Closing::NotCreated, false) => vec![layer(State::Closed, attempts)],
                    (Closing::NotCreated, true) | (Closing::Unknown, _) => vec![layer(State::Unknown, attempts)],
                };
            }
            Record::Forget => self.0.clear(),
        }
        self
    }

    /// Whether a request before the latest intent may have made the task: its result was unknown, or its worker died.
    fn leaves_a_doubt(&self) -> bool {
        let earlier = match self.0.split_last() {
            Some((top, below)) if top.state == State::Open => below,
            _ => self.0.as_slice(),
        };
        let doubtful = |layer: &Layer| matches!(layer.state, State::Open | State::Unknown);
        earlier.iter().any(doubtful)
    }

    /// The history, or none where it ends in an outcome that is past its retention.
    pub(super) fn unless_expired(self, now: Timestamp, retention: Duration) -> Self {
        match self.outcome_at() {
            Some(at) if at <= horizon(now, retention) => Self::default(),
            _ => self,
        }
    }

    /// The moment of the outcome that the history ends in, by which it is swept; none where an intent is open.
    pub(super) fn outcome_at(&self) -> Option<i64> {
        self.0.last().filter(|layer| layer.state != State::Open).map(|layer| layer.at)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes that the stores keep: the layers one after the other, numbers in big endian.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size());
        self.put(&mut bytes);
        bytes
    }

    /// How many bytes those are.
    pub(super) const fn size(&self) -> usize {
        self.0.len() * LAYER
    }

    /// Adds them to others.
    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        for layer in &self.0 {
            bytes.extend_from_slice(&layer.digest.0);
            bytes.push(match layer.state {
                State::Open => b'o',
                State::Closed => b'-',
                State::Unknown => b'?',
                State::Created => b'c',
            });
            bytes.extend_from_slice(&layer.attempts.to_be_bytes());
            bytes.extend_from_slice(&layer.at.to_be_bytes());
        }
    }

    /// The inverse of [`History::to_bytes`]; none for anything else.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (layers, []) = bytes.as_chunks::<LAYER>() else {
            return None;
        };
        layers.iter().map(Layer::from_bytes).collect::<Option<_>>().map(Self)
    }
}

impl Layer {
    fn from_bytes(bytes: &[u8; LAYER]) -> Option<Self> {
        let (digest, rest) = bytes.split_first_chunk()?;
        let ([state], rest) = rest.split_first_chunk()?;
        let (attempts, at) = rest.split_first_chunk()?;
        Some(Self {
            digest: Digest(*digest),
            state: match state {
                b'o' => State::Open,
                b'-' => State::Closed,
                b'?' => State::Unknown,
                b'c' => State::Created,
                _ => return None,
            },
            attempts: u32::from_be_bytes(*attempts),
            at: i64::from_be_bytes(at.try_into().ok()?),
        })
    }
}

/// The moment, in milliseconds, up to which outcomes are past their retention.
pub(super) fn horizon(now: Timestamp, retention: Duration) -> i64 {
    let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    now.as_millisecond().saturating_sub(retention)
}
