//! What is shown while it runs: a progress bar on a terminal, else a line now and then.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::seen::Seen;

/// Between two lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(2);

/// Prints a line; a reader that has gone away is no failure.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// The progress of the messages.
pub(crate) struct Screen {
    /// On a terminal.
    bar: Option<ProgressBar>,
    began: Instant,
    next_line: Duration,
}

impl Screen {
    pub(crate) fn new(total: usize) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let length = u64::try_from(total).ok();
            let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stdout());
            let form = "  {elapsed:>4}  {bar:30} {pos:>3} of {len}  {msg}";
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style.progress_chars("━━╌"));
            }
            bar
        });
        Self { bar, began: Instant::now(), next_line: EVERY }
    }

    /// Tells of something that happened.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("  {:>4.1} s  {text}", self.began.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None => print(&line),
        }
    }

    /// Shows how far it is.
    pub(crate) fn show(&mut self, seen: &Seen) {
        let gate = seen.gate.as_deref().map_or_else(|| "gate open".to_owned(), |why| format!("gate closed: {why}"));
        let (created, dead) = (seen.created, seen.dead_lettered);
        let counts = format!("{created} created, {dead} dead-lettered, {gate}");
        if let Some(bar) = &self.bar {
            bar.set_message(counts);
            bar.set_position(seen.settled());
        } else if self.began.elapsed() >= self.next_line {
            self.next_line += EVERY;
            self.say(&format!("{:>3} settled: {counts}", seen.settled()));
        }
    }

    /// Takes the bar away and tells how long it took.
    pub(crate) fn finish(self) -> Duration {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.began.elapsed()
    }
}
