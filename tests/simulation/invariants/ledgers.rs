//! Checks claims, results and orphans, and that a ledger proves "no entry means not sent" only when that is true.

use std::time::Duration;

use tokio::time::Instant;
use wolkvox_task_worker::ledger::{AttemptResult, Change, Changed, ClaimId, Entry, KnownResult, LedgerMetadata};

use super::Checker;
use crate::coverage::{Case, Situation};
use crate::world::ProcessNumber;

/// The longest time from the first sending of a claim to the start of its request.
pub(crate) const CLAIM_TO_REQUEST: Duration = Duration::from_secs(2);
/// The most ledger operations for one delivery. More are an endless loop: even a delivery that is a probe every second for ten
/// minutes needs fewer.
const MAX_LEDGER_USES: u32 = 5_000;

/// A claim between its first sending to the ledger and its request.
#[derive(Debug)]
pub(crate) struct Claiming {
    pub(crate) process: ProcessNumber,
    pub(crate) started: Instant,
    pub(crate) is_made: bool,
    has_failed: bool,
}

impl Checker {
    /// A worker uses the ledger. True if a worker does so in an endless loop; the episode then stops.
    pub(crate) fn uses_ledger(&mut self, process: ProcessNumber, account: usize) -> bool {
        let ledger_uses = self.accounts[account].ledger_uses.entry(process).or_default();
        *ledger_uses += 1;
        if *ledger_uses > MAX_LEDGER_USES && !self.is_endless {
            self.is_endless = true;
            self.violation(format!("worker {process} used the ledger {MAX_LEDGER_USES} times for one delivery"));
        }
        self.is_endless
    }

    /// A worker sends an operation to the ledger.
    pub(crate) fn asked_to_change(&mut self, process: ProcessNumber, account: usize, change: &Change) {
        match change {
            Change::Claim { new, .. } => self.claims(process, account, new.claim.id),
            Change::Withdraw(new) => self.withdraws(process, account, new.claim.id),
            Change::Finish { id, result, .. } if *result != AttemptResult::Orphaned => {
                if self.accounts[account].finished.contains(id) {
                    self.violation(format!("worker {process} records the result of one request twice"));
                }
            }
            Change::Finish { .. } => {}
        }
    }

    /// Checks that open claims and requests together are no more than the token slots, and that each claim is written once.
    fn claims(&mut self, process: ProcessNumber, account: usize, id: ClaimId) {
        if let Some(claim) = self.accounts[account].claims.get(&id) {
            if claim.is_made || !claim.has_failed {
                self.violation(format!("worker {process} writes one claim twice"));
            }
            return;
        }
        let claim = Claiming { process, started: Instant::now(), is_made: false, has_failed: false };
        self.accounts[account].claims.insert(id, claim);
        if let Some(gate) = self.gates.get_mut(&process) {
            gate.last_turn = Some(Instant::now());
        }
        let of_process = self.accounts.iter().flat_map(|account| account.claims.values());
        let claims = of_process.filter(|claim| claim.process == process).count();
        let open = self.on_token.iter().filter(|((of, _), _)| *of == process).map(|(_, count)| *count).sum::<usize>();
        let slots = self.script.setting.in_flight * self.script.setting.tokens;
        if claims + open > slots {
            self.violation(format!("worker {process} has {claims} claims and {open} requests, but only {slots} slots"));
        }
    }

    /// Checks that a claim is withdrawn only for a reason, so that a request needs two ledger operations.
    fn withdraws(&mut self, process: ProcessNumber, account: usize, id: ClaimId) {
        let Some(claim) = self.accounts[account].claims.remove(&id) else { return };
        let (gone, hold) = (&self.gone, self.script.setting.hold);
        let mut deliveries =
            self.accounts[account].deliveries.get(&process).into_iter().flat_map(|deliveries| deliveries.values());
        let is_over = deliveries.any(|held| gone.contains_key(&held.connection) || held.since.elapsed() >= hold);
        let is_late = claim.started.elapsed() > CLAIM_TO_REQUEST;
        // Other answers can close the gate or pause the token between slot and request.
        let now = Instant::now();
        let is_closed = self.gates.get(&process).is_some_and(|gate| gate.closed.is_some());
        let is_paused = self
            .throttled
            .iter()
            .chain(&self.suspended)
            .any(|(place, rest)| place.0 == process && now < rest.until.max(rest.since + 2 * CLAIM_TO_REQUEST));
        let has_reason = is_late || is_over || is_closed || is_paused || self.stopping.contains(&process);
        if !claim.has_failed && !has_reason {
            self.violation(format!(
                "worker {process} withdraws a claim of {:?} for no reason",
                claim.started.elapsed()
            ));
        }
    }

    pub(crate) fn ledger_failed(&mut self, account: usize, change: &Change) {
        let account = &mut self.accounts[account];
        account.ledger_failed = true;
        if let Change::Claim { new, .. } = change
            && let Some(claim) = account.claims.get_mut(&new.claim.id)
        {
            claim.has_failed = true;
        }
    }

    /// The ledger has answered; `answer` is none if it failed.
    pub(crate) fn answered_change(&mut self, account: usize, change: &Change, answer: Option<&Changed>) {
        let account = &mut self.accounts[account];
        match (change, answer) {
            (Change::Claim { new, .. }, Some(Changed::Done(_))) => {
                if let Some(claim) = account.claims.get_mut(&new.claim.id) {
                    claim.is_made = true;
                }
            }
            (Change::Claim { new, .. }, Some(Changed::Conflict(_))) => {
                account.claims.remove(&new.claim.id);
                self.met(Situation::Case(Case::Conflict));
            }
            (Change::Finish { id, result, .. }, Some(_)) if *result != AttemptResult::Orphaned => {
                account.finished.insert(*id);
            }
            _ => {}
        }
    }

    /// A ledger applied an operation.
    pub(crate) fn changed(
        &mut self,
        (store, is_exclusive): (usize, bool),
        process: ProcessNumber,
        account: usize,
        change: &Change,
        (before, after): (Option<Entry>, Option<Entry>),
    ) {
        self.ledger_of.insert(process, store);
        let was_created = before.as_ref().is_some_and(|entry| entry.result == KnownResult::Created);
        if was_created && after.as_ref().is_none_or(|entry| entry.result != KnownResult::Created) {
            self.violation(format!("worker {process} overwrites the result created: {change:?}"));
        }
        let (open, now) = (before.as_ref().and_then(|entry| entry.claim), after.as_ref().and_then(|entry| entry.claim));
        match change {
            Change::Claim { new, .. } if now.map(|claim| claim.id) == Some(new.claim.id) => {
                self.note(format!("worker {process} claims account {account}"));
                self.owner_of_claim.entry(new.claim.id).or_insert((process, Instant::now()));
                if open.is_some_and(|open| open.id != new.claim.id) || was_created {
                    self.violation(format!("worker {process} claims an entry that is claimed or created: {before:?}"));
                }
                if let (None, Some(mark)) = (open, &new.replay) {
                    // An entry keeps its latest replay only. Copies of a message without an id have entries of their own.
                    let former = self.accounts[account].replayed.insert(store, mark.clone());
                    if new.reset && former.as_ref() == Some(mark) && self.accounts[account].has_id {
                        self.violation(format!("worker {process} resets the entry twice for one replay: {mark:?}"));
                    }
                }
            }
            Change::Claim { .. } => self.note(format!("worker {process} cannot claim account {account}")),
            Change::Withdraw(new) => {
                self.note(format!("worker {process} withdraws its claim of account {account}"));
                let is_open = open.is_some_and(|open| open.id == new.claim.id);
                self.met(Situation::Record("withdrawn", is_open));
            }
            Change::Finish { id, result, .. } => {
                self.note(format!("worker {process} records {result:?} of account {account}"));
                let is_open = open.is_some_and(|open| open.id == *id);
                self.met(Situation::Record(record(*result), is_open));
                match (*result == AttemptResult::Orphaned, is_open) {
                    (true, true) => self.orphaned(account, *id, is_exclusive),
                    // The ledger has lost the claim since the worker read it.
                    (true, false) => self.accounts[account].orphans += 1,
                    (false, _) => {}
                }
            }
        }
    }

    /// Checks that an orphan's owner is known to be gone, or that the claim was unchanged for long enough. A running owner does
    /// not leave a claim for so long, unless its ledger fails.
    fn orphaned(&mut self, account: usize, id: ClaimId, is_exclusive: bool) {
        self.accounts[account].orphans += 1;
        let Some((owner, since)) = self.owner_of_claim.get(&id).copied() else { return };
        let (is_dead, failed) = (self.is_gone(owner), self.accounts[account].ledger_failed);
        let is_old = since.elapsed() >= self.orphan_after;
        if (is_exclusive && !is_dead) || (!is_exclusive && !is_old) || !(is_dead || failed) {
            let age = since.elapsed();
            self.violation(format!(
                "the claim of worker {owner} (dead: {is_dead}) is treated as an orphan after {age:?}"
            ));
        }
        self.met(Situation::Case(if is_old { Case::OrphanByAge } else { Case::OrphanOfGoneOwner }));
    }

    /// A ledger starts or stops proving that a message without an entry was not sent. `owners` are the ids on `<queue>.owner`;
    /// `before` are the messages that the worker has, or will receive, as delivered before.
    pub(crate) fn proves(
        &mut self,
        store: usize,
        was: &LedgerMetadata,
        about: &LedgerMetadata,
        owners: &[String],
        before: &[usize],
    ) {
        if about.proves_unsent && !was.proves_unsent {
            self.note(format!("ledger {store} proves that messages without an entry were not sent"));
            self.met(Situation::Case(Case::Proves));
            // A message that was replayed or exists more than once can have been sent as the other one.
            let is_unknown = |number: &&usize| {
                let account = &self.accounts[self.account_of(**number)];
                let is_alone = account.published == 1 && account.replays + account.exists_twice + account.splits == 0;
                let is_sent = account.has_id && account.doubtful > 0 && account.created.len() < 2;
                is_alone && is_sent && !account.sent_by.contains(&store)
            };
            let unknown: Vec<usize> = before.iter().filter(is_unknown).copied().collect();
            if !unknown.is_empty() {
                self.violation(format!(
                    "ledger {store} claims to know all sent messages, but does not know messages {unknown:?}"
                ));
            }
        }
        if !about.proves_unsent && was.proves_unsent {
            self.note(format!("ledger {store} proves nothing any more"));
            self.met(Situation::Case(Case::ProofLost));
            let is_other = owners.iter().any(|owner| *owner != about.id) || owners.is_empty();
            if !is_other && self.script.setting.has_owner_queue {
                self.violation(format!(
                    "ledger {store} no longer proves that messages were not sent, although no other ledger was used"
                ));
            }
        }
    }

    /// A worker's ledger proves nothing any more: unsettled messages that were delivered before are in doubt.
    pub(crate) fn unproven(&mut self, process: ProcessNumber) {
        for account in &mut self.accounts {
            let mut deliveries =
                account.deliveries.get(&process).into_iter().flat_map(|deliveries| deliveries.values());
            account.unproven += u32::from(deliveries.any(|held| held.delivered_before));
        }
    }
}

pub(crate) const RECORDS: [&str; 4] = ["created", "not created", "in doubt", "orphaned"];

fn record(result: AttemptResult) -> &'static str {
    match result {
        AttemptResult::Created => "created",
        AttemptResult::NotCreated => "not created",
        AttemptResult::InDoubt => "in doubt",
        AttemptResult::Orphaned => "orphaned",
    }
}
