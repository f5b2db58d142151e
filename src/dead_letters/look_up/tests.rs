//! Tests of the look-up: its sentences, and what it does while RabbitMQ cannot be reached.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::config::{Config, Sources};

fn not_found(ledger_problem: Option<&str>, is_broker_asked: bool, unread: &[(&str, &str)]) -> LookedUp {
    let mut found = LookedUp {
        id: "m-1".to_owned(),
        reference: None,
        ledger: None,
        proves_unsent: false,
        ledger_problem: ledger_problem.map(ToOwned::to_owned),
        places: Vec::new(),
        looked: Vec::new(),
        has_rules: false,
        is_broker_asked,
        unread: Vec::new(),
    };
    unread.iter().for_each(|(queue, why)| found.cannot_read(queue, why));
    found.list_unread();
    found
}

#[test]
fn sentence_says_what_could_not_be_asked() {
    let refused = "connection refused";
    let down = [("q.dead", refused), ("q.dead.broker", refused), ("q.retry.10s", "a\nb")];
    for (found, sentence) in [
        (not_found(Some(refused), false, &down), "It is not known: neither the ledger nor RabbitMQ"),
        (not_found(Some(refused), true, &[]), "It was not found, but the ledger could not be asked"),
        (not_found(None, false, &down), "It was not found, but not all queues could be read"),
        (not_found(None, true, &[]), "Nothing is known about it, and this ledger cannot prove that nothing was sent"),
        (LookedUp { proves_unsent: true, ..not_found(None, true, &[]) }, "Nothing is known about it: it may wait"),
    ] {
        assert!(found.sentence().starts_with(sentence), "{}", found.sentence());
    }
}

#[test]
fn sentence_about_an_unknown_id_names_the_rules_where_there_are_some() {
    let unknown = |has_rules| LookedUp { has_rules, proves_unsent: true, ..not_found(None, true, &[]) };
    let rules = " A rule may also have skipped it, or given it another id.";
    assert!(
        unknown(true).sentence().ends_with(&format!("or it never arrived.{rules}")),
        "{}",
        unknown(true).sentence()
    );
    assert!(!unknown(false).sentence().contains("rule"), "{}", unknown(false).sentence());
}

#[test]
fn sentence_of_a_message_on_a_queue_says_what_is_proved() {
    let on_queue = |creation, ledger_problem, proves_unsent| LookedUp {
        proves_unsent,
        places: vec![Location {
            queue: "q.dead".to_owned(),
            id: "m-1".to_owned(),
            attempts: 1,
            kind: None,
            reason: None,
            discard_reason: None,
            creation,
            fingerprint: None,
        }],
        ..not_found(ledger_problem, true, &[])
    };
    let (not_created, in_doubt) = (CreationState::NotCreated, CreationState::InDoubt);
    for (found, sentence) in [
        (on_queue(not_created, None, true), "It is on q.dead. As far as is known its task does not exist."),
        (on_queue(not_created, None, false), "It is on q.dead. The ledger has no entry for it, and cannot prove"),
        (on_queue(not_created, Some("down"), false), "It is on q.dead. Whether its task exists is not known"),
        (on_queue(in_doubt, None, true), "It is on q.dead. Its task may exist"),
    ] {
        assert!(found.sentence().starts_with(sentence), "{}", found.sentence());
    }
    let mut copies = on_queue(not_created, None, true);
    copies.places.extend(on_queue(in_doubt, None, true).places);
    assert!(copies.sentence().contains("Its task may exist"), "one copy in doubt is enough: {}", copies.sentence());
}

#[test]
fn queues_that_fail_for_one_reason_share_a_line() {
    let found = not_found(None, false, &[("q.dead", "down"), ("q.retry.10s", "a\nb"), ("q.dead.broker", "down")]);
    assert_eq!(found.looked, ["q.dead, q.dead.broker: down", "q.retry.10s: a b"]);
}

#[test]
fn worker_whose_ledger_was_not_asked_has_a_line() {
    let mut found = not_found(None, true, &[]);
    let (address, why) = ("127.0.0.1:29475".to_owned(), "connection refused".to_owned());
    found.list_unasked(&[UnaskedWorker { address, why }]);
    assert_eq!(found.looked, ["the worker at 127.0.0.1:29475 was not asked about its ledger: connection refused"]);
}

#[test]
fn id_is_found_as_it_is_shown_and_its_own_ledger_entry_counts() {
    let wanted = Wanted { id: "a[U+202E]b", hidden: None, reference: None, queue: "q", operation: None };
    assert!(wanted.is("a\u{202e}b") && wanted.is("a[U+202E]b") && !wanted.is("ab"));
    let entry = |id: &str, found| LedgerEntry { found, ..LedgerEntry::new(id, None) };
    let id = |entries| knows_most(entries).map(|entry| entry.id);
    assert_eq!(id(vec![entry("a", true), entry("b", false)]).as_deref(), Some("a"));
    assert_eq!(id(vec![entry("a", false), entry("b", true)]).as_deref(), Some("b"));
    assert_eq!(id(vec![entry("a", false), entry("b", false)]).as_deref(), Some("a"));
}

/// The dead letters of a broker at this address.
fn dead_letters(listener: &TcpListener) -> DeadLetters {
    let url = format!("amqp://{}/%2f", listener.local_addr().unwrap());
    let environment = vec![("WTW_BROKER_URLS".into(), url.into())];
    let config = Config::load(&Sources { environment, ..Sources::default() }, &["broker.urls"]).unwrap().config;
    DeadLetters::new(Arc::new(config))
}

#[tokio::test]
async fn look_up_tries_no_further_queue_after_its_only_node_failed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dead_letters, stop) = (dead_letters(&listener), CancellationToken::new());
    let second_connection = async {
        for _ in 0..2 {
            drop(listener.accept().await.unwrap());
        }
    };
    let found = tokio::select! {
        found = dead_letters.look_up("m-1", &stop) => found,
        () = second_connection => panic!("RabbitMQ was tried twice"),
    };
    assert_eq!(found.looked.len(), 1, "one reason for all queues: {:?}", found.looked);
    assert!(found.looked[0].contains("cannot connect to amqp://127.0.0.1"), "{}", found.looked[0]);
    assert!(found.looked[0].contains(&dead_letters.queues.discarded), "{}", found.looked[0]);
}

#[tokio::test]
async fn retry_queue_of_a_silent_broker_does_not_delay_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dead_letters, stop) = (dead_letters(&listener), CancellationToken::new());
    let wanted = Wanted { id: "m-1", hidden: None, reference: None, queue: "q", operation: None };
    let mut found = not_found(None, false, &[]);
    let silent = async {
        let accepted = listener.accept().await.unwrap();
        stop.cancel();
        accepted
    };
    let look = dead_letters.look_on_retry("q.retry.10s", &wanted, &stop, &mut found);
    let (looked, _accepted) = timeout(Duration::from_secs(5), async { tokio::join!(look, silent) }).await.unwrap();
    assert!(looked.unwrap_err().why.starts_with("interrupted"));
}
