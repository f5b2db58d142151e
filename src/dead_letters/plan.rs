//! What an action would do, counted before an operator agrees: which messages, what they cost, and which ones stay and why.

use std::collections::{HashMap, HashSet};

use super::entry::Entry;
use super::known::{Known, Standing, standing};
use super::{Source, found};

/// Ids that the ledger is asked about at a time.
const AT_A_TIME: usize = 100;
/// Ids that are named for each reason why messages stay.
const NAMED: usize = 5;

/// A message that an action may be about.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What tells it from all others.
    pub fingerprint: u128,
    /// Which queue it is on.
    pub source: Source,
    /// Its message id, or the id that a replay gives it.
    pub id: Box<str>,
    /// Whether the publisher gave it an id.
    pub has_id: bool,
    /// Whether it was replayed before.
    pub replayed_before: bool,
    /// Whether its task may exist, as far as the message tells.
    pub possibly_created: bool,
    /// Whether the broker dead-lettered it.
    pub by_broker: bool,
    /// The digests of its body: as it is, and as it would be sent.
    pub digests: Vec<[u8; 32]>,
    /// Why its body would be refused, where that is known.
    pub refused: Option<String>,
}

impl Candidate {
    /// The candidate of an entry whose body has that digest.
    #[must_use]
    pub fn new(entry: &Entry, digest: [u8; 32]) -> Self {
        Self {
            fingerprint: entry.fingerprint,
            source: entry.source,
            id: entry.id.clone(),
            has_id: entry.has_id,
            replayed_before: entry.replays > 0,
            possibly_created: entry.possibly_created,
            by_broker: entry.source == Source::Broker || entry.kind.starts_with(found::BROKER_KIND),
            digests: vec![digest],
            refused: None,
        }
    }
}

/// What an operator allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// Messages whose task may exist, too.
    pub in_doubt: bool,
    /// Messages that would be refused again as they are, too.
    pub refused: bool,
    /// The message gets a new id, so that what the ledger knows of its old one does not matter.
    pub new_id: bool,
}

/// Why a message stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stays {
    /// Its task may exist.
    InDoubt,
    /// Its task was created.
    Created,
    /// Its id created the task of another body.
    IdTaken,
    /// The change does not make it good.
    Refused,
}

impl Stays {
    /// The reason in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::InDoubt => "their task may exist already",
            Self::Created => "their task was created, as the ledger says",
            Self::IdTaken => "their id created the task of another body",
            Self::Refused => "they would be refused all the same",
        }
    }
}

/// A message that the action is about.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// What tells it from all others.
    pub fingerprint: u128,
    /// Its message id.
    pub id: Box<str>,
    /// Whether its task may exist.
    pub in_doubt: bool,
}

/// What an action would do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The messages that it is about.
    pub chosen: Vec<Chosen>,
    /// How many of them may have created their task.
    pub in_doubt: u64,
    /// How many of them were replayed before.
    pub replayed_before: u64,
    /// How many of them have no id of their publisher's.
    pub without_id: u64,
    /// How many of those are exactly like another one: they are given one id and make one task together.
    pub alike: u64,
    /// How many different ones those are.
    twins: u64,
    /// How many of them would be refused as they are.
    pub refused_again: u64,
    /// How many stay, by reason, with the ids of some.
    pub stay: Vec<(Stays, u64, Vec<Box<str>>)>,
    /// An example of why a change does not make a message good.
    pub refused: Option<String>,
    /// Why the ledger could not be asked.
    pub unasked: Option<String>,
}

impl Plan {
    /// Counts what a replay of these messages would do.
    pub async fn replay(candidates: Vec<Candidate>, known: &Known, allowed: Allowed) -> Self {
        let mut counting = Counting::default();
        for some in candidates.chunks(AT_A_TIME) {
            let standings = counting.ask(some, known).await;
            for (candidate, standing) in some.iter().zip(standings) {
                counting.add(candidate, standing, allowed);
            }
        }
        counting.done()
    }

    /// Counts what a discard of these messages would do: all of them are taken.
    #[must_use]
    pub fn discard(candidates: &[Candidate]) -> Self {
        let mut counting = Counting::default();
        for candidate in candidates {
            let standing = if candidate.possibly_created { Standing::InDoubt } else { Standing::NotCreated };
            counting.add(candidate, standing, Allowed { in_doubt: true, refused: true, new_id: false });
        }
        counting.done()
    }

    /// Counts a discard of those messages whose task was created.
    ///
    /// # Errors
    /// Why the ledger cannot be asked.
    pub async fn discard_created(candidates: Vec<Candidate>, known: &Known) -> Result<Self, String> {
        let mut created = Vec::new();
        let mut counting = Counting::default();
        for some in candidates.chunks(AT_A_TIME) {
            let standings = counting.ask(some, known).await;
            if let Some(why) = counting.plan.unasked.take() {
                return Err(why);
            }
            let those = some.iter().zip(standings).filter(|(_, standing)| *standing == Standing::Created);
            created.extend(those.map(|(candidate, _)| candidate.clone()));
        }
        Ok(Self::discard(&created))
    }

    /// How many messages it is about.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.chosen.len() as u64
    }

    /// How many tasks they make at most, each of which costs one call at least.
    #[must_use]
    pub fn tasks(&self) -> u64 {
        self.count() - self.alike + self.twins
    }

    /// What an operator must know of a replay before saying yes, a line each.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let calls = if self.tasks() == 1 { "call" } else { "calls" };
        let all = [
            (self.tasks(), format!("{calls} of the CRM's daily quota at least; more where a message is tried again")),
            (self.in_doubt, "of them may have created their task, and may create a second one".to_owned()),
            (self.replayed_before, "of them were replayed before".to_owned()),
            (self.without_id, "of them have no id and are given one derived from what they hold".to_owned()),
            (
                self.alike,
                "of them have no id and are exactly like another one: those that are alike make one task together"
                    .to_owned(),
            ),
            (
                self.refused_again,
                "of them would be refused again as they are; each one's page, or \"show\", says why".to_owned(),
            ),
        ];
        all.into_iter().filter(|(count, _)| *count > 0).map(|(count, text)| format!("{count} {text}")).collect()
    }

    /// What they are known by.
    #[must_use]
    pub fn fingerprints(&self) -> HashSet<u128> {
        self.chosen.iter().map(|chosen| chosen.fingerprint).collect()
    }

    /// How many stay for a reason, and the ids of some.
    #[must_use]
    pub fn staying(&self, why: Stays) -> (u64, &[Box<str>]) {
        let found = self.stay.iter().find(|(reason, ..)| *reason == why);
        found.map_or((0, &[]), |(_, count, ids)| (*count, ids))
    }
}

#[derive(Default)]
struct Counting {
    plan: Plan,
    /// How often each message without an id was met.
    nameless: HashMap<u128, u64>,
}

impl Counting {
    async fn ask(&mut self, some: &[Candidate], known: &Known) -> Vec<Standing> {
        let ids: Vec<String> = some.iter().map(|candidate| candidate.id.to_string()).collect();
        // Once is enough: the worker asks its ledger again before it sends.
        let entries = match &self.plan.unasked {
            None => known.get(&ids).await.map_err(|why| self.plan.unasked = Some(why)).ok(),
            Some(_) => None,
        };
        let entries = entries.unwrap_or_default();
        let stand = |(n, candidate): (usize, &Candidate)| {
            standing(entries.get(n), candidate.possibly_created, candidate.by_broker, &candidate.digests)
        };
        some.iter().enumerate().map(stand).collect()
    }

    fn add(&mut self, candidate: &Candidate, standing: Standing, allowed: Allowed) {
        let stays = match standing {
            Standing::Created => Some(Stays::Created),
            Standing::IdTaken if allowed.new_id => None,
            Standing::IdTaken => Some(Stays::IdTaken),
            Standing::InDoubt if !allowed.in_doubt => Some(Stays::InDoubt),
            Standing::InDoubt | Standing::NotCreated if candidate.refused.is_some() && !allowed.refused => {
                Some(Stays::Refused)
            }
            Standing::InDoubt | Standing::NotCreated => None,
        };
        if let Some(why) = stays {
            self.stay(candidate, why);
            return;
        }
        let plan = &mut self.plan;
        plan.in_doubt += u64::from(standing == Standing::InDoubt);
        plan.replayed_before += u64::from(candidate.replayed_before);
        plan.without_id += u64::from(!candidate.has_id);
        plan.refused_again += u64::from(candidate.refused.is_some());
        if !candidate.has_id {
            *self.nameless.entry(candidate.fingerprint).or_default() += 1;
        }
        plan.chosen.push(Chosen {
            fingerprint: candidate.fingerprint,
            id: candidate.id.clone(),
            in_doubt: standing == Standing::InDoubt,
        });
    }

    fn stay(&mut self, candidate: &Candidate, why: Stays) {
        let plan = &mut self.plan;
        if why == Stays::Refused {
            plan.refused = plan.refused.take().or_else(|| candidate.refused.clone());
        }
        let at = plan.stay.iter().position(|(reason, ..)| *reason == why);
        let at = at.unwrap_or_else(|| {
            plan.stay.push((why, 0, Vec::new()));
            plan.stay.len() - 1
        });
        if let Some((_, count, ids)) = plan.stay.get_mut(at) {
            *count += 1;
            if ids.len() < NAMED {
                ids.push(candidate.id.clone());
            }
        }
    }

    fn done(mut self) -> Plan {
        let twins = self.nameless.values().filter(|count| **count > 1);
        self.plan.alike = twins.clone().sum();
        self.plan.twins = twins.count() as u64;
        self.plan.stay.sort_by_key(|(why, ..)| *why);
        self.plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(fingerprint: u128, id: Option<&str>) -> Candidate {
        Candidate {
            fingerprint,
            source: Source::Dead,
            id: id.unwrap_or("replay-x").into(),
            has_id: id.is_some(),
            replayed_before: false,
            possibly_created: false,
            by_broker: false,
            digests: vec![[0; 32]],
            refused: None,
        }
    }

    #[test]
    fn messages_that_nothing_tells_apart_make_one_task() {
        let all = [(1, None), (2, None), (1, None), (1, None), (3, Some("c")), (3, Some("c"))];
        let plan = Plan::discard(&all.map(|(print, id)| candidate(print, id)));
        assert_eq!((plan.count(), plan.without_id, plan.alike, plan.tasks()), (6, 4, 3, 4));
    }

    #[tokio::test]
    async fn what_is_in_doubt_stays_unless_it_is_allowed_and_what_is_refused_is_told() {
        let unavailable = Known::Unavailable("no ledger".to_owned());
        let candidates = || {
            let doubtful = Candidate { possibly_created: true, ..candidate(1, Some("a")) };
            let refused = Candidate { refused: Some("name: is missing".to_owned()), ..candidate(2, Some("b")) };
            vec![doubtful, refused, candidate(3, Some("c"))]
        };
        let plan = Plan::replay(candidates(), &unavailable, Allowed::default()).await;
        assert_eq!((plan.count(), plan.in_doubt, plan.unasked.as_deref()), (1, 0, Some("no ledger")));
        assert_eq!(plan.staying(Stays::InDoubt).0, 1);
        assert_eq!((plan.staying(Stays::Refused).0, plan.refused.as_deref()), (1, Some("name: is missing")));
        let allowed = Allowed { in_doubt: true, refused: true, new_id: false };
        let plan = Plan::replay(candidates(), &unavailable, allowed).await;
        assert_eq!((plan.count(), plan.in_doubt, plan.refused_again), (3, 1, 1));
    }
}
