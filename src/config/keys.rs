//! Every key that the configuration knows: the one table behind loading, messages, `config` and the documentation.

use crate::duration;

mod pages;
mod table;

pub use pages::{explain, markdown_page, template};
pub use table::KEYS;

/// One row of the configuration's table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section and key: `crm.server`.
    pub name: &'static str,
    /// What holds where nothing is written.
    pub preset: Preset,
    /// What may be written.
    pub kind: Kind,
    /// What it is for, in sentences.
    pub meaning: &'static str,
    /// Whether it takes several entries.
    pub list: bool,
    /// Whether it is never shown, and may be given as `<key>_file`.
    pub secret: bool,
}

/// See [`Key::preset`].
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// This text.
    Text(&'static str),
    /// Something that depends on other values, described here.
    Derived(&'static str),
    /// Nothing: a command that uses the key demands it.
    Required,
    /// Nothing, and that is fine.
    Absent,
}

/// See [`Key::kind`].
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// What these words say.
    Like(&'static str),
    /// One of these.
    Choice(&'static [&'static str]),
    /// A duration from the first to the second.
    Duration(&'static str, &'static str),
    /// A whole number from the first to the second.
    Count(u64, u64),
    /// A queue's name of at most so many bytes.
    Queue(usize),
}

/// The most API tokens: with the most requests a token they stay below what a prefetch count holds.
pub(super) const MOST_TOKENS: usize = 64;
/// The most delayed rounds.
pub(super) const MOST_DELAYS: usize = 20;
/// A queue's name in AMQP.
const QUEUE_BYTES: usize = 255;
/// What the work queue's name leaves free for its longest companion's.
const SUFFIX_BYTES: usize = ".retry.86399999ms".len();

const fn key(name: &'static str, preset: Preset, kind: Kind, meaning: &'static str) -> Key {
    Key { name, preset, kind, meaning, list: false, secret: false }
}

impl Key {
    const fn list(mut self) -> Self {
        self.list = true;
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// What may be written, in words.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Duration(least, most) => {
                format!("{}, from {least} to {most}", duration::ALLOWED)
            }
            Kind::Like(_) | Kind::Choice(_) | Kind::Count(..) | Kind::Queue(_) => self.brief(),
        }
    }

    /// The same for the documentation, which says once what a duration is.
    fn brief(&self) -> String {
        match self.kind {
            Kind::Like(words) => words.to_owned(),
            Kind::Choice(names) => names.join(" or "),
            Kind::Duration(least, most) => format!("{least} to {most}"),
            Kind::Count(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Queue(most) => {
                format!("1 to {most} bytes without control characters, not beginning with amq.")
            }
        }
    }

    /// The names under which it may be written: itself, and for a secret also `<key>_file`.
    pub(super) fn slots(&self) -> impl Iterator<Item = String> {
        let file = self.secret.then(|| format!("{}_file", self.name));
        std::iter::once(self.name.to_owned()).chain(file)
    }

    /// The environment variables under which it may be written.
    pub fn variables(&self) -> Vec<String> {
        self.slots().map(|slot| variable(&slot)).collect()
    }
}

/// The environment variable of a key: `crm.server` is `WTW_CRM_SERVER`.
#[must_use]
pub fn variable(name: &str) -> String {
    format!("WTW_{}", name.replace('.', "_").to_uppercase())
}

/// The row of a key.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_has_a_section_and_a_variable_of_its_own() {
        let names: Vec<String> = KEYS.iter().flat_map(Key::slots).collect();
        let variables: HashSet<String> = names.iter().map(|name| variable(name)).collect();
        assert_eq!(variables.len(), names.len());
        assert!(names.iter().all(|name| name.matches('.').count() == 1));
        assert_eq!(variable("crm.server"), "WTW_CRM_SERVER");
        assert!(!variables.contains("WTW_CONFIG"));
    }

    #[test]
    fn the_bounds_in_words_are_the_bounds_in_code() {
        assert!(find("crm.tokens").unwrap().allowed().contains(&MOST_TOKENS.to_string()));
        assert!(find("retry.delays").unwrap().allowed().contains(&MOST_DELAYS.to_string()));
    }
}
