//! The table of all configuration keys. Loading, errors, `config` and the documentation use it.

use crate::{count, duration};

mod pages;
mod table;

pub use pages::{explain, markdown_page, template};
pub use table::KEYS;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section and key: `crm.server`.
    pub name: &'static str,
    /// The default.
    pub preset: Preset,
    /// What is allowed.
    pub kind: Kind,
    /// What it does, in sentences.
    pub meaning: &'static str,
    /// Whether it is a list.
    pub is_list: bool,
    /// Whether it is a secret: never shown, and readable from `<key>_file`.
    pub is_secret: bool,
}

/// The default of a key.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// This text.
    Text(&'static str),
    /// It depends on other values, as this text describes.
    Derived(&'static str),
    /// There is none, and a command that uses the key requires a value.
    Required,
    /// There is none, and none is required.
    Absent,
}

/// What a key allows.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// What this text says.
    Like(&'static str),
    /// One of these names.
    Choice(&'static [&'static str]),
    /// A duration within these bounds.
    Duration(&'static str, &'static str),
    /// A whole number within these bounds.
    Count(u64, u64),
    /// A queue's name of at most this many bytes.
    Queue(usize),
}

/// The most API tokens. With the most requests per token, they stay below the largest prefetch count.
pub(super) const MAX_TOKENS: usize = 64;
/// The most delayed rounds.
pub(super) const MAX_DELAYS: usize = 20;
/// The longest queue name in AMQP.
const MAX_QUEUE_BYTES: usize = 255;
/// The longest work queue name that leaves room for the longest suffix of our other queues.
const SUFFIX_BYTES: usize = ".retry.86399999ms".len();

const fn key(name: &'static str, preset: Preset, kind: Kind, meaning: &'static str) -> Key {
    Key { name, preset, kind, meaning, is_list: false, is_secret: false }
}

impl Key {
    const fn list(mut self) -> Self {
        self.is_list = true;
        self
    }

    const fn secret(mut self) -> Self {
        self.is_secret = true;
        self
    }

    /// What is allowed, in words.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Duration(least, most) => {
                format!("{}, from {least} to {most}", duration::ALLOWED)
            }
            Kind::Like(_) | Kind::Choice(_) | Kind::Count(..) | Kind::Queue(_) => self.brief(),
        }
    }

    /// The same for the documentation, which explains durations once.
    fn brief(&self) -> String {
        match self.kind {
            Kind::Like(words) => words.to_owned(),
            Kind::Choice(names) => count::alternatives(names),
            Kind::Duration(least, most) => format!("{least} to {most}"),
            Kind::Count(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Queue(most) => {
                format!("1 to {most} bytes without control characters, not beginning with \"amq.\"")
            }
        }
    }

    /// The names of the key: its own, and for a secret also `<key>_file`.
    pub(super) fn slots(&self) -> impl Iterator<Item = String> {
        let file = self.is_secret.then(|| format!("{}_file", self.name));
        std::iter::once(self.name.to_owned()).chain(file)
    }

    /// The environment variables of the key.
    pub fn variables(&self) -> Vec<String> {
        self.slots().map(|slot| variable(&slot)).collect()
    }
}

/// The environment variable of a key: `crm.server` is `WTW_CRM_SERVER`.
#[must_use]
pub fn variable(name: &str) -> String {
    format!("WTW_{}", name.replace('.', "_").to_uppercase())
}

/// Looks a row up by its key.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn key_has_a_section_and_a_variable_of_its_own() {
        let names: Vec<String> = KEYS.iter().flat_map(Key::slots).collect();
        let variables: HashSet<String> = names.iter().map(|name| variable(name)).collect();
        assert_eq!(variables.len(), names.len());
        assert!(names.iter().all(|name| name.matches('.').count() == 1));
        assert_eq!(variable("crm.server"), "WTW_CRM_SERVER");
        assert!(!variables.contains("WTW_CONFIG"));
    }

    #[test]
    fn bounds_in_words_match_the_code() {
        assert!(find("crm.tokens").unwrap().allowed().contains(&MAX_TOKENS.to_string()));
        assert!(find("retry.delays").unwrap().allowed().contains(&MAX_DELAYS.to_string()));
    }
}
