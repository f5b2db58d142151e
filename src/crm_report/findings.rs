//! Answers each question about the account, in words and with evidence. Pure.

mod connection;
mod refusals;
mod search;
mod success;
mod times;

pub(super) use search::{FOUND_AFTER, QUERIES};
pub(super) use times::{SHIFTED, reset};

use super::finding::{Facts, Finding};

/// Every question, in the order in which people ask.
pub(super) fn findings(facts: Facts<'_>) -> Vec<Finding> {
    vec![
        success::insert(facts),
        success::code_type(facts),
        success::body_form(facts),
        success::wolkvox_id(facts),
        refusals::http_status(facts),
        refusals::wrong_token(facts),
        refusals::wrong_operation(facts),
        refusals::missing_field(facts),
        times::clock(facts),
        times::answer_zone(facts),
        times::sent_dates(facts),
        times::quota_reset(facts),
        times::counter(facts),
        search::query(facts),
        search::query_dates(facts),
        search::accents(facts),
        connection::connections(facts),
        connection::route(facts),
        connection::latency(facts),
    ]
}
