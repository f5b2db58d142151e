//! Tests of searches, and of accounts that differ from the vendor's pages.

use super::*;

#[tokio::test]
async fn query_finds_tasks_by_field_and_by_time() {
    let crm = Crm::start(options()).await;
    let id = crm.insert("First").await.json()["data"]["wolkvox_id"].as_str().unwrap().to_owned();
    crm.insert("Second").await.assert_created();
    let found = crm.find(QUERY, json!({"field": "name", "value": "First"})).await;
    assert_eq!(found.len(), 1);
    let record = found[0].as_object().unwrap();
    assert_eq!((&record["wolkvox_id"], &record["description"]), (&json!(id), &json!("Ñandú ☎")));
    assert_eq!(crm.find(QUERY, json!({"field": "wolkvox_id", "value": id})).await, found);
    assert_eq!(crm.find(QUERY, json!({"field": "id_record", "value": 1})).await.len(), 2);
    for (field, value) in [("name", "Third"), ("nothing", "First")] {
        assert!(crm.find(QUERY, json!({"field": field, "value": value})).await.is_empty());
    }
    let created = record["wolkvox_fecha_creacion"].as_str().unwrap();
    let dates = |from: &str, to: &str| json!({"date": true, "from": from, "to": to});
    let minute = &created[..16];
    assert!(crm.find(QUERY_DATES, dates(minute, "2999-01-01 00:00")).await.contains(&found[0]));
    assert!(crm.find(QUERY_DATES, dates("2000-01-01 00:00", "2000-01-02 00:00")).await.is_empty());
    let mut limited = dates(minute, "2999-01-01 00:00");
    limited["limit"] = json!(1);
    assert_eq!(crm.find(QUERY_DATES, limited).await.len(), 1);
    assert_eq!(crm.requests("query").await, 8);
    assert_eq!(crm.token_information().await.json()["data"]["token_use_today"], 11, "each search spends a call");
}

#[tokio::test]
async fn query_finds_nothing_when_activities_cannot_be_searched() {
    let crm = Crm::start(Options { query: false, ..options() }).await;
    crm.insert("First").await.assert_created();
    assert!(crm.find(QUERY, json!({"field": "name", "value": "First"})).await.is_empty());
}

#[tokio::test]
async fn query_refuses_a_search_with_a_missing_or_wrong_parameter() {
    let crm = Crm::start(options()).await;
    let module = json!({"operation": "demo", "module": "wolkvox_activities"});
    for (path, search, wanting) in [
        (QUERY, json!([]), "a JSON object"),
        (QUERY, json!({"operation": "demo"}), "module"),
        (QUERY, json!({"value": "x"}), "field"),
        (QUERY, json!({"field": "name"}), "value"),
        (QUERY_DATES, json!({"from": "2026-01-01 00:00", "to": "2026-01-01 00:00"}), "date (must be true)"),
        (QUERY_DATES, json!({"date": true, "from": "2026-01-01"}), "from (must be a date, as YYYY-MM-DD HH:MM)"),
    ] {
        let mut body = search;
        if let Some(members) = body.as_object_mut()
            && !members.contains_key("operation")
        {
            members.extend(module.as_object().unwrap().clone());
        }
        let request = crm.request(Method::POST, path).header("Wolkvox-Token", "one").body(body.to_string());
        refused(request, 400, "BAD REQUEST", &format!("SOME PARAMETERS ARE REQUIRED: {wanting}")).await;
    }
    let other = json!({"operation": "other", "module": "x"}).to_string();
    let request = crm.request(Method::POST, QUERY).header("Wolkvox-Token", "one").body(other);
    refused(request, 403, "FORBIDDEN", "PLEASE VALIDATE TOKEN").await;
}

/// Starts a sandbox whose account differs in these ways.
async fn account(ways: &[&str]) -> Crm {
    let crm = Crm::start(options()).await;
    let rules: Vec<Value> = ways.iter().map(|way| json!({"action": format!("account:{way}")})).collect();
    crm.fault(json!(rules)).await;
    crm
}

#[tokio::test]
async fn account_rules_change_how_codes_and_statuses_are_written() {
    let crm = account(&["string-codes", "status-200", "bad-token:401:NO SUCH TOKEN"]).await;
    assert_eq!(crm.insert("x").await.json()["code"], "200");
    let refused = send(crm.insert_request("three", &task("x"))).await.unwrap();
    assert_eq!(refused.status, 200);
    assert_eq!(refused.json(), json!({"code": "401", "error": "UNAUTHORIZED", "msg": "NO SUCH TOKEN"}));
    let crm = account(&["number-codes"]).await;
    assert_eq!(crm.token_information().await.json()["code"], 200);
}

#[tokio::test]
async fn account_rules_change_ids_times_and_accents() {
    let crm = account(&["no-id", "altered-accents", "zone:UTC-05:00", "clock:+1d"]).await;
    assert_eq!(crm.insert("x").await.json()["data"], json!({}));
    let record = &crm.find(QUERY, json!({"field": "name", "value": "x"})).await[0];
    assert_eq!(record["description"], "u00d1andu00fa u260e");
    let created: jiff::civil::DateTime = record["wolkvox_fecha_creacion"].as_str().unwrap().parse().unwrap();
    let at: jiff::Timestamp = crm.get("/sandbox/tasks").await[0]["at"].as_str().unwrap().parse().unwrap();
    let ahead = created.to_zoned_datetime(jiff::tz::TimeZone::UTC).unwrap().timestamp().as_second() - at.as_second();
    assert_eq!(ahead, 19 * 3600);
    let id = account(&["uuid-id"]).await.insert("x").await.json()["data"]["wolkvox_id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 36, "{id}");
}

#[tokio::test]
async fn account_rules_change_counting_and_searching() {
    let crm = account(&["slow-counter:1h", "slow-query:1h"]).await;
    for _ in 0..2 {
        assert_eq!(crm.token_information().await.json()["data"]["token_use_today"], 1);
    }
    crm.insert("x").await.assert_created();
    assert!(crm.find(QUERY, json!({"field": "name", "value": "x"})).await.is_empty());
    let crm = account(&["free-information", "lenient", "close"]).await;
    let lacking = json!({"operation": "demo", "fields": {"name": "x"}});
    let reply = send(crm.insert_request("one", &lacking)).await.unwrap();
    reply.assert_created();
    assert_eq!(reply.headers["connection"], "close");
    for _ in 0..2 {
        assert_eq!(crm.token_information().await.json()["data"]["token_use_today"], 1);
    }
}
