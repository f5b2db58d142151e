//! What the sandbox remembers.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::Options;
use super::answer::Refusal;
use super::faults::{Fault, Faults, Rule};
use super::limits::{Holder, Use};
use super::server::Client;

/// Bytes of remembered tasks, beyond which an insert is answered 507: about half a million of a usual size.
const MAX_REMEMBERED: usize = 256 * 1024 * 1024;
/// What a remembered task takes beside its payload, roughly.
const TASK_OVERHEAD: usize = 128;

/// A task that was created.
#[derive(Debug, Serialize)]
pub(super) struct Task {
    /// The whole body, as it came.
    pub(super) payload: Box<RawValue>,
    /// The token that it came with.
    #[serde(serialize_with = "as_text")]
    pub(super) token: Arc<str>,
    /// When it was created, RFC 3339 in UTC.
    #[serde(serialize_with = "as_text")]
    pub(super) at: Timestamp,
    /// The number of the TCP connection that it came on, counted from 1.
    pub(super) connection: u64,
}

/// The sandbox's memory, shared by all connections.
#[derive(Debug)]
pub(super) struct State {
    /// How it was told to behave.
    pub(super) options: Options,
    memory: Mutex<Memory>,
}

#[derive(Debug)]
struct Memory {
    tasks: Vec<Arc<Task>>,
    remembered: usize,
    requests: BTreeMap<&'static str, u64>,
    tokens: BTreeMap<Arc<str>, Use>,
    faults: Faults,
    admitted: u64,
}

/// What is counted, at one moment.
pub(super) struct Counts {
    /// Answered requests by outcome.
    pub(super) requests: BTreeMap<&'static str, u64>,
    /// What was created, in order.
    pub(super) tasks: Vec<Arc<Task>>,
    /// The most requests at once on each token, refused ones too.
    pub(super) peaks: BTreeMap<String, usize>,
}

/// A token's use of its quota.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Calls today, this one included.
    pub(super) used: u64,
    /// Whole hours until it starts again, rounded down: of what the vendor may mean, the hardest to bear.
    pub(super) hours_to_restart: i64,
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
        tracing::info!(seed, "the sandbox draws from this seed");
        let tokens = options.tokens.iter();
        let memory = Memory {
            tasks: Vec::new(),
            remembered: 0,
            requests: BTreeMap::new(),
            tokens: tokens.map(|token| (Arc::from(token.as_str()), Use::default())).collect(),
            faults: Faults::new(options.faults.clone(), seed),
            admitted: 0,
        };
        Self { options, memory: Mutex::new(memory) }
    }

    /// The known token that was given, if it is one.
    pub(super) fn token(&self, given: &[u8]) -> Option<Arc<str>> {
        let memory = self.lock();
        memory.tokens.keys().find(|token| token.as_bytes() == given).cloned()
    }

    /// Takes a slot and spends a call of the quota, or says which limit forbids it.
    pub(super) fn admit(self: &Arc<Self>, token: Arc<str>, client: &Client) -> Result<(Slot, Quota), Refusal> {
        let now = now();
        let (day, hours_to_restart) = day(now);
        let mut memory = self.lock();
        memory.admitted += 1;
        let id = memory.admitted;
        let holder = Holder { id, socket: Arc::clone(&client.socket) };
        let usage = memory.tokens.entry(Arc::clone(&token)).or_default();
        let used = usage.admit(&self.options, day, holder)?;
        drop(memory);
        let slot = Slot { state: Arc::clone(self), token, id, outcome: Some("abandoned") };
        Ok((slot, Quota { used, hours_to_restart }))
    }

    /// The fault that this insert meets, if any.
    pub(super) fn fault(&self, task_name: &str) -> Option<Fault> {
        self.lock().faults.choose(task_name)
    }

    /// Remembers a task.
    pub(super) fn create(&self, payload: Box<RawValue>, token: Arc<str>, connection: u64) -> Result<(), Refusal> {
        let mut memory = self.lock();
        let remembered = memory.remembered + payload.get().len() + TASK_OVERHEAD;
        if remembered > MAX_REMEMBERED {
            return Err(Refusal::Full);
        }
        memory.remembered = remembered;
        memory.tasks.push(Arc::new(Task { payload, token, at: now(), connection }));
        Ok(())
    }

    /// Counts a request.
    pub(super) fn count(&self, outcome: &'static str) {
        self.lock().count(outcome);
    }

    /// Everything that is counted.
    pub(super) fn counts(&self) -> Counts {
        let memory = self.lock();
        let peaks = memory.tokens.iter();
        Counts {
            requests: memory.requests.clone(),
            tasks: memory.tasks.clone(),
            peaks: peaks.map(|(token, usage)| (token.to_string(), usage.peak())).collect(),
        }
    }

    /// Puts these rules in the place of all others, and starts the draws from the seed again.
    pub(super) fn replace_faults(&self, rules: Vec<Rule>) {
        self.lock().faults.replace(rules);
    }

    /// Forgets tasks, faults, quotas and counts; requests under way keep their slots.
    pub(super) fn forget(&self) {
        let mut memory = self.lock();
        memory.tasks = Vec::new();
        memory.remembered = 0;
        memory.requests.clear();
        memory.tokens.values_mut().for_each(Use::forget);
        memory.faults.replace(Vec::new());
    }

    /// Whoever panicked with the lock held left the memory whole: each change is a single step.
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn count(&mut self, outcome: &'static str) {
        *self.requests.entry(outcome).or_default() += 1;
    }
}

/// One of a token's simultaneous requests; its place is free when this is dropped, which is when its client leaves, too.
#[derive(Debug)]
pub(super) struct Slot {
    state: Arc<State>,
    token: Arc<str>,
    id: u64,
    outcome: Option<&'static str>,
}

impl Slot {
    /// Frees the place and counts the request, in one step.
    pub(super) fn finish(mut self, outcome: &'static str) {
        self.outcome = Some(outcome);
    }

    /// Counts the request and keeps the place.
    pub(super) fn count(&mut self, outcome: &'static str) {
        self.outcome = None;
        self.state.count(outcome);
    }

    /// The token that the place is on.
    pub(super) fn token(&self) -> Arc<str> {
        Arc::clone(&self.token)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut memory = self.state.lock();
        if let Some(usage) = memory.tokens.get_mut(&self.token) {
            usage.release(self.id);
        }
        if let Some(outcome) = self.outcome {
            memory.count(outcome);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a server at the edge: its clients live in real time")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// The day in UTC, counted from 1970, and the whole hours until it ends, rounded down.
fn day(now: Timestamp) -> (i64, i64) {
    const DAY: i64 = 24 * 60 * 60;
    let now = now.as_second();
    let left = DAY - now.rem_euclid(DAY);
    (now.div_euclid(DAY), left / 3600)
}

fn as_text<S: Serializer>(value: impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use super::*;

    #[test]
    fn ends_the_day_at_midnight_utc_and_counts_the_hours_down() {
        for (now, expected) in [
            ("1970-01-01T00:00:00Z", (0, 24)),
            ("1970-01-02T00:00:01Z", (1, 23)),
            ("1970-01-02T22:00:00Z", (1, 2)),
            ("1970-12-31T23:59:59Z", (364, 0)),
        ] {
            assert_eq!(day(now.parse().unwrap()), expected, "{now}");
        }
    }

    #[test]
    fn refuses_a_task_when_its_memory_is_full() {
        let state = State::new(Options {
            listen: ([127, 0, 0, 1], 0).into(),
            tokens: vec!["one".to_owned()],
            operation: String::new(),
            latency: Duration::ZERO,
            max_simultaneous: NonZeroUsize::MIN,
            daily_limit: 0,
            faults: Vec::new(),
            seed: None,
        });
        let create = || {
            let payload = RawValue::from_string("{}".to_owned()).unwrap();
            state.create(payload, Arc::from("one"), 1)
        };
        state.lock().remembered = MAX_REMEMBERED - TASK_OVERHEAD - 2;
        assert_eq!((create(), create()), (Ok(()), Err(Refusal::Full)));
        state.forget();
        assert_eq!(create(), Ok(()));
    }
}
