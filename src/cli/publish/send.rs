//! Publishes many messages at the same time, and reports exactly which ones are confirmed.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use indicatif::ProgressBar;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::broker::{Publish, PublishError};
use crate::config::TopologyMode;
use crate::count::either;
use crate::message::export::input::Input;

/// The most open publishes.
const MAX_CONCURRENT: usize = 16;
/// Time limit for open publishes after an error or an interruption.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);

/// The state of all messages.
#[derive(Debug, Default)]
pub(super) struct SendResult {
    /// How many messages were checked. No others are sent.
    total: usize,
    /// The last message that was started. All before it were started, too.
    begun: usize,
    /// Messages that were not published, and why.
    failed: BTreeMap<usize, String>,
    /// Messages whose confirm did not arrive, and why.
    unknown: BTreeMap<usize, String>,
    is_interrupted: bool,
    /// Whether the input had fewer or more messages than were checked.
    has_other_length: bool,
    /// Whether a message was not the one that was checked.
    has_other_content: bool,
}

/// Publishes the messages that were checked; `checked` has the fingerprint of each. After an error or an interruption it starts
/// no further message, and waits for open ones.
pub(super) async fn all<R: Read>(
    mut messages: Input<R>,
    checked: &[u64],
    publisher: &dyn Publish,
    queue: &str,
    topology: TopologyMode,
    bar: &ProgressBar,
    stop: &CancellationToken,
) -> SendResult {
    let total = checked.len();
    let mut sent = SendResult { total, ..SendResult::default() };
    let mut under_way = FuturesUnordered::new();
    let mut places: Vec<usize> = Vec::new();
    let mut is_over = false;
    let mut end: Option<Instant> = None;
    loop {
        while !is_over && sent.is_good() && under_way.len() < MAX_CONCURRENT {
            match messages.next() {
                Some(Ok(message)) if checked.get(message.place - 1) == Some(&message.fingerprint()) => {
                    sent.begun = message.place;
                    places.push(message.place);
                    under_way.push(async move {
                        (message.place, publisher.publish(queue, &message.body, message.properties).await)
                    });
                }
                Some(Ok(message)) if message.place <= total => {
                    sent.refuse_changed(message.place, "its content is different");
                }
                // The message was valid when it was checked.
                Some(Err(bad)) if bad.place <= total => sent.refuse_changed(bad.place, &bad.why),
                next => {
                    is_over = true;
                    sent.has_other_length = next.is_some() || sent.begun < total;
                }
            }
        }
        if end.is_none() && !sent.is_good() {
            end = Some(Instant::now() + FINISH_TIMEOUT);
        }
        tokio::select! {
            biased;
            () = stop.cancelled(), if !sent.is_interrupted => sent.is_interrupted = true,
            next = under_way.next() => match next {
                Some((place, result)) => {
                    places.retain(|other| *other != place);
                    sent.settle(place, queue, topology, result);
                    bar.inc(1);
                }
                None => return sent,
            },
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                let why = format!("no confirm within {} s", FINISH_TIMEOUT.as_secs());
                sent.unknown.extend(places.into_iter().map(|place| (place, why.clone())));
                return sent;
            }
        }
    }
}

impl SendResult {
    fn is_good(&self) -> bool {
        self.failed.is_empty() && self.unknown.is_empty() && !self.is_interrupted
    }

    fn refuse_changed(&mut self, place: usize, why: &str) {
        self.begun = place;
        self.has_other_content = true;
        self.failed.insert(place, format!("the input changed after it was checked: {why}"));
    }

    fn settle(&mut self, place: usize, queue: &str, topology: TopologyMode, result: Result<(), PublishError>) {
        let Err(error) = result else { return };
        let reason = match &error {
            PublishError::Unconfirmed(_) => return drop(self.unknown.insert(place, error.to_string())),
            PublishError::Returned(_) => {
                format!("{}; or correct broker.queue", topology.missing_queue(queue))
            }
            PublishError::Unconnected(_) => {
                format!("{error}. For details run \"wolkvox-task-worker check --no-crm\"")
            }
            PublishError::Blocked(_) | PublishError::Busy(_) | PublishError::Impossible(_) | PublishError::Refused => {
                error.to_string()
            }
        };
        self.failed.insert(place, reason);
    }

    /// Which messages are confirmed, not published, or unknown; none when all are confirmed.
    pub(super) fn report(&self, queue: &str) -> Option<String> {
        let total = self.total;
        if self.failed.is_empty() && self.unknown.is_empty() && self.begun >= total && !self.has_other_length {
            return None;
        }
        let is_confirmed = |place: &usize| !self.failed.contains_key(place) && !self.unknown.contains_key(place);
        let confirmed: Vec<usize> = (1..=self.begun).filter(is_confirmed).collect();
        let unpublished: Vec<usize> = self.failed.keys().copied().chain(self.begun + 1..=total).collect();
        let unknown: Vec<usize> = self.unknown.keys().copied().collect();
        let mut lines = Vec::new();
        if self.is_interrupted {
            lines.push("interrupted".to_owned());
        }
        if self.has_other_length {
            let how = match self.begun < total {
                true => format!("it ends after message {}", self.begun),
                false => format!("what follows message {total} was not checked and was not published"),
            };
            lines.push(format!("the input changed after it was checked: {how}"));
        }
        let mut whys: Vec<(&String, Vec<usize>)> = Vec::new();
        for (place, why) in self.failed.iter().chain(&self.unknown) {
            match whys.iter_mut().find(|(other, _)| *other == why) {
                Some((_, places)) => places.push(*place),
                None => whys.push((why, vec![*place])),
            }
        }
        lines.extend(whys.into_iter().map(|(why, places)| {
            let messages = either(places.len() as u64, "message", "messages");
            format!("{messages} {}: {why}", listed(&places))
        }));
        for (what, places) in
            [("confirmed", confirmed), ("not published", unpublished), ("not known whether published", unknown)]
        {
            lines.push(format!("{what}: {} ({} of {total})", listed(&places), places.len()));
        }
        lines.push(match self.has_other_length || self.has_other_content {
            true => "Check the input before you publish it again. Without --id-field, a message that moved or changed gets a \
                     new id, and its task can be created twice."
                .to_owned(),
            false => {
                format!("Run the same command again: tasks of messages that are on {queue} already are not created twice.")
            }
        });
        Some(lines.join("\n"))
    }
}

/// Numbers in ascending order as ranges: `1 to 485, 487`.
fn listed(places: &[usize]) -> String {
    let mut ranges: Vec<RangeInclusive<usize>> = Vec::new();
    for place in places {
        match ranges.last_mut() {
            Some(last) if last.end() + 1 == *place => *last = *last.start()..=*place,
            Some(_) | None => ranges.push(*place..=*place),
        }
    }
    let ranges: Vec<String> = ranges
        .iter()
        .map(|range| match range.start() == range.end() {
            true => range.start().to_string(),
            false => format!("{} to {}", range.start(), range.end()),
        })
        .collect();
    if ranges.is_empty() { "none".to_owned() } else { ranges.join(", ") }
}
