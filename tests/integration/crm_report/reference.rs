//! The task of a report has the reference that the worker gives to the task of a message.

use serde_json::Value;

use super::{Folder, MESSAGE, answer, env, options};
use crate::support::process::run;
use crate::support::rig::Crm;

#[tokio::test]
async fn test_task_has_the_workers_reference_when_configured() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("reference"));
    for field in ["name", "description"] {
        let path = folder.0.join(format!("{field}.json"));
        let args = ["crm-report", "--yes", "--search-for", "0s", "--output", path.to_str().expect("text"), "-"];
        let mut env = env(&crm.url);
        env.push(("WTW_TASK_REFERENCE".to_owned(), field.to_owned()));
        let finished = run(&args, &env, MESSAGE.as_bytes()).await;
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let task = crm.tasks().await.pop().expect("a task");
        let (_, reference) = task[field].as_str().expect("text").rsplit_once(' ').expect("a reference");
        assert!(reference.starts_with("[ref:") && reference.len() == "[ref:]".len() + 12, "{task}");
        // The worker computes the same reference for a message with this id.
        let (_, id) = finished.stderr.split_once("the reference of the message id ").expect("an id");
        let id = id.split('.').next().expect("an id");
        let mapped = run(&["map", "--message-id", id, "-"], &env, with_date().as_bytes()).await;
        assert_eq!(mapped.code, Some(0), "{}", mapped.stderr);
        assert!(mapped.stdout.contains(reference), "{reference} is not in {}", mapped.stdout);
        let json: Value = serde_json::from_slice(&std::fs::read(&path).expect("a report")).expect("JSON");
        let name = task["name"].as_str().expect("text");
        let how =
            format!("look for \"{name}\", whose {field} ends with {reference}, among its activities, and delete it");
        for (place, text) in [
            ("before it is sent", finished.stderr.as_str()),
            ("summary", &finished.stdout),
            ("report", json["task"]["remove"][1].as_str().expect("text")),
        ] {
            assert!(text.contains(&how), "{place}: {how} is not in {text}");
        }
        // The report must not show the id: with it people could guess the operation from the reference.
        assert!(!json.to_string().contains(id), "{json}");
        for (about, expected) in [("query", "found"), ("query_dates", "found"), ("accents", "intact")] {
            assert_eq!(answer(&json, about), expected, "{about}");
        }
        let shown = json["exchanges"].to_string();
        assert!(shown.contains(reference) && json["task"]["name"] == name, "{shown}");
    }
}

fn with_date() -> String {
    MESSAGE.replacen('{', r#"{"completion_date": "2027-03-01 10:00:00", "#, 1)
}
