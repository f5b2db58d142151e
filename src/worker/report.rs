//! Collects what the log line and the metrics say about a settled delivery.

use std::sync::Arc;

use tokio::time::Instant;

use super::Worker;
use super::delivery::DeliveryContext;
use crate::broker::Message;
use crate::config::OnUnknown;
use crate::crm::classify::Classified;
use crate::message::disposition::{Disposition, Settlement};
use crate::message::published::published_at;
use crate::message::retry_state::RetryState;
use crate::observe::events::SettledDelivery;

/// What remains of a delivery's context when it is settled.
pub(super) struct Report<'m> {
    message: &'m Message,
    pub(super) state: RetryState,
    pub(super) rule: Option<Arc<str>>,
    has_id: bool,
    last_attempt: Option<Classified>,
    /// An earlier attempt, or another worker, may have created the task before this one was sent.
    was_doubted: bool,
    began: Instant,
}

impl<'m> Report<'m> {
    pub(super) fn of(d: DeliveryContext<'_>, message: &'m Message, began: Instant) -> Self {
        let DeliveryContext { state, rule, key, last_attempt, is_possible_duplicate, .. } = d;
        Self { message, state, rule, has_id: key.is_some(), last_attempt, was_doubted: is_possible_duplicate, began }
    }

    fn id(&self) -> Option<&str> {
        self.state.message_id.as_deref().or_else(|| self.message.id())
    }
}

impl Worker {
    /// Logs and counts a possible duplicate before the delivery is settled, so that the report exists even if the worker is killed
    /// right after it. If RabbitMQ then delivers the message again, the duplicate is reported again.
    pub(super) fn warn_of_duplicate(&self, report: &Report<'_>, disposition: &Disposition, settlement: &Settlement) {
        let (state, was_doubted) = (&report.state, report.was_doubted);
        // The worker's dead letters have the header `x-wtw-possibly-created`. A rejected message gets no new header. In strict
        // mode only a replay can be sent although its task may exist.
        let was_resent = state.attempts > 1 || report.message.was_delivered_before();
        let may_be_resent = was_resent && self.on_unknown == OnUnknown::Retry;
        let may_be_several = matches!(settlement, Settlement::Reject(_))
            && state.possibly_created
            && (was_doubted || may_be_resent || state.replays > 0);
        let is_created = matches!(disposition, Disposition::Ack | Disposition::AlreadyCreated);
        if (is_created && was_doubted) || may_be_several {
            self.telemetry.possible_duplicate(report.id());
        }
    }

    pub(super) fn report(&self, report: &Report<'_>, disposition: &Disposition, settlement: &Settlement, gone: bool) {
        let (id, state) = (report.id(), &report.state);
        let copied_to = self.settler.copy_queue(disposition).ok().filter(|_| *settlement == Settlement::Ack);
        self.telemetry.settled(&SettledDelivery {
            message_id: id,
            has_id: report.has_id,
            reference: id.and_then(|id| self.mapper.reference(id)),
            rule: report.rule.as_deref(),
            disposition,
            settlement,
            to: copied_to.as_deref(),
            attempts: state.attempts,
            round: state.round,
            reason: report.last_attempt.as_ref().map(|attempt| attempt.reason.as_str()),
            duration: report.began.elapsed(),
            is_gone: gone,
            at: self.clock.now(),
            // Not for a replay, whose time since publication includes the wait for an operator.
            published: published_at(&report.message.properties)
                .or(state.first_attempt_at)
                .filter(|_| state.replays == 0),
        });
    }
}
