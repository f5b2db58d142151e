//! Collects what the log line and the metrics say about a settled delivery.

use std::sync::Arc;

use tokio::time::Instant;

use super::Worker;
use super::delivery::DeliveryContext;
use crate::broker::Message;
use crate::config::OnUnknown;
use crate::message::disposition::{Disposition, Settlement};
use crate::message::published::published_at;
use crate::observe::events::SettledDelivery;

/// What the log line and the metrics say about a delivery.
pub(super) struct Report {
    id: Option<String>,
    has_id: bool,
    pub(super) rule: Option<Arc<str>>,
    pub(super) attempts: u32,
    round: u32,
    replays: u32,
    reason: Option<String>,
    first_attempt_at: Option<jiff::Timestamp>,
    is_created: bool,
    /// An earlier attempt, or another worker, may have created the task before this one was sent.
    was_doubted: bool,
    possibly_created: bool,
    /// It had several attempts, or an earlier delivery may have had some.
    may_be_resent: bool,
    began: Instant,
}

impl Report {
    pub(super) fn of(d: &DeliveryContext<'_>, disposition: &Disposition, began: Instant) -> Self {
        Self {
            id: d.state.message_id.clone().or_else(|| d.message.id().map(str::to_owned)),
            has_id: d.key.is_some(),
            rule: d.rule.clone(),
            attempts: d.state.attempts,
            round: d.state.round,
            replays: d.state.replays,
            reason: d.last_attempt.as_ref().map(|attempt| attempt.reason.clone()),
            first_attempt_at: d.state.first_attempt_at,
            is_created: matches!(disposition, Disposition::Ack | Disposition::AlreadyCreated),
            was_doubted: d.is_possible_duplicate,
            possibly_created: d.state.possibly_created,
            may_be_resent: d.state.attempts > 1 || d.message.was_delivered_before(),
            began,
        }
    }
}

impl Worker {
    /// Logs and counts a possible duplicate before the delivery is settled, so that the report exists even if the worker is killed
    /// right after it. If RabbitMQ then delivers the message again, the duplicate is reported again.
    pub(super) fn warn_of_duplicate(&self, report: &Report, settlement: &Settlement) {
        // The worker's dead letters have the header `x-wtw-possibly-created`. A rejected message gets no new header. In strict
        // mode only a replay can be sent although its task may exist.
        let may_be_resent = report.may_be_resent && self.settings.on_unknown == OnUnknown::Retry;
        let may_be_several = matches!(settlement, Settlement::Reject(_))
            && report.possibly_created
            && (report.was_doubted || may_be_resent || report.replays > 0);
        if (report.is_created && report.was_doubted) || may_be_several {
            self.telemetry.possible_duplicate(report.id.as_deref());
        }
    }

    /// Logs and counts how a delivery was settled.
    pub(super) fn report(
        &self,
        message: &Message,
        report: Report,
        disposition: &Disposition,
        settlement: &Settlement,
        gone: bool,
    ) {
        self.telemetry.settled(&SettledDelivery {
            message_id: report.id.as_deref(),
            has_id: report.has_id,
            reference: report.id.as_deref().and_then(|id| self.mapper.reference(id)),
            rule: report.rule.as_deref(),
            disposition,
            settlement,
            attempts: report.attempts,
            round: report.round,
            reason: report.reason.as_deref(),
            duration: report.began.elapsed(),
            is_gone: gone,
            at: self.clock.now(),
            // Not for a replay, whose time since publication includes the wait for an operator.
            published: published_at(&message.properties).or(report.first_attempt_at).filter(|_| report.replays == 0),
        });
    }
}
