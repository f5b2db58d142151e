//! The plan that an operator confirms: which messages an action handles, what that costs, and which ones are left out and
//! why.

use std::collections::{HashMap, HashSet};

use super::ledger_access::{CreationState, LedgerAccess, creation_state};
use super::list_entry::ListEntry;
use super::preview::{Preview, Replayed};
use super::{Source, fetched};
use crate::count::{either, grouped};

/// Ids in one question to the ledger.
const IDS_PER_CALL: usize = 100;
/// Ids that are listed for each reason.
const MAX_LISTED_IDS: usize = 5;

/// A message that an action can handle.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Identifies the message.
    pub fingerprint: u128,
    /// Which queue it is on.
    pub source: Source,
    /// Its message id, or the id that a replay gives it.
    pub id: Box<str>,
    /// Whether the publisher gave it an id.
    pub has_id: bool,
    /// Whether it was replayed before.
    pub replayed_before: bool,
    /// Whether the message says that its task may exist.
    pub possibly_created: bool,
    /// Whether RabbitMQ dead-lettered it.
    pub is_from_broker: bool,
    /// The digests of its body, original and edited.
    pub digests: Vec<[u8; 32]>,
    /// Why the worker refuses its body, if that is known.
    pub refused: Option<String>,
    /// Whether the rules skip its replay: the worker acks it and sends nothing.
    pub is_skipped: bool,
    /// Whether somebody found its task in the CRM and checked that off.
    pub is_found_in_crm: bool,
}

impl Candidate {
    /// A candidate from an entry and the digest of its body.
    #[must_use]
    pub fn new(entry: &ListEntry, digest: [u8; 32]) -> Self {
        Self {
            fingerprint: entry.fingerprint,
            source: entry.source,
            id: entry.id.clone(),
            has_id: entry.has_id,
            replayed_before: entry.replays > 0,
            possibly_created: entry.possibly_created,
            is_from_broker: entry.source == Source::Broker || entry.kind.starts_with(fetched::BROKER_KIND),
            digests: vec![digest],
            refused: None,
            is_skipped: false,
            is_found_in_crm: false,
        }
    }

    /// Notes what the worker does with its replay.
    pub fn note(&mut self, preview: &Preview) {
        self.refused = preview.problems().map(ToOwned::to_owned);
        self.is_skipped = matches!(preview.result, Replayed::Skipped);
    }
}

/// What the operator allows a replay to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplayOptions {
    /// Messages whose task may exist are replayed, too.
    pub allows_in_doubt: bool,
    /// Messages that the worker refuses again are replayed, too.
    pub allows_refused: bool,
    /// The message gets a new id, so the ledger entry of its old id does not matter.
    pub has_new_id: bool,
}

/// Why a message is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExclusionReason {
    /// Its task may exist.
    InDoubt,
    /// Its task was created.
    Created,
    /// Somebody found its task in the CRM.
    FoundInCrm,
    /// Its id was used for another body, whose task was created.
    IdTaken,
    /// It is still invalid after the edit.
    Refused,
}

impl ExclusionReason {
    /// How many stay, and why: `3 others stay: their task may exist already`.
    #[must_use]
    pub fn sentence(self, count: u64) -> String {
        let stay = either(count, "other stays", "others stay");
        format!("{} {stay}: {}", grouped(count), self.words(count))
    }

    /// The reason in words, for this many messages.
    #[must_use]
    pub fn words(self, count: u64) -> String {
        let (their, them) = (either(count, "its", "their"), either(count, "it", "them"));
        match self {
            Self::InDoubt => format!("{their} task may exist already"),
            Self::Created => format!("{their} task was created, as the ledger says"),
            Self::FoundInCrm => {
                format!("somebody found {their} task in the CRM and checked that off in the console, under In doubt")
            }
            Self::IdTaken => format!("{their} id was used before for another body, whose task exists"),
            Self::Refused => format!("the worker refuses {them} after the change, too"),
        }
    }
}

/// A message that the action handles.
#[derive(Clone, Debug)]
pub struct SelectedMessage {
    /// Identifies the message.
    pub fingerprint: u128,
    /// Its message id.
    pub id: Box<str>,
    /// Whether its task may exist.
    pub in_doubt: bool,
}

/// What an action does, before it is confirmed.
#[derive(Clone, Debug, Default)]
pub struct ActionPlan {
    /// The messages that it handles.
    pub chosen: Vec<SelectedMessage>,
    /// How many of them may have created their task.
    pub in_doubt: u64,
    /// How many of them were replayed before.
    pub replayed_before: u64,
    /// How many of them came from the publisher without an id.
    pub without_id: u64,
    /// How many of those are exactly like another one. They get the same id and create one task together.
    pub alike: u64,
    /// The most tasks that it can create. Each costs at least one call.
    pub tasks: u64,
    /// How many of them the worker refuses again unless they are edited.
    pub refused_again: u64,
    /// How many of them the rules skip.
    pub skipped: u64,
    /// How many are left out, by reason, with some of their ids.
    pub excluded: Vec<(ExclusionReason, u64, Vec<Box<str>>)>,
    /// One of the reasons why the worker refuses messages after the edit.
    pub refused: Option<String>,
    /// Why the ledger could not be asked.
    pub ledger_error: Option<String>,
}

impl ActionPlan {
    /// Plans a replay.
    pub async fn replay(candidates: Vec<Candidate>, ledger: &LedgerAccess, options: ReplayOptions) -> Self {
        let mut counting = Counting::default();
        for some in candidates.chunks(IDS_PER_CALL) {
            let states = counting.ask(some, ledger).await;
            for (candidate, creation) in some.iter().zip(states) {
                counting.add(candidate, creation, options);
            }
        }
        counting.done()
    }

    /// Plans a discard. It handles all messages.
    #[must_use]
    pub fn discard(candidates: &[Candidate]) -> Self {
        let mut counting = Counting::default();
        for candidate in candidates {
            let creation = if candidate.possibly_created { CreationState::InDoubt } else { CreationState::NotCreated };
            counting.choose(candidate, creation);
        }
        counting.done()
    }

    /// Plans a discard of the messages whose task was created.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn discard_created(candidates: Vec<Candidate>, ledger: &LedgerAccess) -> Result<Self, String> {
        let mut created = Vec::new();
        let mut counting = Counting::default();
        for some in candidates.chunks(IDS_PER_CALL) {
            let states = counting.ask(some, ledger).await;
            if let Some(why) = counting.plan.ledger_error.take() {
                return Err(why);
            }
            let those = some.iter().zip(states).filter(|(_, creation)| *creation == CreationState::Created);
            created.extend(those.map(|(candidate, _)| candidate.clone()));
        }
        Ok(Self::discard(&created))
    }

    /// How many messages it handles.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.chosen.len() as u64
    }

    /// What an operator must know before confirming a replay, one line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let all = [
            (
                self.tasks,
                "call of the CRM's daily quota at least; more where a message is tried again",
                "calls of the CRM's daily quota at least; more where a message is tried again",
            ),
            (
                self.in_doubt,
                "of them may have created its task, and may create a second one",
                "of them may have created their task, and may create a second one",
            ),
            (self.replayed_before, "of them was replayed before", "of them were replayed before"),
            (
                self.without_id,
                "of them has no id and gets one that is derived from its content",
                "of them have no id and get one that is derived from their content",
            ),
            (
                self.alike,
                "",
                "of them have no id and are exactly like another one: identical messages create one task together",
            ),
            (
                self.refused_again,
                "of them fails again unless it is edited; its page, or \"show\", says why",
                "of them fail again unless they are edited; each one's page, or \"show\", says why",
            ),
            (
                self.skipped,
                "of them is skipped by the rules: the worker acks it and creates no task",
                "of them are skipped by the rules: the worker acks them and creates no tasks",
            ),
        ];
        let all = all.into_iter().filter(|(count, ..)| *count > 0);
        all.map(|(count, one, many)| format!("{} {}", grouped(count), either(count, one, many))).collect()
    }

    /// Their ids.
    #[must_use]
    pub fn fingerprints(&self) -> HashSet<u128> {
        self.chosen.iter().map(|chosen| chosen.fingerprint).collect()
    }

    /// How many are left out for a reason, with some of their ids.
    #[must_use]
    pub fn staying(&self, why: ExclusionReason) -> (u64, &[Box<str>]) {
        let found = self.excluded.iter().find(|(reason, ..)| *reason == why);
        found.map_or((0, &[]), |(_, count, ids)| (*count, ids))
    }
}

#[derive(Default)]
struct Counting {
    plan: ActionPlan,
    /// How often each message without an id was seen.
    without_id: HashMap<u128, u64>,
}

impl Counting {
    async fn ask(&mut self, some: &[Candidate], ledger: &LedgerAccess) -> Vec<CreationState> {
        let ids: Vec<String> = some.iter().map(|candidate| candidate.id.to_string()).collect();
        // The ledger is asked once. The worker asks its own ledger again before it sends.
        let entries = match &self.plan.ledger_error {
            None => ledger.get(&ids).await.map_err(|why| self.plan.ledger_error = Some(why)).ok(),
            Some(_) => None,
        };
        let entries = entries.unwrap_or_default();
        let stand = |(n, candidate): (usize, &Candidate)| {
            creation_state(entries.get(n), candidate.possibly_created, candidate.is_from_broker, &candidate.digests)
        };
        some.iter().enumerate().map(stand).collect()
    }

    fn add(&mut self, candidate: &Candidate, creation: CreationState, options: ReplayOptions) {
        let excluded = match creation {
            CreationState::Created => Some(ExclusionReason::Created),
            CreationState::IdTaken if options.has_new_id => None,
            CreationState::IdTaken => Some(ExclusionReason::IdTaken),
            // The operator may include messages in doubt. That is not meant for one whose task somebody has found in the CRM.
            CreationState::InDoubt | CreationState::NotCreated if candidate.is_found_in_crm => {
                Some(ExclusionReason::FoundInCrm)
            }
            CreationState::InDoubt if !options.allows_in_doubt => Some(ExclusionReason::InDoubt),
            CreationState::InDoubt | CreationState::NotCreated
                if candidate.refused.is_some() && !options.allows_refused =>
            {
                Some(ExclusionReason::Refused)
            }
            CreationState::InDoubt | CreationState::NotCreated => None,
        };
        match excluded {
            Some(why) => self.exclude(candidate, why),
            None => self.choose(candidate, creation),
        }
    }

    fn choose(&mut self, candidate: &Candidate, creation: CreationState) {
        let plan = &mut self.plan;
        plan.in_doubt += u64::from(creation == CreationState::InDoubt);
        plan.replayed_before += u64::from(candidate.replayed_before);
        plan.without_id += u64::from(!candidate.has_id);
        plan.refused_again += u64::from(candidate.refused.is_some());
        plan.skipped += u64::from(candidate.is_skipped);
        let mut is_first = true;
        if !candidate.has_id {
            let alike = self.without_id.entry(candidate.fingerprint).or_default();
            *alike += 1;
            is_first = *alike == 1;
        }
        // What the worker refuses or skips costs no call, and identical messages create one task together.
        plan.tasks += u64::from(candidate.refused.is_none() && !candidate.is_skipped && is_first);
        plan.chosen.push(SelectedMessage {
            fingerprint: candidate.fingerprint,
            id: candidate.id.clone(),
            in_doubt: creation == CreationState::InDoubt,
        });
    }

    fn exclude(&mut self, candidate: &Candidate, why: ExclusionReason) {
        let plan = &mut self.plan;
        if why == ExclusionReason::Refused {
            plan.refused = plan.refused.take().or_else(|| candidate.refused.clone());
        }
        let at = plan.excluded.iter().position(|(reason, ..)| *reason == why);
        let at = at.unwrap_or_else(|| {
            plan.excluded.push((why, 0, Vec::new()));
            plan.excluded.len() - 1
        });
        if let Some((_, count, ids)) = plan.excluded.get_mut(at) {
            *count += 1;
            if ids.len() < MAX_LISTED_IDS {
                ids.push(candidate.id.clone());
            }
        }
    }

    fn done(mut self) -> ActionPlan {
        self.plan.alike = self.without_id.values().filter(|count| **count > 1).sum();
        self.plan.excluded.sort_by_key(|(why, ..)| *why);
        self.plan
    }
}

#[cfg(test)]
mod tests;
