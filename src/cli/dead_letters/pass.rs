//! Settling chosen letters: each is acted upon, and only when that is safely done acked. The walk begins anew whenever what
//! it holds has been held long enough.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::choice::{Choice, Chosen};
use super::{Desk, broker};
use crate::broker::reader::{WINDOW, Walk};
use crate::broker::{Delivery, Message};
use crate::cli::Error;
use crate::config::TopologyMode;

/// Deliveries that a queue of somebody else's may be expected to allow: half of what RabbitMQ 4 takes where nobody set a limit.
const USUAL: i32 = 10;

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

/// Limits how fast letters are acted upon.
struct Pace(Option<Interval>);

impl Pace {
    fn new(rate: Option<f64>) -> Self {
        Self(rate.map(|rate| {
            let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        }))
    }

    async fn wait(&mut self) {
        if let Some(ticks) = &mut self.0 {
            ticks.tick().await;
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
                        () = self.pace.wait() => Some(Ok(delivery)),
                        () = tokio::time::sleep_until(until) => None,
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
        verb: &'static str,
        act: impl AsyncFn(&Message) -> Result<(), Error>,
    ) -> Result<Passed, Broken> {
        let mut passed = Passed::default();
        let bar = progress(chosen.count, verb);
        let mut pace = Pace::new(choice.rate);
        // No more on their way than a minute takes: they wait here meanwhile.
        let a_minute = choice.rate.map_or(f64::from(WINDOW), |rate| (rate * 60.0).ceil());
        let window = (1..=WINDOW).rev().find(|window| f64::from(*window) <= a_minute).unwrap_or(1);
        let result = loop {
            let before = passed.done();
            match self.walk_once(chosen, (&mut pace, window, choice.hold), &mut passed, &bar, &act).await {
                Err(error) => break Err(error),
                Ok(_) if passed.interrupted || passed.done() >= chosen.count => break Ok(()),
                Ok(overdue) if overdue || passed.done() > before => {}
                // The rest is not there.
                Ok(_) => break Ok(()),
            }
        };
        bar.finish_and_clear();
        match result {
            Ok(()) => Ok(passed),
            Err(error) => Err(Broken { error, passed }),
        }
    }

    /// One walk; whether another one has to follow.
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
                let letter = letter?;
                act(&letter.message).await?;
                Ok(letter.receipt.ack().await.is_ok())
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
    pub(super) fn spare(&self, chosen: &Chosen, choice: &Choice, deliveries: i64) -> Result<(), Error> {
        let ours = self.config.broker.topology == TopologyMode::Declare;
        let Some(rate) = choice.rate.filter(|_| !ours && chosen.others > 0) else {
            return Ok(());
        };
        let count = u32::try_from(chosen.count).unwrap_or(u32::MAX);
        let walks = (f64::from(count) / rate / choice.hold.as_secs_f64()).ceil();
        if walks + f64::from(i32::try_from(deliveries).unwrap_or(i32::MAX)) <= f64::from(USUAL) {
            return Ok(());
        }
        Err(Error::failed(format!(
            "at this rate the {} other letters would go back to the queue {walks} times, and a broker with the usual delivery \
             limit of 20 may drop them: take a higher --rate, fewer letters at a time, or --all; nothing was done",
            chosen.others
        )))
    }
}

/// Refuses to take letters that were chosen and not met for done.
pub(super) fn all_met(count: u64, done: u64) -> Result<ExitCode, Error> {
    match count.saturating_sub(done) {
        0 => Ok(ExitCode::SUCCESS),
        rest => Err(Error::failed(format!("{rest} are no longer there, or are held by another instance of this tool"))),
    }
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
