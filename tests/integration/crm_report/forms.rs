//! Accounts whose answers have another form than the vendor's pages show. The report on the account and the report on its
//! replay must say the same.

use serde_json::{Value, json};

use wolkvox_task_worker::sandbox::Options;

use super::replay::replayed;
use super::{Folder, answer, answers, finding, options, report};
use crate::support::rig::Crm;

/// An exchange of a report.
pub(super) fn exchange<'a>(report: &'a mut Value, name: &str) -> &'a mut Value {
    let exchanges = report["exchanges"].as_array_mut().expect("exchanges");
    exchanges.iter_mut().find(|exchange| exchange["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// The answer to a call as JSON.
fn body(report: &mut Value, name: &str) -> Value {
    let body = exchange(report, name)["response"]["body"].as_str().expect("a body");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// Changes the report as if the account had given this answer, in which the task is missing.
fn miss(report: &mut Value, name: &str, by: &str, status: u16, body: &Value) {
    let exchange = exchange(report, name);
    exchange["response"]["status"] = json!(status);
    exchange["response"]["body"] = json!(body.to_string());
    let number = exchange["number"].clone();
    let answers = report["sandbox"]["answers"].as_object_mut().expect("answers");
    answers.remove(&format!("found_by_{by}"));
    answers.insert(format!("not_found_by_{by}"), number);
}

/// Reports on a replay of `first`, and on a replay of that report, which must say the same.
async fn replays(first: &Value, folder: &Folder) -> Value {
    let (_, second) = report(&replayed(first).await.url, folder, &[]).await;
    let (_, third) = report(&replayed(&second).await.url, folder, &[]).await;
    assert_eq!(answers(&third), answers(&second), "{}", second["sandbox"]);
    let words = |report: &Value| {
        let words = finding(report, "query")["words"].as_str().expect("text").to_owned();
        words.replace(|c: char| c.is_ascii_digit(), "")
    };
    assert_eq!(words(&third), words(&second));
    second
}

const CREATED: &str = "wolkvox_fecha_creacion";

/// How an account writes a task that a search finds.
type Form = fn(&Value) -> Value;

/// The task with another value in one member.
fn with(task: &Value, member: &str, value: Value) -> Value {
    let mut task = task.clone();
    task[member] = value;
    task
}

/// The task with its completion date in another form.
fn with_date(task: &Value, form: fn(&str) -> String) -> Value {
    with(task, "completion_date", json!(form(task["completion_date"].as_str().expect("a date"))))
}

/// The name of a form, the form, and the questions of the report with their expected answers.
type Case = (&'static str, Form, &'static [(&'static str, &'static str)]);

const FORMS: [Case; 16] = [
    (
        "without a name",
        |task| json!({"wolkvox_id": task["wolkvox_id"], CREATED: task[CREATED], "status": "created"}),
        &[("answer_zone", "UTC+00:00"), ("sent_dates", "unknown"), ("accents", "unknown")],
    ),
    (
        "nested",
        |task| json!({"wolkvox_id": task["wolkvox_id"], CREATED: task[CREATED], "fields": with(task, CREATED, json!(null))}),
        &[("answer_zone", "UTC+00:00"), ("sent_dates", "unchanged"), ("accents", "intact")],
    ),
    ("created as day/month", |task| with(task, CREATED, json!("30/11/2026 01:34:48")), &[("answer_zone", "unknown")]),
    ("created as a number", |task| with(task, CREATED, json!(1_796_000_000)), &[("answer_zone", "unknown")]),
    ("created as a date", |task| with(task, CREATED, json!("2026-11-30")), &[("answer_zone", "unknown")]),
    ("created with Z", |task| with(task, CREATED, json!("2026-11-30T01:34:48Z")), &[("answer_zone", "UTC+00:00")]),
    ("created without seconds", |task| with(task, CREATED, json!("2026-11-30 01:34")), &[("answer_zone", "UTC+00:00")]),
    ("date with T", |task| with_date(task, |date| date.replace(' ', "T")), &[("sent_dates", "changed")]),
    ("date without seconds", |task| with_date(task, |date| date[..16].to_owned()), &[("sent_dates", "changed")]),
    ("date alone", |task| with_date(task, |date| date[..10].to_owned()), &[("sent_dates", "changed")]),
    ("seconds lost", |task| with_date(task, |date| format!("{}00", &date[..17])), &[("sent_dates", "changed")]),
    (
        "seconds lost, with T",
        |task| with_date(task, |date| format!("{}00.000Z", &date[..17].replace(' ', "T"))),
        &[("sent_dates", "changed")],
    ),
    ("time lost", |task| with_date(task, |date| format!("{} 00:00:00", &date[..10])), &[("sent_dates", "changed")]),
    (
        "description as a page",
        |task| with(task, "description", json!(format!("<p>{}</p>\n", task["description"].as_str().expect("text")))),
        &[("accents", "intact")],
    ),
    ("date as day/month", |task| with(task, "completion_date", json!("01/12/2026")), &[("sent_dates", "changed")]),
    ("date as a number", |task| with(task, "completion_date", json!(1_796_000_000)), &[("sent_dates", "changed")]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_in_another_form_is_recognised_and_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("forms"));
    let (_, base) = report(&crm.url, &folder, &[]).await;
    for (what, form, expected) in FORMS {
        let mut first = base.clone();
        for name in ["query_by_id", "query_by_name", "query_by_record", "query_by_dates"] {
            let mut body = body(&mut first, name);
            body["data"][0] = form(&body["data"][0]);
            exchange(&mut first, name)["response"]["body"] = json!(body.to_string());
        }
        let second = replays(&first, &folder).await;
        for (about, expected) in [("query", "found"), ("query_dates", "found")].iter().chain(expected) {
            assert_eq!(answer(&second, about), *expected, "{what}, {about}: {}", finding(&second, about));
        }
        assert_eq!(second["exchanges"].as_array().map(Vec::len), Some(10), "{what}: one search by each field");
    }
}

#[tokio::test]
async fn form_of_a_searchs_answer_is_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("form"));
    let (_, mut first) = report(&crm.url, &folder, &[]).await;
    for name in ["query_by_id", "query_by_dates"] {
        let body =
            body(&mut first, name).to_string().replace("\"data\":", "\"rows\":").replace("\"name\":", "\"title\":");
        exchange(&mut first, name)["response"]["body"] = json!(body.replace("\"description\":", "\"text\":"));
    }
    let again = replayed(&first).await;
    let (_, mut second) = report(&again.url, &folder, &[]).await;
    for name in ["query_by_id", "query_by_dates"] {
        let task = body(&mut second, name)["rows"][0].clone();
        assert_eq!((&task["title"], &task["name"]), (&again.tasks().await[0]["name"], &Value::Null), "{name}");
        assert_eq!(task["wolkvox_id"], second["task"]["wolkvox_id"], "{name}");
    }
    assert_eq!(
        (answer(&second, "query"), answer(&second, "query_dates"), answer(&second, "accents")),
        ("found", "found", "unknown")
    );
    replays(&second, &folder).await;
}

/// Each call of `query.php`, and what it searches by.
const BY_FIELD: [(&str, &str); 3] =
    [("query_by_id", "wolkvox_id"), ("query_by_name", "name"), ("query_by_record", "id_record")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_finds_the_task_by_the_fields_of_the_account_only() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("fields"));
    let (_, base) = report(&crm.url, &folder, &[]).await;
    let nothing = (200, json!({"code": "200", "data": []}));
    let refused = (400, json!({"code": 400, "msg": "SOME PARAMETERS ARE REQUIRED"}));
    for (misses, (status, body), query, words) in [
        (
            &["wolkvox_id", "id_record"][..],
            &nothing,
            "found",
            "finds the task by name # s after insert.php; not by wolkvox_id",
        ),
        (
            &["name"],
            &nothing,
            "found",
            "by wolkvox_id # s after insert.php; by id_record # s after insert.php; not by name",
        ),
        (
            &["wolkvox_id"],
            &refused,
            "found",
            "by id_record # s after insert.php. A search by wolkvox_id was refused (# s",
        ),
        (&["wolkvox_id", "name", "id_record"], &nothing, "not_found", "does not find the task, not by wolkvox_id"),
        (&["wolkvox_id", "name", "id_record"], &refused, "refused", "Each search with query.php was refused"),
    ] {
        let mut first = base.clone();
        for (name, by) in BY_FIELD.iter().filter(|(_, by)| misses.contains(by)) {
            miss(&mut first, name, by, *status, body);
        }
        let second = replays(&first, &folder).await;
        let said = finding(&second, "query")["words"].as_str().expect("text");
        let said = said.replace(|c: char| c.is_ascii_digit(), "").replace(" . s", " # s").replace("(. s", "(# s");
        assert_eq!((answer(&second, "query"), said.contains(words)), (query, true), "{said}");
        assert_eq!(answer(&second, "query_dates"), "found");
    }
}

#[tokio::test]
async fn search_by_dates_that_returns_only_others_is_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("others"));
    let (_, mut first) = report(&crm.url, &folder, &[]).await;
    miss(&mut first, "query_by_dates", "dates", 200, &json!({"code": "200", "data": []}));
    exchange(&mut first, "query_by_dates")["response"]["other_tasks_left_out"] = json!(100);
    let second = replays(&first, &folder).await;
    assert_eq!((answer(&second, "query_dates"), answer(&second, "query")), ("too_many", "found"));
}

/// What an account says about the counter, and the expected answers to `quota_reset` and `counter`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn form_of_the_counters_answer_is_replayed() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("counter"));
    let (_, mut base) = report(&crm.url, &folder, &[]).await;
    let usual = body(&mut base, "counter_before");
    let data = |data: Value| json!({"code": "200", "data": data});
    let hours = |hours: Value| data(with(&usual["data"], "hours_to_restart_count", hours));
    for (status, body, reset, counter) in [
        (200, hours(json!("5")), "midnight", "exact"),
        (200, hours(json!("3 horas")), "unknown", "exact"),
        (200, hours(json!("22:28")), "unknown", "exact"),
        (200, hours(json!(3.47)), "unknown", "exact"),
        (200, hours(json!(null)), "unknown", "exact"),
        (200, data(with(&usual["data"], "token_use_today", json!(null))), "midnight", "unknown"),
        (200, data(json!([usual["data"]])), "unknown", "unknown"),
        (200, data(json!({"used": 7})), "unknown", "unknown"),
        (400, json!({"code": 400, "msg": "NO COUNTER"}), "unknown", "unknown"),
    ] {
        let mut first = base.clone();
        exchange(&mut first, "counter_before")["response"]["status"] = json!(status);
        exchange(&mut first, "counter_before")["response"]["body"] = json!(body.to_string());
        let second = replays(&first, &folder).await;
        assert_eq!((answer(&second, "quota_reset"), answer(&second, "counter")), (reset, counter), "{body}");
        assert_eq!(answer(&second, "insert"), "created", "{body}");
    }
}

#[tokio::test]
async fn daily_limit_that_the_account_does_not_keep_is_shown_by_the_replay() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("limit"));
    let (_, mut first) = report(&crm.url, &folder, &[]).await;
    let mut counter = body(&mut first, "counter_before");
    (counter["data"]["token_limit"], counter["data"]["available_consumition_options"]) = (json!("0"), json!("0"));
    exchange(&mut first, "counter_before")["response"]["body"] = json!(counter.to_string());
    first["sandbox"]["daily_limit"] = json!(null);
    let mut second = replays(&first, &folder).await;
    assert_eq!((answer(&second, "insert"), &second["sandbox"]["daily_limit"]), ("created", &json!(null)));
    assert_eq!(body(&mut second, "counter_before")["data"]["token_limit"], "0");
}

/// The worker treats these answers as refusals, although the task was created.
#[tokio::test]
async fn report_advises_against_an_account_that_creates_a_task_it_refuses() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("created-refused"));
    let (_, base) = report(&crm.url, &folder, &[]).await;
    for code in [201, 417] {
        let mut first = base.clone();
        let id = first["task"]["wolkvox_id"].clone();
        exchange(&mut first, "insert")["response"]["body"] =
            json!(json!({"code": code, "msg": "WARNING", "data": {"wolkvox_id": id}}).to_string());
        let second = replays(&first, &folder).await;
        let set = finding(&second, "insert")["set"].as_str().expect("text");
        assert!(set.starts_with("nothing: do not start the worker with this account."), "{code}: {set}");
        assert_eq!(second["task"]["state"], "found_by_search");
    }
}

/// If a report ends after its first call, it saw only one form of `code`, the documented one.
#[tokio::test]
async fn code_type_is_documented_after_one_answer_in_that_form() {
    let (crm, folder) = (Crm::start(Options { daily_limit: 1, ..options() }).await, Folder::new("one-answer"));
    let (_, report) = report(&crm.url, &folder, &[]).await;
    assert_eq!(answer(&report, "code_type"), "documented", "{}", finding(&report, "code_type"));
}
