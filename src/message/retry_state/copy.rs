//! The properties of a copy: our headers and the publisher's, within RabbitMQ's frame size. Pure.

use std::collections::BTreeMap;

use super::{
    CRM_MESSAGE, DROPPED, ERROR_MESSAGE, HISTORY, MAX_OURS, OURS, RetryState, WORKER, is_brokers, string, text,
};
use crate::broker::{HeaderValue, Headers, Message, Properties, ShortString};
use crate::message::failure::shorten;

/// Longest list of dropped headers, in bytes.
pub(super) const MAX_DROPPED: usize = 1_024;

/// The properties of a copy within a frame of `frame_max` bytes: the publisher's without RabbitMQ's, plus our headers and
/// `more`. If they do not fit, the history is dropped first, then the publisher's largest headers. `x-wtw-dropped-headers`
/// lists their names.
#[must_use]
pub fn copy_properties(
    message: &Message,
    state: &RetryState,
    more: Vec<(&'static str, HeaderValue)>,
    frame_max: usize,
) -> Properties {
    let properties = without_brokers(&message.properties);
    let space = header_space(&properties, frame_max);
    let longest_list = MAX_DROPPED.min(frame_max / 16);
    let list_space = entry_size(DROPPED, &text("")) + longest_list;
    let mut ours = state.headers();
    ours.extend(more);
    cut_texts(&mut ours, space.saturating_sub(list_space));
    let fixed = table_size(&ours);
    let mut theirs = publishers_headers(&message.properties);
    let budget =
        MAX_OURS.min(space.saturating_sub(table_size(&theirs))).saturating_sub(fixed + entry_size(HISTORY, &text("")));
    if let Some(history) = state.history(budget) {
        ours.insert(HISTORY, text(&history));
    }
    let mut dropped = drop_largest(&mut theirs, space.saturating_sub(fixed), list_space);
    if !dropped.is_empty() {
        if !state.dropped.is_empty() {
            dropped.insert(0, state.dropped.clone());
        }
        ours.insert(DROPPED, text(&shorten(&dropped.join(","), longest_list)));
    }
    let ours = ours.into_iter().filter_map(|(key, value)| Some((ShortString::try_new(key).ok()?, value)));
    theirs.extend(ours);
    properties.with_headers(Headers::from(theirs))
}

/// Bytes that a copy's headers can have besides its other properties.
pub(crate) fn header_space(properties: &Properties, frame_max: usize) -> usize {
    /// Frame header and end, and the fixed part of a content header (AMQP 0-9-1, 4.2.3 and 4.2.6.1).
    const FRAME_OVERHEAD: usize = 8 + 14;
    /// What RabbitMQ adds before it delivers the copy (`x-death` and others). A client closes the connection when it
    /// receives a frame larger than agreed, so it could never consume such a copy.
    const BROKERS_SHARE: usize = 2_048;
    let taken = FRAME_OVERHEAD + properties_size(properties) + 4 + BROKERS_SHARE.min(frame_max / 8);
    frame_max.saturating_sub(taken)
}

/// Shortens our headers, the least important first, until they fit `space`.
fn cut_texts(ours: &mut BTreeMap<&'static str, HeaderValue>, space: usize) {
    for name in [DROPPED, CRM_MESSAGE, WORKER, ERROR_MESSAGE] {
        let excess = table_size(ours).saturating_sub(space);
        if excess == 0 {
            return;
        }
        if let Some(held) = ours.get_mut(name)
            && let Some(long) = string(held)
        {
            *held = text(&shorten(&long, long.len().saturating_sub(excess)));
        }
    }
}

/// Bytes of a table's entries on the wire.
pub(crate) fn table_size<K: std::borrow::Borrow<str>>(entries: &BTreeMap<K, HeaderValue>) -> usize {
    entries.iter().map(|(key, value)| entry_size(key.borrow(), value)).sum()
}

/// Drops the largest headers until the rest fits `space`, less `list_space` for their names if any was dropped.
fn drop_largest(theirs: &mut BTreeMap<ShortString, HeaderValue>, space: usize, list_space: usize) -> Vec<String> {
    let mut size = table_size(theirs);
    let mut dropped = Vec::new();
    let mut allowed = space;
    while size > allowed {
        allowed = space.saturating_sub(list_space);
        let largest =
            theirs.iter().max_by_key(|(key, value)| entry_size(key.as_str(), value)).map(|(key, _)| key.clone());
        let Some(value) = largest.as_ref().and_then(|key| theirs.remove(key)) else {
            break;
        };
        let name = largest.unwrap_or_default().to_string();
        size -= entry_size(&name, &value);
        dropped.push(name);
    }
    dropped
}

pub(super) fn publishers_headers(properties: &Properties) -> BTreeMap<ShortString, HeaderValue> {
    let Some(headers) = properties.headers() else {
        return BTreeMap::new();
    };
    let theirs = headers.inner().iter().filter(|(key, _)| {
        let key = key.as_str();
        !is_brokers(key) && !key.starts_with(OURS)
    });
    theirs.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The publisher's properties without headers, `expiration`, `user_id` and reserved `reply_to` addresses: RabbitMQ refuses
/// a copy with a foreign user or such an address.
pub(crate) fn without_brokers(from: &Properties) -> Properties {
    /// RabbitMQ's own reply addresses. It refuses them from another channel.
    const RESERVED_REPLY_TO: &str = "amq.rabbitmq.reply-to";
    let mut to = Properties::default();
    macro_rules! copy {
        ($($get:ident $set:ident),*) => { $(if let Some(value) = from.$get().clone() { to = to.$set(value); })* };
    }
    copy!(
        content_type with_content_type, content_encoding with_content_encoding, priority with_priority,
        correlation_id with_correlation_id, message_id with_message_id,
        timestamp with_timestamp, kind with_type, app_id with_app_id, cluster_id with_cluster_id
    );
    if let Some(address) = from.reply_to().clone().filter(|to| !to.as_str().starts_with(RESERVED_REPLY_TO)) {
        to = to.with_reply_to(address);
    }
    to
}

pub(super) fn properties_size(properties: &Properties) -> usize {
    let short = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.message_id(),
        properties.kind(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = short.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    // Delivery mode, priority and timestamp.
    texts + 1 + 1 + 8
}

fn entry_size(key: &str, value: &HeaderValue) -> usize {
    1 + key.len() + value_size(value)
}

/// Bytes of a value on the wire, including its type's letter (RabbitMQ's table of AMQP 0-9-1 field types).
fn value_size(value: &HeaderValue) -> usize {
    1 + match value {
        HeaderValue::Void => 0,
        HeaderValue::Boolean(_) | HeaderValue::ShortShortInt(_) | HeaderValue::ShortShortUInt(_) => 1,
        HeaderValue::ShortInt(_) | HeaderValue::ShortUInt(_) => 2,
        HeaderValue::LongInt(_) | HeaderValue::LongUInt(_) | HeaderValue::Float(_) => 4,
        HeaderValue::DecimalValue(_) => 5,
        HeaderValue::LongLongInt(_) | HeaderValue::Double(_) | HeaderValue::Timestamp(_) => 8,
        HeaderValue::ShortString(text) => 1 + text.as_str().len(),
        HeaderValue::LongString(text) => 4 + text.len(),
        HeaderValue::ByteArray(bytes) => 4 + bytes.len(),
        HeaderValue::FieldArray(values) => 4 + values.as_slice().iter().map(value_size).sum::<usize>(),
        HeaderValue::FieldTable(table) => {
            4 + table.inner().iter().map(|(key, value)| entry_size(key.as_str(), value)).sum::<usize>()
        }
    }
}
