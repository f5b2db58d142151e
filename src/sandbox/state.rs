//! The state of a sandbox: its created tasks, counters, quotas and faults. All connections share it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use jiff::civil::Date;

use super::account::{Account, Ids};
use super::answer::Refusal;
use super::client::Client;
use super::faults::{Fault, Faults, Rule};
use super::limits::{Holder, Limits, TokenUsage};
use super::options::Options;
use crate::sync::lock;

/// Bytes of remembered tasks, beyond which an insert is answered 507: about half a million of a usual size.
const MAX_REMEMBERED: usize = 256 * 1024 * 1024;
/// What a remembered task takes beside its payload, roughly.
const TASK_OVERHEAD: usize = 192;

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
    /// Its `wolkvox_id`.
    #[serde(skip)]
    pub(super) id: String,
}

/// The sandbox's memory, shared by all connections.
#[derive(Debug)]
pub(super) struct State {
    /// How it behaves.
    pub(super) options: Options,
    limits: Limits,
    memory: Mutex<Memory>,
    /// A number that all 24-digit ids of this sandbox contain; its lower 40 bits are used.
    ids: u64,
    next_id: AtomicU32,
}

#[derive(Debug)]
struct Memory {
    tasks: Vec<Arc<Task>>,
    remembered: usize,
    requests: BTreeMap<&'static str, u64>,
    tokens: BTreeMap<Arc<str>, TokenUsage>,
    faults: Faults,
    account: Arc<Account>,
    admitted: u64,
}

/// All counts at one moment.
pub(super) struct Counts {
    /// Answered requests by outcome.
    pub(super) requests: BTreeMap<&'static str, u64>,
    /// What was created, in order.
    pub(super) tasks: Vec<Arc<Task>>,
    /// The most requests at once on each token, refused ones too.
    pub(super) peaks: BTreeMap<String, usize>,
}

/// A token's use of its quota, as `tokenInformation.php` shows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Calls today.
    pub(super) used: u64,
    /// Whole hours until it starts again, rounded down.
    pub(super) hours_to_restart: i64,
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
        tracing::info!(seed, "the sandbox draws from this seed");
        let tokens = options.tokens.iter();
        let (faults, account) = Faults::new(options.faults.clone(), seed);
        let memory = Memory {
            tasks: Vec::new(),
            remembered: 0,
            requests: BTreeMap::new(),
            tokens: tokens.map(|token| (Arc::from(token.as_str()), TokenUsage::default())).collect(),
            faults,
            account: Arc::new(account),
            admitted: 0,
        };
        let limits = Limits { simultaneous: options.max_simultaneous.get(), daily: options.daily_limit };
        Self { options, limits, memory: Mutex::new(memory), ids: fastrand::u64(..), next_id: AtomicU32::default() }
    }

    /// The accepted token that equals the given one; none if there is none.
    pub(super) fn token(&self, given: &[u8]) -> Option<Arc<str>> {
        let memory = self.lock();
        memory.tokens.keys().find(|token| token.as_bytes() == given).cloned()
    }

    /// The first of the known tokens.
    pub(super) fn first_token(&self) -> Option<Arc<str>> {
        self.options.tokens.first().and_then(|token| self.token(token.as_bytes()))
    }

    /// Takes a slot and spends `cost` calls of the quota, or says which limit forbids it.
    pub(super) fn admit(
        self: &Arc<Self>,
        token: Arc<str>,
        client: &Client,
        account: &Account,
        cost: u64,
    ) -> Result<Slot, Refusal> {
        let (today, _) = day(now(), account);
        let mut memory = self.lock();
        memory.admitted += 1;
        let id = memory.admitted;
        let holder = Holder { id, socket: Arc::clone(&client.socket) };
        memory.tokens.entry(Arc::clone(&token)).or_default().admit(self.limits, today, holder, cost)?;
        drop(memory);
        Ok(Slot { state: Arc::clone(self), token, id, outcome: Some("abandoned") })
    }

    /// The use of a slot's token.
    pub(super) fn quota(&self, slot: &Slot, account: &Account) -> Quota {
        let (_, hours_to_restart) = day(now(), account);
        let mut memory = self.lock();
        let used = memory.tokens.get_mut(&slot.token).map_or(0, |usage| usage.shown(account.slow_counter));
        Quota { used, hours_to_restart }
    }

    /// How the account behaves.
    pub(super) fn account(&self) -> Arc<Account> {
        Arc::clone(&self.lock().account)
    }

    /// The time by the account's clock.
    pub(super) fn now(account: &Account) -> Timestamp {
        let now = now();
        now.checked_add(account.clock).unwrap_or(now)
    }

    /// The id of a task that is created now.
    pub(super) fn next_id(&self, account: &Account) -> String {
        if account.ids == Ids::Uuid {
            return Uuid::now_v7().to_string();
        }
        let seconds = u32::try_from(Self::now(account).as_second()).unwrap_or_default();
        let number = self.next_id.fetch_add(1, Ordering::Relaxed) & 0xff_ffff;
        if account.ids == Ids::Number {
            return (1_000_000 + u64::from(number)).to_string();
        }
        format!("{seconds:08x}{:010x}{number:06x}", self.ids & 0xff_ffff_ffff)
    }

    /// The fault that this insert meets, if any.
    pub(super) fn fault(&self, task_name: &str) -> Option<Fault> {
        self.lock().faults.choose(task_name)
    }

    /// Remembers a task.
    pub(super) fn create(
        &self,
        payload: Box<RawValue>,
        token: Arc<str>,
        connection: u64,
        id: String,
    ) -> Result<(), Refusal> {
        let mut memory = self.lock();
        let remembered = memory.remembered + payload.get().len() + TASK_OVERHEAD;
        if remembered > MAX_REMEMBERED {
            return Err(Refusal::Full);
        }
        memory.remembered = remembered;
        memory.tasks.push(Arc::new(Task { payload, token, at: now(), connection, id }));
        Ok(())
    }

    /// The newest tasks, at most `most`, the newest first.
    pub(super) fn newest(&self, most: usize) -> Vec<Arc<Task>> {
        self.lock().tasks.iter().rev().take(most).cloned().collect()
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

    /// Replaces all rules, and starts the draws from the seed again.
    pub(super) fn replace_faults(&self, rules: Vec<Rule>) {
        let mut memory = self.lock();
        memory.account = Arc::new(memory.faults.replace(rules));
    }

    /// Forgets tasks, faults, quotas and counts; requests in progress keep their slots.
    pub(super) fn forget(&self) {
        let mut memory = self.lock();
        memory.tasks = Vec::new();
        memory.remembered = 0;
        memory.requests.clear();
        memory.tokens.values_mut().for_each(TokenUsage::forget);
        memory.account = Arc::new(memory.faults.replace(Vec::new()));
    }

    /// Takes the lock, also after a panic. The memory is consistent then, because each change is a single step.
    fn lock(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }
}

impl Memory {
    fn count(&mut self, outcome: &'static str) {
        *self.requests.entry(outcome).or_default() += 1;
    }
}

/// A slot that a request holds on a token. Dropping it frees the slot, also when the client leaves.
#[derive(Debug)]
pub(super) struct Slot {
    state: Arc<State>,
    token: Arc<str>,
    id: u64,
    outcome: Option<&'static str>,
}

impl Slot {
    /// Frees the slot and counts the request, in one step.
    pub(super) fn finish(mut self, outcome: &'static str) {
        self.outcome = Some(outcome);
    }

    /// Counts the request and keeps the slot.
    pub(super) fn count(&mut self, outcome: &'static str) {
        self.outcome = None;
        self.state.count(outcome);
    }

    /// The token that the slot is on.
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

/// The account's day, and the whole hours until it ends, rounded down.
fn day(now: Timestamp, account: &Account) -> (Date, i64) {
    let local = account.zone.to_datetime(now.checked_add(account.clock).unwrap_or(now));
    // The local time is moved back by the time from midnight to the end of the day. The moved day then ends at midnight.
    let local = local.saturating_sub(account.day_end);
    let full_hour = local.minute() == 0 && local.second() == 0;
    (local.date(), 23 - i64::from(local.hour()) + i64::from(full_hour))
}

fn as_text<S: Serializer>(value: impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn day_ends_at_midnight_of_the_account_and_its_hours_count_down() {
        let mut account = Account::default();
        for (now, date, hours) in [
            ("1970-01-01T00:00:00Z", "1970-01-01", 24),
            ("1970-01-02T00:00:01Z", "1970-01-02", 23),
            ("1970-01-02T22:00:00Z", "1970-01-02", 2),
            ("1970-12-31T23:59:59Z", "1970-12-31", 0),
        ] {
            assert_eq!(day(now.parse().unwrap(), &account), (date.parse().unwrap(), hours), "{now}");
        }
        account.apply("zone:UTC-05:00").unwrap();
        let (date, hours) = day("1970-01-02T04:30:00Z".parse().unwrap(), &account);
        assert_eq!((date.to_string().as_str(), hours), ("1970-01-01", 0));
    }

    #[test]
    fn day_ends_at_the_hour_of_the_account() {
        let mut account = Account::default();
        account.apply("zone:UTC-05:00").unwrap();
        account.apply("day-ends:07:00").unwrap();
        for (now, date, hours) in [
            ("1970-01-02T11:30:00Z", "1970-01-01", 0),
            ("1970-01-02T12:00:00Z", "1970-01-02", 24),
            ("1970-01-02T23:30:00Z", "1970-01-02", 12),
        ] {
            assert_eq!(day(now.parse().unwrap(), &account), (date.parse().unwrap(), hours), "{now}");
        }
    }

    #[test]
    fn ids_have_the_time_of_creation_and_differ() {
        let state = State::new(Options::default());
        let ids: Vec<String> = (0..3).map(|_| state.next_id(&Account::default())).collect();
        for id in &ids {
            assert!(id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
            let seconds = i64::from_str_radix(&id[..8], 16).unwrap();
            assert!((now().as_second() - seconds).abs() < 60, "{id}");
        }
        assert!(ids[0] < ids[1] && ids[1] < ids[2], "{ids:?}");
    }

    #[test]
    fn task_is_refused_when_the_memory_is_full() {
        let state = State::new(Options::default());
        let create = || {
            let payload = RawValue::from_string("{}".to_owned()).unwrap();
            state.create(payload, Arc::from("one"), 1, String::new())
        };
        state.lock().remembered = MAX_REMEMBERED - TASK_OVERHEAD - 2;
        assert_eq!((create(), create()), (Ok(()), Err(Refusal::Full)));
        state.forget();
        assert_eq!(create(), Ok(()));
    }
}
