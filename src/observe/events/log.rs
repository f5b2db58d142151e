//! The log line of a settled message.

use super::{SettledDelivery, millis};
use crate::broker::topology::HOLD_QUEUE_DELAY;
use crate::duration;
use crate::message::disposition::Disposition;
use crate::message::disposition::Settlement;

/// Writes one line for each settled message. A created task needs no reason.
pub(super) fn log_settled(settled: &SettledDelivery<'_>, message_id: &str, outcome: &str) {
    let (rule, attempts, duration_ms) = (settled.rule, settled.attempts, millis(settled.duration));
    // People search for a task's message with the reference.
    let reference = settled.reference.map(tracing::field::display);
    log_rejection(settled.settlement, message_id, outcome);
    match settled.disposition {
        Disposition::DeadLetter(failure) => {
            let (kind, stage, code) = (failure.kind.as_str(), failure.stage.as_str(), failure.crm_code);
            let (status, reason) = (failure.http_status, &*failure.log_reason());
            tracing::warn!(
                message_id,
                reference,
                rule,
                outcome,
                kind,
                stage,
                code,
                status,
                attempts,
                duration_ms,
                reason,
                "settled"
            );
        }
        Disposition::Retry(delay) => {
            let (reason, to, round) = (settled.reason, settled.to, settled.round);
            let next = duration::format(*delay);
            tracing::info!(
                message_id,
                reference,
                rule,
                outcome,
                attempts,
                duration_ms,
                reason,
                to,
                next,
                round,
                "settled"
            );
        }
        Disposition::Hold => {
            let why = "the gate was closed, or another delivery had the message, for as long as gate.hold";
            let (reason, to, next) = (settled.reason.unwrap_or(why), settled.to, duration::format(HOLD_QUEUE_DELAY));
            tracing::info!(message_id, reference, rule, outcome, attempts, duration_ms, reason, to, next, "settled");
        }
        Disposition::Requeue => {
            let reason = settled.reason.unwrap_or("the worker stops, or its connection to RabbitMQ is gone");
            tracing::info!(message_id, reference, rule, outcome, attempts, duration_ms, reason, "settled");
        }
        Disposition::Skip(missing) => {
            let why =
                if rule.is_some() { "its rule says skip" } else { "no rule matches, and events.unmatched is skip" };
            let missing = missing.as_ref().map_or_else(String::new, |missing| format!("; {missing}"));
            let reason = &*format!("{why}{missing}");
            tracing::info!(message_id, rule, outcome, attempts, duration_ms, reason, "settled");
        }
        Disposition::Ack | Disposition::AlreadyCreated => {
            tracing::info!(message_id, reference, rule, outcome, attempts, duration_ms, "settled");
        }
    }
}

fn log_rejection(settlement: &Settlement, message_id: &str, outcome: &str) {
    if let Settlement::Reject(reason) = settlement {
        tracing::error!(
            message_id,
            outcome,
            reason,
            "RabbitMQ refuses the copy of this message, so the worker rejects it and RabbitMQ dead-letters it"
        );
    }
}
