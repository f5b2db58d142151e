//! Tests of what `publish` reports after an error or an interruption.

use std::sync::Mutex;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::*;
use crate::broker::{Properties, Publish, PublishError};
use crate::config::TopologyMode;
use crate::message::export::input::Input;

const DECLARE: TopologyMode = TopologyMode::Declare;

/// A publisher whose answer depends on the name in the message.
#[derive(Default)]
struct FakePublisher {
    published: Mutex<Vec<String>>,
    release: Notify,
}

impl Publish for FakePublisher {
    fn publish<'a>(
        &'a self,
        _: &'a str,
        body: &'a [u8],
        properties: Properties,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        let body = String::from_utf8(body.to_vec()).unwrap();
        let id = properties.message_id().as_ref().unwrap().to_string();
        Box::pin(async move {
            if body.contains("refused") {
                return Err(PublishError::Refused);
            }
            if body.contains("unconfirmed") {
                return Err(PublishError::Unconfirmed("the connection ended".to_owned()));
            }
            if body.contains("returned") {
                return Err(PublishError::Returned("NO_ROUTE (q)".to_owned()));
            }
            if body.contains("slow") {
                self.release.notified().await;
            }
            if body.contains("silent") {
                std::future::pending::<()>().await;
            }
            self.published.lock().unwrap().push(id);
            Ok(())
        })
    }

    fn frame_max(&self) -> usize {
        131_072
    }
}

fn input(names: &[&str]) -> Input<std::io::Cursor<Vec<u8>>> {
    let lines: Vec<String> = names.iter().map(|name| format!("{{\"name\":\"{name}\"}}\n")).collect();
    Input::new(std::io::Cursor::new(lines.concat().into_bytes()), Ids::Batch("b".to_owned()))
}

fn fingerprints(names: &[&str]) -> Vec<u64> {
    input(names).map(|message| message.unwrap().fingerprint()).collect()
}

async fn send(names: &[&str], publisher: &FakePublisher, stop: &CancellationToken) -> Option<String> {
    let sent =
        send::all(input(names), &fingerprints(names), publisher, "q", DECLARE, &ProgressBar::hidden(), stop).await;
    sent.report("q")
}

#[tokio::test]
async fn send_reports_every_message_after_an_error() {
    let good = ["good"; 40];
    for (bad, said) in [
        ("refused", "message 21: RabbitMQ refused the message; is the queue full?\n"),
        ("unconfirmed", "message 21: RabbitMQ did not confirm the message: the connection ended\n"),
        ("returned", "message 21: there is no queue q; "),
    ] {
        let (publisher, stop) = (FakePublisher::default(), CancellationToken::new());
        let names = [&good[..20], &[bad], &good[..]].concat();
        let report = send(&names, &publisher, &stop).await.unwrap();
        let confirmed = publisher.published.lock().unwrap().len();
        assert!(report.contains(said), "{report}");
        let last = confirmed + 1;
        let begun =
            if last > 21 { format!("1 to 20, 22 to {last}").replace("22 to 22", "22") } else { "1 to 20".to_owned() };
        assert!(report.contains(&format!("confirmed: {begun} ({confirmed} of 61)")), "{confirmed}: {report}");
        let (unpublished, unknown) = match bad {
            "unconfirmed" => (format!("{} to 61", last + 1), "21 (1 of 61)"),
            _ => (format!("21, {} to 61", last + 1), "none (0 of 61)"),
        };
        assert!(report.contains(&format!("not published: {unpublished} (")), "{report}");
        assert!(report.contains(&format!("not known whether published: {unknown}")), "{report}");
    }
}

#[tokio::test]
async fn send_waits_for_open_publishes_after_an_interruption() {
    let (publisher, stop) = (FakePublisher::default(), CancellationToken::new());
    let names = ["slow"; 40];
    let interrupting = async {
        tokio::task::yield_now().await;
        stop.cancel();
        tokio::task::yield_now().await;
        for _ in 0..16 {
            publisher.release.notify_one();
            tokio::task::yield_now().await;
        }
    };
    let (report, ()) = tokio::join!(send(&names, &publisher, &stop), interrupting);
    let report = report.unwrap();
    assert_eq!(publisher.published.lock().unwrap().len(), 16);
    assert!(report.starts_with("interrupted\nconfirmed: 1 to 16 (16 of 40)\nnot published: 17 to 40"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn send_reports_a_publish_without_confirm_as_unknown() {
    let (publisher, stop) = (FakePublisher::default(), CancellationToken::new());
    let report = send(&["good", "silent", "refused", "good"], &publisher, &stop).await.unwrap();
    for part in
        ["confirmed: 1, 4 (", "not published: 3 (", "not known whether published: 2 (", "message 2: no confirm within"]
    {
        assert!(report.contains(part), "{report}");
    }
}

#[tokio::test]
async fn send_stops_at_the_checked_messages_and_reports_a_changed_input() {
    let (more, fewer) = ("what follows message 2 was not checked and was not published", "it ends after message 3");
    for (checked, how, published) in [
        (2_usize, more, "confirmed: 1 to 2 (2 of 2)\nnot published: none (0 of 2)\n"),
        (4, fewer, "confirmed: 1 to 3 (3 of 4)\nnot published: 4 (1 of 4)\n"),
    ] {
        let (publisher, stop) = (FakePublisher::default(), CancellationToken::new());
        let known = fingerprints(&["good"; 4][..checked]);
        let sent =
            send::all(input(&["good"; 3]), &known, &publisher, "q", DECLARE, &ProgressBar::hidden(), &stop).await;
        let report = sent.report("q").unwrap();
        let said = format!("the input changed after it was checked: {how}\n{published}");
        assert!(report.starts_with(&said), "{report}");
        assert!(!report.contains("Run the same command again"), "{report}");
        assert_eq!(publisher.published.lock().unwrap().len(), checked.min(3));
    }
}

#[tokio::test]
async fn send_stops_at_a_message_that_changed_after_the_check() {
    let (publisher, stop) = (FakePublisher::default(), CancellationToken::new());
    let known = fingerprints(&["a", "b", "c"]);
    let changed = input(&["a", "other", "c"]);
    let sent = send::all(changed, &known, &publisher, "q", DECLARE, &ProgressBar::hidden(), &stop).await;
    let report = sent.report("q").unwrap();
    let said = "message 2: the input changed after it was checked: its content is different\nconfirmed: 1 (1 of 3)\n";
    assert!(report.starts_with(said), "{report}");
    assert!(report.contains("not published: 2 to 3 (2 of 3)"), "{report}");
    assert!(report.contains("can be created twice") && !report.contains("Run the same command again"), "{report}");
    assert_eq!(publisher.published.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn missing_queue_is_created_by_its_owner_when_the_topology_is_only_verified() {
    let (publisher, stop) = (FakePublisher::default(), CancellationToken::new());
    for (topology, said) in [
        (
            DECLARE,
            "there is no queue q; \"wolkvox-task-worker run\" or \"topology --apply\" creates it; or correct broker.queue",
        ),
        (
            TopologyMode::Verify,
            "there is no queue q; ask its owner to declare it as \"wolkvox-task-worker topology\" prints",
        ),
    ] {
        let (names, bar) = (["returned"; 2], ProgressBar::hidden());
        let sent = send::all(input(&names), &fingerprints(&names), &publisher, "q", topology, &bar, &stop).await;
        let report = sent.report("q").unwrap();
        assert!(report.starts_with(&format!("messages 1 to 2: {said}")), "{report}");
    }
}

#[tokio::test]
async fn ids_are_the_same_in_a_second_run() {
    let (first, second, stop) = (FakePublisher::default(), FakePublisher::default(), CancellationToken::new());
    let names = ["a", "b", "a"];
    assert_eq!(send(&names, &first, &stop).await, None);
    assert_eq!(send(&names, &second, &stop).await, None);
    let ids = |publisher: &FakePublisher| {
        let mut ids = publisher.published.lock().unwrap().clone();
        ids.sort();
        ids.dedup();
        ids
    };
    assert_eq!(ids(&first).len(), 3);
    assert_eq!(ids(&first), ids(&second));
}

#[test]
fn check_reports_every_problem_before_anything_is_sent() {
    let config = crate::config::Config::load(&Sources::default(), &[]).unwrap().config;
    let good = r#"{"name": "a", "name_module": "m", "id_record": 1, "wolkvox_owner": "o", "completion_date": "2026-07-30T09:00:00"}"#;
    let text = format!("{good}\n{{\"nam\": 1}}\n{good}\n7");
    let ids = Ids::Field("id_record".to_owned());
    let check = |text: &str, validator: Option<&Validator>| {
        ValidatedInput::of(Input::new(text.as_bytes(), ids.clone()), &ids, validator)
    };
    let report = check(&text, Some(&Validator::new(&config, jiff::Timestamp::UNIX_EPOCH).unwrap())).report().unwrap();
    for line in [
        "message 2 (line 2): it has no field id_record, from which --id-field takes the id",
        "message 3 (line 3): it has the same id as message 1, \"1\"",
        "message 4 (line 4): it is not a JSON object",
        "3 of 4 messages have problems; nothing was published",
    ] {
        assert!(report.lines().any(|said| said == line), "{line} is not in\n{report}");
    }
    let bad = good.replace("\"name\"", "\"nam\"");
    let report = check(&bad, Some(&Validator::new(&config, jiff::Timestamp::UNIX_EPOCH).unwrap())).report().unwrap();
    assert!(report.contains("message 1 (line 1): nam: is not a known field; did you mean name?\n"), "{report}");
    assert!(report.contains("message 1 (line 1): name: is missing; a text is required\n"), "{report}");
    assert_eq!(check(&bad, None).report(), None, "without validation");
    let many = format!("{bad}\n").repeat(60);
    let report = ValidatedInput::of(
        Input::new(many.as_bytes(), Ids::Batch("b".to_owned())),
        &Ids::Batch("b".to_owned()),
        Some(&Validator::new(&config, jiff::Timestamp::UNIX_EPOCH).unwrap()),
    )
    .report()
    .unwrap();
    assert!(report.contains("… and 10 more messages with problems\n60 of 60 messages have problems"), "{report}");
}

#[test]
fn batch_is_the_files_name_unless_given() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    let ids = |args: &[&str]| {
        let parsed: Result<Cli, _> = clap::Parser::try_parse_from([&["publish"], args].concat());
        parsed.map(|cli| cli.args.ids())
    };
    let batch = |name: &str| Ids::Batch(name.to_owned());
    assert_eq!(ids(&[]).unwrap(), batch("-"));
    assert_eq!(ids(&["-"]).unwrap(), batch("-"));
    assert_eq!(ids(&["a/b/tasks.json"]).unwrap(), batch("tasks.json"));
    assert_eq!(ids(&["a/tasks.json", "--batch", "monday"]).unwrap(), batch("monday"));
    assert_eq!(ids(&["--id-field", "n"]).unwrap(), Ids::Field("n".to_owned()));
    assert!(ids(&["--id-field", "n", "--batch", "b"]).is_err());
}
