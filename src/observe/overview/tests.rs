//! Tests of the sentence that says whether the workers of a queue work.

use super::*;
use crate::observe::status::{BrokerStatus, GateStatus, LedgerStatus, Messages, TokenStatus};

fn answer(page: Result<Page, &str>) -> WorkerStatus {
    WorkerStatus {
        address: "w:9464".to_owned(),
        page: page.map_err(|why| StatusError { why: why.to_owned(), is_other: false }),
    }
}

fn page(role: &str) -> Page {
    Page {
        role: role.to_owned(),
        ready: true,
        gate: GateStatus { open: true, ..GateStatus::default() },
        broker: BrokerStatus { connected: true, ..BrokerStatus::default() },
        ledger: LedgerStatus { healthy: true, ..LedgerStatus::default() },
        ..Page::default()
    }
}

#[test]
fn sentence_says_what_to_do_when_broker_or_ledger_is_down() {
    let unready = |why: &str| Page { ready: false, reason: Some(why.to_owned()), ..page("not_connected") };
    let broker = Page { broker: BrokerStatus::default(), ..unready("not connected to RabbitMQ: refused") };
    let ledger = Page { ledger: LedgerStatus::default(), ..unready("the ledger is not open: refused") };
    for (page, sentence) in [
        (
            broker,
            "Not working: not connected to RabbitMQ: refused. Is RabbitMQ running, and is broker.urls right? For \
             details run \"wolkvox-task-worker check --no-crm\".",
        ),
        (
            ledger,
            "Not working: the ledger is not open: refused. For details run \"wolkvox-task-worker check --no-crm\".",
        ),
    ] {
        let down = Err(BrokerError { message: "refused".to_owned(), code: None });
        let overview = Overview::new("q", &["q.dead"], vec![answer(Ok(page))], down);
        assert_eq!((overview.works, overview.sentence.as_str()), (false, sentence));
    }
}

#[test]
fn overview_sentence_says_whether_the_worker_works() {
    let depths = |count| Ok(Depths::from([("q".to_owned(), count)]));
    let closed = GateStatus { advice: Some("the CRM fails".to_owned()), ..GateStatus::default() };
    let suspended = TokenStatus { suspended: Some("quota".to_owned()), ..TokenStatus::default() };
    for (answers, works, sentence) in [
        (
            vec![],
            false,
            "No worker answers (console.workers names no worker). 212 messages wait on the queue. Start a worker, or correct console.workers.",
        ),
        (
            vec![answer(Err("connection refused"))],
            false,
            "No worker answers (w:9464: connection refused). 212 messages wait on the queue. Start a worker, or correct console.workers.",
        ),
        (vec![answer(Ok(page("active")))], true, "Working. 212 messages wait on the queue."),
        (
            vec![answer(Ok(page("active"))), answer(Err("x"))],
            true,
            "Working. 212 messages wait on the queue. 1 of 2 workers does not answer.",
        ),
        (
            vec![answer(Ok(Page { gate: closed, ..page("active") }))],
            false,
            "Not sending: the CRM fails. 212 messages wait on the queue.",
        ),
        (
            vec![answer(Ok(Page { ready: false, reason: Some("no ledger".to_owned()), ..page("active") }))],
            false,
            "Not working: no ledger. 212 messages wait on the queue.",
        ),
        (
            vec![answer(Ok(Page { tokens: vec![suspended], ..page("active") }))],
            true,
            "Working. 212 messages wait on the queue. The quota of token 0 is used up.",
        ),
    ] {
        let overview = Overview::new("q", &["q.dead"], answers, depths(212));
        assert_eq!((overview.works, overview.sentence.as_str()), (works, sentence));
    }
}

#[test]
fn sentence_says_when_rabbitmq_did_not_answer_the_command() {
    for (code, sentence) in [
        (None, "Working, but the queues could not be counted: RabbitMQ did not answer."),
        (Some(403), "Working, but the queues could not be counted: RabbitMQ refused it."),
    ] {
        let down = Err(BrokerError { message: "cannot connect to RabbitMQ".to_owned(), code });
        let overview = Overview::new("q", &["q.dead"], vec![answer(Ok(page("active")))], down);
        assert_eq!((overview.works, overview.sentence.as_str()), (true, sentence));
    }
}

#[test]
fn sentence_ignores_the_gate_of_a_standby_when_a_worker_is_active() {
    let closed = || GateStatus { advice: Some("the CRM fails".to_owned()), ..GateStatus::default() };
    let old = TokenStatus { suspended: Some("quota".to_owned()), ..TokenStatus::default() };
    let standby = || Page { gate: closed(), tokens: vec![old.clone()], ..page("not_known") };
    let closed_active = || Page { gate: closed(), ..page("active") };
    for (pages, works, sentence) in [
        (vec![standby(), page("active")], true, "Working."),
        (vec![page("not_known"), closed_active()], false, "Not sending: the CRM fails."),
        (vec![standby(), standby()], false, "Not sending: the CRM fails."),
        (vec![page("active"), closed_active()], true, "Working. 1 of 2 workers sends nothing: the CRM fails."),
    ] {
        let answers = pages.into_iter().map(|page| answer(Ok(page))).collect();
        let overview = Overview::new("q", &["q.dead"], answers, Ok(Depths::default()));
        assert_eq!((overview.works, overview.sentence.as_str()), (works, sentence));
    }
}

#[test]
fn dead_letters_are_counted_in_the_sentence_or_not_known() {
    let depths = Depths::from([("q".to_owned(), 0), ("q.dead".to_owned(), 75)]);
    let overview = Overview::new("q", &["q.dead", "q.dead.broker"], vec![answer(Ok(page("active")))], Ok(depths));
    assert_eq!(overview.sentence, "Working. No message waits on the queue. There are 75 dead letters.");
    assert_eq!(overview.dead_letters(), Some(75));
    let down = Err(BrokerError { message: "connection refused".to_owned(), code: None });
    let overview = Overview::new("q", &["q.dead"], vec![answer(Ok(page("active")))], down);
    assert_eq!(overview.dead_letters(), None, "not counted is not zero");
}

#[test]
fn dead_letters_that_are_being_read_are_not_taken_for_the_only_ones() {
    let mut depths = Depths::from([("q".to_owned(), 0)]);
    depths.add("q.dead", 5_363, 1);
    let overview = Overview::new("q", &["q.dead"], vec![answer(Ok(page("active")))], Ok(depths));
    assert_eq!(
        overview.sentence,
        "Working. No message waits on the queue. The dead letters are being read, so only 5,363 dead letters can be counted now."
    );
    assert!(overview.dead_letters_are_read());
}

#[test]
fn sentence_does_not_say_working_while_the_worker_that_may_be_active_is_silent() {
    let waits = |ready| Ok(Depths::from([("q".to_owned(), ready)]));
    let of = |role: &str, ready| Overview::new("q", &[], vec![answer(Ok(page(role))), answer(Err("x"))], waits(ready));
    let unknown = of("not_known", 22);
    assert_eq!(
        (unknown.works, unknown.sentence.as_str()),
        (
            false,
            "It is not known whether it works: no worker that answers is active. 22 messages wait on the queue. 1 of 2 workers \
             does not answer."
        )
    );
    assert!(of("not_known", 0).works && of("active", 22).works);
}

#[test]
fn forecast_of_workers_that_are_active_together_adds_their_rates() {
    let now: Timestamp = "2026-03-01T14:00:00Z".parse().unwrap();
    let of = |in_flight, backlog, calls_needed| {
        let forecast = Forecast {
            backlog: Some(backlog),
            settled_per_minute: Some(60.0),
            calls_needed: Some(calls_needed),
            calls_left: Some(1_000),
            ..Forecast::default()
        };
        let messages = Messages { in_flight, ..Messages::default() };
        answer(Ok(Page { forecast, messages, ..page("active") }))
    };
    // 480 on the queue, and what each holds: 600 messages at two a second.
    let overview = Overview::new("q", &[], vec![of(48, 528, 528), of(72, 552, 552)], Ok(Depths::default()));
    assert_eq!(
        overview.forecast(now, &TimeZone::UTC),
        [
            "The backlog is done at about 14:05.",
            "The quota lasts until 14:08 at this rate. The quota is reset at 00:00 on 2026-03-02."
        ]
    );
}

#[test]
fn worker_of_another_queue_counts_as_no_answer() {
    let of = |queue: &str| answer(Ok(Page { queue: Some(queue.to_owned()), ..page("active") }));
    let overview = Overview::new("q", &["q.dead"], vec![of("other")], Ok(Depths::default()));
    assert_eq!(
        (overview.works, overview.sentence.as_str()),
        (
            false,
            "No worker answers (w:9464: this worker serves the queue other, and broker.queue is q). Correct \
             console.workers: each address must be the admin.listen of a worker of this queue."
        )
    );
    assert!(Overview::new("q", &["q.dead"], vec![of("q")], Ok(Depths::default())).works);
}

#[test]
fn sentence_counts_messages_that_a_worker_holds() {
    for (ready, in_flight, retry, sentence) in [
        (0, 0, 0, "Working. No message waits on the queue."),
        (0, 1, 0, "Working. One message waits in the worker."),
        (0, 12, 0, "Working. 12 messages wait in the worker."),
        (0, 0, 1, "Working. One message waits on retry queues."),
        (0, 2, 10, "Working. 12 messages wait: 10 on retry queues, 2 in the worker."),
        (194, 91, 0, "Working. 285 messages wait: 194 on the queue, 91 in the worker."),
    ] {
        let messages = Messages { in_flight, ..Messages::default() };
        // The forecast was measured before, and is not what waits now.
        let forecast = Forecast { backlog: Some(99), ..Forecast::default() };
        let holding = answer(Ok(Page { messages, forecast, ..page("active") }));
        let depths = Depths::from([("q".to_owned(), ready), ("q.retry.10s".to_owned(), retry)]);
        assert_eq!(Overview::new("q", &["q.dead"], vec![holding], Ok(depths)).sentence, sentence);
    }
}

#[test]
fn workers_stand_by_when_another_is_active() {
    let roles = |pages: &[&str]| roles(&pages.iter().map(|role| answer(Ok(page(role)))).collect::<Vec<_>>());
    assert_eq!(roles(&["active", "not_known"]), ["active", "standby"]);
    assert_eq!(
        roles(&["not_known", "not_connected"]),
        ["active or standby (not known before its first message)", "not connected"]
    );
}
