//! Settling chosen letters: each is acted upon, and only when that is safely done acked. The walk begins anew whenever what
//! it holds has been held long enough.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep_until};

use super::choice::{Choice, Chosen};
use super::{Desk, Looked, broker};
use crate::broker::reader::{WINDOW, Walk};
use crate::broker::{Delivery, Message};
use crate::cli::Error;
use crate::config::TopologyMode;
use crate::duration;

/// Deliveries that a queue of somebody else's may be expected to allow: half of what RabbitMQ 4 takes where nobody set a limit.
const USUAL: f64 = 10.0;

/// Letters acted upon at a time, at most.
const AT_A_TIME: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

/// How a pass over the chosen letters ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// Acted upon and acked.
    pub(super) settled: u64,
    /// Acted upon, but the broker may not have heard the ack: such a letter is there again.
    pub(super) unheard: u64,
    /// Whether a signal ended it.
    pub(super) interrupted: bool,
}

impl Passed {
    fn done(self) -> u64 {
        self.settled + self.unheard
    }
}

/// Why a pass ended early, and how far it came.
pub(super) struct Broken {
    pub(super) error: Error,
    pub(super) passed: Passed,
}

/// Limits how fast letters are acted upon: the time between two, and when the next one may be.
struct Pace(Option<(Duration, Instant)>);

impl Pace {
    fn new(rate: Option<f64>) -> Self {
        Self(rate.map(|rate| (Duration::from_secs_f64(1.0 / rate), Instant::now())))
    }

    async fn due(&self) {
        if let Some((_, next)) = self.0 {
            sleep_until(next).await;
        }
    }

    fn taken(&mut self) {
        if let Some((period, next)) = &mut self.0 {
            *next = Instant::now() + *period;
        }
    }
}

/// What follows a walk that left letters over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another one: this one came forward.
    Walk,
    /// Nothing: what is left is not there.
    End,
    /// Nothing: another one would not come farther, and would let everything go back once more.
    Unreached,
}

impl Next {
    fn after(overdue: bool, came_forward: bool) -> Self {
        match (came_forward, overdue) {
            (true, _) => Self::Walk,
            (false, true) => Self::Unreached,
            (false, false) => Self::End,
        }
    }
}

/// One walk among the chosen letters.
struct Round<'a> {
    desk: &'a Desk,
    walk: &'a mut Walk,
    pace: &'a mut Pace,
    chosen: &'a Chosen,
    failed: &'a std::sync::atomic::AtomicBool,
}

impl Round<'_> {
    /// The next chosen letter; none at the end, and when no more are to be taken.
    async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        let over = async |desk: &Desk| desk.stop.cancelled().await;
        while !self.failed.load(std::sync::atomic::Ordering::Relaxed) {
            let until = self.walk.until();
            // Others are held and not looked at again; nothing of a walk that is broken off is lost: it goes back.
            let next = tokio::select! {
                biased;
                () = over(self.desk) => return None,
                next = self.walk.next() => next,
            };
            match next {
                Ok(Some(delivery)) if self.chosen.contains(&delivery.message) => {
                    return tokio::select! {
                        biased;
                        () = over(self.desk) => None,
                        () = self.pace.due() => {
                            self.pace.taken();
                            Some(Ok(delivery))
                        }
                        () = sleep_until(until) => None,
                    };
                }
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => return Some(Err(broker(error))),
            }
        }
        None
    }
}

impl Desk {
    /// Lets `act` act upon each chosen letter and acks those upon which it could.
    pub(super) async fn settle(
        &self,
        chosen: &Chosen,
        choice: &Choice,
        looked: Looked,
        verb: &'static str,
        act: impl AsyncFn(&Message) -> Result<(), Error>,
    ) -> Result<Passed, Broken> {
        let mut passed = Passed::default();
        let bar = progress(chosen.count, verb);
        let mut pace = Pace::new(choice.rate);
        // No more on their way than a minute takes: they wait here meanwhile.
        let a_minute = choice.rate.map_or(f64::from(WINDOW), |rate| (rate * 60.0).ceil());
        let window = (1..=WINDOW).rev().find(|window| f64::from(*window) <= a_minute).unwrap_or(1);
        let mut walks = 0.0;
        let result = loop {
            let before = passed.done();
            let walked = self.walk_once(chosen, (&mut pace, window, choice.hold), &mut passed, &bar, &act).await;
            let overdue = match walked {
                Err(error) => break Err(error),
                Ok(_) if passed.interrupted || passed.done() >= chosen.count => break Ok(()),
                Ok(overdue) => overdue,
            };
            match Next::after(overdue, passed.done() > before) {
                Next::Walk => {}
                Next::End => break Ok(()),
                Next::Unreached => break Err(unreached(choice.hold)),
            }
            walks += 1.0;
            if self.wears_out(chosen, looked, walks + 1.0) {
                break Err(worn(chosen, walks));
            }
            // With nothing in hand: each walk that begins finds that its first letter is due.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    passed.interrupted = true;
                    break Ok(());
                }
                () = pace.due() => {}
            }
        };
        bar.finish_and_clear();
        match result {
            Ok(()) => Ok(passed),
            Err(error) => Err(Broken { error, passed }),
        }
    }

    /// One walk; whether it ended before the queue's end, since what it held had to go back.
    async fn walk_once(
        &self,
        chosen: &Chosen,
        (pace, window, hold): (&mut Pace, u16, Duration),
        passed: &mut Passed,
        bar: &ProgressBar,
        act: &impl AsyncFn(&Message) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut walk = Walk::begin(&self.connector, self.place(), window, hold).await.map_err(broker)?;
        let failed = std::sync::atomic::AtomicBool::new(false);
        let mut problem = None;
        {
            let round = Round { desk: self, walk: &mut walk, pace, chosen, failed: &failed };
            let letters = futures_util::stream::unfold(round, async |mut round| Some((round.next().await?, round)));
            let settling = letters.map(async |letter: Result<Delivery, Error>| {
                let Delivery { message, acker, .. } = letter?;
                act(&message).await?;
                // Some are large, and the broker may take its time.
                drop(message);
                Ok(acker.ack().await.is_ok())
            });
            let mut settling = std::pin::pin!(settling.buffer_unordered(AT_A_TIME.get()));
            // What is under way is finished even when something went wrong: its letter would else be met twice.
            while let Some(settled) = settling.next().await {
                match settled {
                    Ok(heard) => {
                        passed.settled += u64::from(heard);
                        passed.unheard += u64::from(!heard);
                        bar.inc(1);
                    }
                    Err(error) => {
                        failed.store(true, std::sync::atomic::Ordering::Relaxed);
                        problem.get_or_insert(error);
                    }
                }
            }
        }
        passed.interrupted = self.stop.is_cancelled();
        let overdue = walk.is_overdue();
        let ended = walk.end().await;
        match problem {
            Some(error) => Err(error),
            None => ended.map(|()| overdue).map_err(broker),
        }
    }

    /// Refuses what would let others' letters go back so often that a low delivery limit could drop them.
    pub(super) fn spare(&self, chosen: &Chosen, choice: &Choice, looked: Looked) -> Result<(), Error> {
        let walks = walks(chosen.count, choice, looked.took);
        match self.wears_out(chosen, looked, walks) {
            true => Err(Error::failed(format!("{}; nothing was done", worn(chosen, walks).message))),
            false => Ok(()),
        }
    }

    /// Whether so many walks are too many for the letters that are there and not chosen, on a queue of somebody else's.
    fn wears_out(&self, chosen: &Chosen, looked: Looked, walks: f64) -> bool {
        let theirs = self.config.broker.topology == TopologyMode::Verify && chosen.others > 0;
        let before = f64::from(i32::try_from(looked.deliveries).unwrap_or(i32::MAX));
        theirs && walks > 1.0 && walks + before > USUAL
    }
}

/// How many walks it takes, at least: by the rate, of which each lets one letter through, and by how long a look took.
fn walks(count: u64, choice: &Choice, look: Duration) -> f64 {
    let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let hold = choice.hold.as_secs_f64();
    let paced = choice.rate.map_or(0.0, |rate| (count / rate / hold).ceil().min(count));
    paced.max((look.as_secs_f64() / hold).ceil())
}

fn worn(chosen: &Chosen, walks: f64) -> Error {
    Error::failed(format!(
        "with this --hold and --rate the {} other letters would go back to the queue {walks} times or more, and a broker with \
         the usual delivery limit of 20 may drop them: raise --hold or --rate, take fewer letters at a time, or --all",
        chosen.others
    ))
}

fn unreached(hold: Duration) -> Error {
    Error::failed(format!(
        "none of the letters that are left was reached within --hold ({}): raise it, unless another instance of this tool \
         holds them",
        duration::format(hold)
    ))
}

/// Refuses to take for done what was not: letters that were chosen and not met, named and not there, or not looked at.
pub(super) fn all_met(chosen: &Chosen, looked: Looked, done: u64) -> Result<ExitCode, Error> {
    let gone = match chosen.count.saturating_sub(done) {
        0 => None,
        rest => Some(format!("{rest} are no longer there, or are held by another instance of this tool")),
    };
    let unseen =
        looked.overdue.then(|| "some letters were not looked at; the same command goes on with them".to_owned());
    let left: Vec<String> = [gone, chosen.missing(), unseen].into_iter().flatten().collect();
    if left.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Error::failed(left.join("\n"))) }
}

/// A progress bar, drawn on a terminal only.
fn progress(count: u64, verb: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(count);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(verb);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        choice: Choice,
    }

    fn choice(args: &[&str]) -> Choice {
        Line::try_parse_from([&["line", "--all"], args].concat()).unwrap().choice
    }

    #[test]
    fn a_walk_that_did_not_come_forward_is_the_last() {
        assert_eq!(Next::after(true, true), Next::Walk);
        assert_eq!(Next::after(false, true), Next::Walk, "for what came back late");
        assert_eq!(Next::after(true, false), Next::Unreached);
        assert_eq!(Next::after(false, false), Next::End);
    }

    #[test]
    fn walks_are_counted_by_rate_and_by_how_long_a_look_takes() {
        let second = Duration::from_secs(1);
        for (args, took, expected) in [
            (&["--hold", "1s"][..], second / 2, 1.0),
            (&["--hold", "1s"], second * 12, 12.0),
            (&["--hold", "1s", "--rate", "10"], second / 2, 3.0),
            (&["--hold", "1s", "--rate", "10"], second * 12, 12.0),
            (&["--hold", "1s", "--rate", "0.01"], second / 2, 30.0),
            (&[], second * 12, 1.0),
        ] {
            assert!((walks(30, &choice(args), took) - expected).abs() < 0.5, "{args:?} {took:?}");
        }
        assert!(Line::try_parse_from(["line", "--hold", "1ms"]).is_err(), "nothing is reached within that");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_due_at_once_and_then_when_its_time_has_passed() {
        let began = Instant::now();
        let mut pace = Pace::new(Some(2.0));
        for halves in 0..4 {
            pace.due().await;
            // Asking does not spend it.
            pace.due().await;
            pace.taken();
            assert_eq!(began.elapsed().as_millis() / 100, halves * 5);
        }
    }
}
