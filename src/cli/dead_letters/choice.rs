//! Which letters a command settles: counted first, confirmed by an operator, and then known by what they are, so that no
//! letter that arrived since is settled with them.

use std::collections::{BTreeSet, HashSet};
use std::io::{BufRead as _, IsTerminal as _};
use std::time::Duration;

use super::filter::{Filter, age};
use super::{Desk, HOLD, one_line};
use crate::broker::Message;
use crate::cli::Error;
use crate::message::dead_letter::DeadLetter;

/// Exit code of a wrong usage, as clap has it.
const USAGE: u8 = 2;
/// The longest that letters may be held: brokers end consumers that hold one for thirty minutes.
const MOST_HOLD: Duration = Duration::from_secs(20 * 60);
/// The shortest: what is chosen has to be reached within it.
const LEAST_HOLD: Duration = Duration::from_secs(1);

/// Which letters are settled, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Choice {
    /// Message ids, or the ids that a replay would give
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All letters that are there when the command begins
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Letters a second at most, such as 0.5
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(super) rate: Option<f64>,
    /// The longest that letters are held before they go back and are read anew; below the broker's consumer timeout
    #[arg(long, value_name = "DURATION", value_parser = hold, default_value = "5m")]
    pub(super) hold: Duration,
}

impl Choice {
    /// What the operator means.
    ///
    /// # Errors
    /// When nothing is said, or `--all` beside something else.
    pub(super) fn filter(&self) -> Result<Filter, Error> {
        let mut filter = self.filter.clone();
        filter.id.extend(self.ids.iter().cloned());
        let wrong = |text: &str| Err(Error { exit: USAGE, message: text.to_owned() });
        match (self.all, filter.is_given()) {
            (false, false) => wrong("say which letters: ids, a filter such as --kind, or --all; nothing was done"),
            (true, true) => wrong("--all means every letter: leave the ids and filters out; nothing was done"),
            (true, false) | (false, true) => Ok(filter),
        }
    }

    /// Asks the operator; without a terminal only `--yes` is a yes.
    ///
    /// # Errors
    /// When there is nobody to ask, or the answer is no.
    pub(super) async fn confirm(&self, desk: &Desk, question: &str) -> Result<(), Error> {
        if self.yes {
            return Ok(());
        }
        if desk.ask(&format!("{question} [y/N] ")).await? {
            return Ok(());
        }
        Err(Error::failed("nothing was done"))
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..=10_000.0).contains(rate));
    rate.ok_or_else(|| "allowed is a number from 0.001 to 10000".to_owned())
}

fn hold(text: &str) -> Result<Duration, String> {
    let allowed = LEAST_HOLD..=MOST_HOLD;
    Some(age(text)?).filter(|hold| allowed.contains(hold)).ok_or_else(|| "allowed is 1s to 20m".to_owned())
}

impl Desk {
    /// A question to the person at the terminal.
    ///
    /// # Errors
    /// When there is no terminal.
    pub(super) async fn ask(&self, question: &str) -> Result<bool, Error> {
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Err(Error::failed(
                "there is no terminal to ask on: nothing was done; --yes takes the answer for given",
            ));
        }
        eprint!("{question}");
        let (answer, answered) = tokio::sync::oneshot::channel();
        // A thread of its own: nothing can interrupt its reading but the end of the process.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            let _ = answer.send(read.map(|_| line));
        });
        tokio::select! {
            () = self.stop.cancelled() => Err(Error::failed("interrupted; nothing was done")),
            answered = answered => {
                let line = answered.map_err(Error::failed)?.map_err(Error::failed)?;
                Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
            }
        }
    }
}

/// The letters that were chosen, by what they are; some bytes each.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    prints: HashSet<u128>,
    /// Those of several letters that nothing tells apart, not even an id.
    twins: HashSet<u128>,
    /// Ids that were named and that no letter has.
    missing: BTreeSet<String>,
    /// How many letters that is: some may be alike.
    pub(super) count: u64,
    pub(super) possibly_created: u64,
    pub(super) replayed_before: u64,
    pub(super) without_id: u64,
    /// How many are twins: whatever their number, those of one kind are given one id and make one task.
    pub(super) alike: u64,
    /// Letters that are there and were not chosen: each pass holds them.
    pub(super) others: u64,
}

impl Chosen {
    /// None yet, of those that a filter names.
    pub(super) fn of(filter: &Filter) -> Self {
        Self { missing: filter.id.iter().cloned().collect(), ..Self::default() }
    }

    /// Notes that a letter is there which is meant, be it chosen or not.
    pub(super) fn found(&mut self, letter: &DeadLetter) {
        self.missing.remove(letter.id());
    }

    pub(super) fn add(&mut self, print: u128, letter: &DeadLetter) {
        let first = self.prints.insert(print);
        if !first && letter.message_id.is_none() {
            self.alike += if self.twins.insert(print) { 2 } else { 1 };
        }
        self.count += 1;
        self.possibly_created += u64::from(letter.possibly_created);
        self.replayed_before += u64::from(letter.replay_count > 0);
        self.without_id += u64::from(letter.message_id.is_none());
    }

    /// How many tasks they make at most.
    pub(super) fn tasks(&self) -> u64 {
        self.count - self.alike + self.twins.len() as u64
    }

    /// Which of the ids that were named no letter has.
    pub(super) fn missing(&self) -> Option<String> {
        let ids: Vec<&str> = self.missing.iter().map(String::as_str).collect();
        let text =
            || format!("no such letter: {}; another instance of this tool may hold it", one_line(&ids.join(", ")));
        (!ids.is_empty()).then(text)
    }

    pub(super) fn contains(&self, message: &Message) -> bool {
        self.prints.contains(&crate::message::dead_letter::replay::fingerprint(message))
    }
}

/// The hold that looking takes is one that [`Choice`] allows.
const _: () = assert!(HOLD.as_secs() <= MOST_HOLD.as_secs());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::dead_letter::replay::fingerprint;

    #[test]
    fn letters_that_nothing_tells_apart_make_one_task() {
        let mut chosen = Chosen::default();
        for (body, id) in [("a", None), ("b", None), ("a", None), ("a", None), ("c", Some("c")), ("c", Some("c"))] {
            let mut message = Message { body: body.into(), ..Message::default() };
            if let Some(id) = id {
                message.properties = message.properties.with_message_id(id.into());
            }
            chosen.add(fingerprint(&message), &DeadLetter::read(&message));
        }
        assert_eq!((chosen.count, chosen.without_id, chosen.alike, chosen.tasks()), (6, 4, 3, 4));
    }
}
