//! One question about an account with its answer, and the facts that answers come from. Pure.

use serde::Serialize;
use serde_json::{Map, Value};

use super::plan::ReportPlan;
use super::run::{Run, Step};
use super::test_task::{ID, id_of};
use crate::config;

/// How far a finding can be trusted. Each question says which answers make it certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Confidence {
    /// The answers show it: there is no other reading of them.
    Certain,
    /// The answers suggest it. Too few calls, other programs or a wrong clock can give the same answers.
    Likely,
    /// The answers do not show it, for example because the call was refused.
    Unknown,
}

impl Confidence {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Likely => "likely",
            Self::Unknown => "unknown",
        }
    }
}

/// One question about the account, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The question, the same in every report.
    pub(super) about: &'static str,
    /// The answer as one word, or a value.
    pub(super) answer: String,
    /// The answer in a sentence. It quotes nothing from the CRM or from a proxy.
    pub(super) words: String,
    /// The words of the CRM, or of a proxy or firewall in front of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) said: Option<String>,
    /// The numbers of the exchanges that show it.
    pub(super) evidence: Vec<usize>,
    pub(super) confidence: Confidence,
    /// What to set in the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) set: Option<String>,
}

impl Finding {
    pub(super) fn new(about: &'static str, answer: impl Into<String>, words: impl Into<String>) -> Self {
        let (answer, words) = (answer.into(), words.into());
        Self { about, answer, words, said: None, evidence: Vec::new(), confidence: Confidence::Certain, set: None }
    }

    /// A finding that the answers do not settle. `why` says why they do not.
    pub(super) fn unknown(about: &'static str, why: impl Into<String>) -> Self {
        Self::new(about, "unknown", why).with(Confidence::Unknown)
    }

    pub(super) fn likely(self) -> Self {
        self.with(Confidence::Likely)
    }

    pub(super) fn with(self, confidence: Confidence) -> Self {
        Self { confidence, ..self }
    }

    pub(super) fn said(self, said: Option<impl Into<String>>) -> Self {
        Self { said: said.map(Into::into).filter(|said: &String| !said.is_empty()), ..self }
    }

    pub(super) fn from(self, evidence: impl IntoIterator<Item = usize>) -> Self {
        Self { evidence: evidence.into_iter().collect(), ..self }
    }

    pub(super) fn set(self, what: impl Into<String>) -> Self {
        Self { set: Some(what.into()), ..self }
    }
}

/// The input of every finding: what was planned, what was sent and answered, and the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) plan: &'a ReportPlan,
    pub(super) run: &'a Run,
    pub(super) config: &'a config::Crm,
}

impl<'a> Facts<'a> {
    pub(super) fn step(&self, name: &str) -> Option<&'a Step> {
        self.run.step(name)
    }

    pub(super) fn number(&self, step: &Step) -> usize {
        self.run.number(step)
    }

    /// Whether the task is in the CRM: the answer to the insert or a search says so.
    pub(super) fn is_created(&self) -> bool {
        self.step("insert").is_some_and(Step::is_accepted) || self.found_task().is_some()
    }

    /// The first search that found the task, and the task as it was found.
    pub(super) fn found_task(&self) -> Option<(&'a Step, &'a Map<String, Value>)> {
        self.run.steps.iter().find_map(|step| Some((step, step.found.as_ref()?)))
    }

    /// The id of the task, from the answer to the insert or from a search.
    pub(super) fn task_id(&self) -> Option<String> {
        let answered = self.run.inserted_id();
        answered.or_else(|| id_of(self.found_task()?.1.get(ID)?))
    }
}
