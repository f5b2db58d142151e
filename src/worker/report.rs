//! What log and metrics say of a delivery, read before it is settled.

use std::sync::Arc;

use tokio::time::Instant;

use super::delivery::DeliveryContext;
use crate::message::disposition::Disposition;

/// See the module's documentation.
pub(super) struct Report {
    pub(super) id: Option<String>,
    pub(super) has_id: bool,
    pub(super) rule: Option<Arc<str>>,
    pub(super) attempts: u32,
    pub(super) round: u32,
    pub(super) replays: u32,
    pub(super) reason: Option<String>,
    pub(super) first_attempt_at: Option<jiff::Timestamp>,
    pub(super) is_possible_duplicate: bool,
    pub(super) possibly_created: bool,
    pub(super) began: Instant,
}

impl Report {
    pub(super) fn of(d: &DeliveryContext<'_>, disposition: &Disposition, began: Instant) -> Self {
        let is_created = matches!(disposition, Disposition::Ack | Disposition::AlreadyCreated);
        Self {
            id: d.state.message_id.clone().or_else(|| d.message.id().map(str::to_owned)),
            has_id: d.key.is_some(),
            rule: d.rule.clone(),
            attempts: d.state.attempts,
            round: d.state.round,
            replays: d.state.replays,
            reason: d.last_attempt.as_ref().map(|attempt| attempt.reason.clone()),
            first_attempt_at: d.state.first_attempt_at,
            is_possible_duplicate: is_created && d.is_possible_duplicate,
            possibly_created: d.state.possibly_created,
            began,
        }
    }
}
