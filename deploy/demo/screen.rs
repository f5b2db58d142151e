//! Shows the progress: a bar on a terminal, otherwise a line every two seconds.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::seen::Seen;

/// The time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Prints a line. A closed output is not an error.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// The progress of the messages.
pub(crate) struct Screen {
    /// `None` without a terminal.
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
        Self { bar, began: Instant::now(), next_line: LINE_INTERVAL }
    }

    /// Prints an event with its time.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("  {:>4.1} s  {text}", self.began.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None => print(&line),
        }
    }

    /// Shows the progress.
    pub(crate) fn show(&mut self, seen: &Seen) {
        let gate = seen.gate.as_deref().map_or_else(|| "gate open".to_owned(), |why| format!("gate closed: {why}"));
        let (created, dead) = (seen.created, seen.dead_lettered);
        let counts = format!("{created} created, {dead} dead-lettered, {gate}");
        if let Some(bar) = &self.bar {
            bar.set_message(counts);
            bar.set_position(seen.settled());
        } else if self.began.elapsed() >= self.next_line {
            self.next_line += LINE_INTERVAL;
            self.say(&format!("{:>3} settled: {counts}", seen.settled()));
        }
    }

    /// Removes the bar and returns the time since the start.
    pub(crate) fn finish(self) -> Duration {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.began.elapsed()
    }
}
