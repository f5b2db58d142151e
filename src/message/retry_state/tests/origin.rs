//! Tests of exchange and routing key of a message that RabbitMQ dead-lettered.

use super::*;

/// An entry of `x-death`: the queue, and how the message came there.
fn death(queue: &str, exchange: &str, key: &str) -> HeaderValue {
    let entry = [
        ("queue", text(queue)),
        ("exchange", text(exchange)),
        ("routing-keys", HeaderValue::FieldArray(FieldArray::from(vec![text(key), text("cc")]))),
    ];
    let entry = entry.map(|(name, value)| (ShortString::from(name), value));
    HeaderValue::FieldTable(Headers::from(BTreeMap::from(entry)))
}

fn deaths(entries: Vec<HeaderValue>) -> (&'static str, HeaderValue) {
    ("x-death", HeaderValue::FieldArray(FieldArray::from(entries)))
}

fn origin(message: &Message, queue: Option<&str>) -> (String, String) {
    let (state, invalid) = RetryState::read(message, queue);
    assert!(invalid.is_empty(), "{invalid:?}");
    (state.exchange, state.routing_key)
}

/// The events wait on a delay queue before they come to the work queue.
fn through_a_delay_queue() -> (&'static str, HeaderValue) {
    deaths(vec![death(QUEUE_NAME, "helpdesk", "ticket.closed"), death("delay", "incoming", "ticket.waits")])
}

#[test]
fn message_moved_back_after_the_broker_dead_lettered_it_keeps_its_origin() {
    let moved = |headers: &[(&str, HeaderValue)]| arrived(message(headers).properties, QUEUE_NAME);
    let expected = ("helpdesk".to_owned(), "ticket.closed".to_owned());
    let shovelled = moved(&[through_a_delay_queue()]);
    assert_eq!(origin(&shovelled, Some(QUEUE_NAME)), expected);
    let copied = copy_properties(&shovelled, &read(&shovelled).0, Vec::new(), FRAME);
    assert_eq!(origin(&arrived(copied, QUEUE_NAME), Some(QUEUE_NAME)), expected, "its copy does too");
    let ours = [(ORIGINAL_EXCHANGE, text("a")), (ORIGINAL_ROUTING_KEY, text("b")), through_a_delay_queue()];
    assert_eq!(origin(&moved(&ours), Some(QUEUE_NAME)), ("a".to_owned(), "b".to_owned()), "our headers win");
}

#[test]
fn death_on_another_queue_or_a_new_publish_does_not_change_the_origin() {
    let default = (String::new(), QUEUE_NAME.to_owned());
    let long = "x".repeat(256);
    for entries in [
        vec![],
        vec![text("no table")],
        vec![death("delay", "incoming", "ticket.waits")],
        vec![death("wolkvox.tasks.retry.10s", "", "wolkvox.tasks.retry.10s")],
    ] {
        let message = arrived(message(&[deaths(entries)]).properties, QUEUE_NAME);
        assert_eq!(origin(&message, Some(QUEUE_NAME)), default);
    }
    let forged = arrived(message(&[deaths(vec![death(QUEUE_NAME, &long, &long)])]).properties, QUEUE_NAME);
    assert_eq!(origin(&forged, Some(QUEUE_NAME)), (String::new(), String::new()));
    let published_again = message(&[through_a_delay_queue()]);
    assert_eq!(origin(&published_again, Some(QUEUE_NAME)), ("tasks".to_owned(), "new".to_owned()));
}

#[test]
fn dead_letter_of_the_broker_shows_how_the_worker_got_it() {
    let dead_letter = arrived(message(&[through_a_delay_queue()]).properties, "wolkvox.tasks.dead.broker");
    assert_eq!(origin(&dead_letter, None), ("helpdesk".to_owned(), "ticket.closed".to_owned()));
}
