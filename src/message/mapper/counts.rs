//! Counts what each rule has done, for metrics and `/status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;

use super::Mapped;
use crate::message::failure::{Failure, Kind};
use crate::message::rules::{Reason, Trace};
use crate::sync::lock;

/// What one rule has done since the process started. A message counts each time it is mapped, also on a retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCounts {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Messages that matched, whether or not the task was valid.
    pub matched: u64,
    /// Messages that it skipped.
    pub skipped: u64,
    /// Messages for which it failed.
    pub failed: u64,
    /// Messages that lack what its `when` compares.
    pub condition_errors: u64,
    /// When it last matched a message.
    pub last_match: Option<Timestamp>,
}

#[derive(Default)]
pub(super) struct Counts(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// The names of the current rules, in order.
    order: Vec<Arc<str>>,
    /// Also counts of earlier rules, because a counter must never decrease.
    by_name: BTreeMap<Arc<str>, RuleCounts>,
    /// Messages that no rule matched.
    unmatched: u64,
}

impl Inner {
    fn of(&mut self, rule: &Arc<str>) -> &mut RuleCounts {
        self.by_name.entry(Arc::clone(rule)).or_insert_with(|| RuleCounts {
            rule: Arc::clone(rule),
            matched: 0,
            skipped: 0,
            failed: 0,
            condition_errors: 0,
            last_match: None,
        })
    }
}

impl Counts {
    /// Sets the current rules. Counts of earlier ones are kept, up to the largest number of rules.
    pub(super) fn track<'a>(&self, names: impl Iterator<Item = &'a Arc<str>>) {
        let mut inner = lock(&self.0);
        inner.order = names.cloned().collect();
        if inner.by_name.len() > crate::config::MAX_RULES {
            let Inner { order, by_name, .. } = &mut *inner;
            by_name.retain(|name, _| order.contains(name));
        }
    }

    pub(super) fn add(&self, trace: &Trace, result: &Result<Mapped, Failure>, now: Timestamp) {
        let missing = |(_, reason): &&(Arc<str>, Reason)| matches!(reason, Reason::Missing(_));
        let mut inner = lock(&self.0);
        for (rule, _) in trace.passed.iter().filter(missing) {
            inner.of(rule).condition_errors += 1;
        }
        let failed = result.as_ref().err();
        let rule = trace.chosen.as_ref().or_else(|| failed.and_then(|failure| failure.rule.as_ref()));
        let Some(rule) = rule else {
            let is_unmatched = failed.is_none_or(|failure| failure.kind == Kind::Unmatched);
            inner.unmatched += u64::from(is_unmatched);
            return;
        };
        let counts = inner.of(rule);
        if trace.chosen.is_some() {
            counts.last_match = Some(now);
        }
        match (result, failed.map(|failure| failure.kind)) {
            (Ok(Mapped::Skip { .. }), _) => counts.skipped += 1,
            (Ok(Mapped::Send { .. }), _) | (_, Some(Kind::InvalidTask)) => counts.matched += 1,
            (Err(_), _) => counts.failed += 1,
        }
    }

    pub(super) fn unmatched(&self) -> u64 {
        lock(&self.0).unmatched
    }

    pub(super) fn read(&self) -> Vec<RuleCounts> {
        let mut inner = lock(&self.0);
        let order = inner.order.clone();
        order.iter().map(|rule| inner.of(rule).clone()).collect()
    }
}
