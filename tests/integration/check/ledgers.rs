//! What `check` says of a ledger file and of Redis.

use super::{check, closed_port};
use crate::support::redis::Redis;
use crate::support::rig::{LedgerFile, Rig, task};

#[tokio::test]
async fn ledger_file_in_use_is_ok_and_a_damaged_one_is_a_problem() {
    let rig = Rig::new("check.ledger").await;
    let ledger = LedgerFile::new();
    let url = ledger.url();
    let beside = ("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", "false");
    let env = rig.env(&[("WTW_LEDGER_URL", &url), beside]);
    let first = rig.worker(&[("WTW_LEDGER_URL", &url), beside]).await;
    let second = rig.worker(&[beside]).await;
    let checked = check(&["--no-crm"], &env).await;
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    checked.has("ledger", "ok", "a running worker has it open");
    checked.has("audit.replicas", "warning", "2 workers consume the queue side by side");
    checked.has("audit.replicas", "warning", "2 workers consume the queue, and each has a ledger of its own");
    drop(second);
    rig.publish("m-1", &task("one")).await;
    rig.crm.created(1).await;
    first.process.stop().await;
    check(&["--no-crm"], &env).await.has("ledger", "ok", "can be read and written, 1 entry");

    let path = ledger.folder().join("ledger.db");
    std::fs::write(&path, [7; 9_000]).expect("written");
    let checked = check(&["--no-crm"], &env).await;
    assert_eq!(checked.code, Some(1), "{}", checked.said);
    checked.has("ledger", "problem", "it is damaged: ");
    assert_eq!(std::fs::read(&path).expect("read"), [7; 9_000], "left alone");
    let elsewhere = rig.env(&[("WTW_LEDGER_URL", "file:/nowhere/ledger.db")]);
    check(&["--no-crm"], &elsewhere).await.has("ledger", "problem", "its folder does not exist");
}

#[tokio::test]
async fn redis_that_evicts_or_refuses_commands_is_a_problem() {
    let rig = Rig::new("check.redis").await;
    let redis = Redis::own().await.expect("a Redis");
    let client = redis::Client::open(redis.url.as_str()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let env = rig.env(&[("WTW_LEDGER_URL", &redis.url)]);
    let checked = check(&["--no-crm"], &env).await;
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    checked.has("ledger", "ok", "(reached at ");
    for (name, part) in [("ledger", "can be read and written"), ("ledger.memory", ""), ("ledger.persistence", "")] {
        checked.has(name, "ok", part);
    }
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("keys");
    assert_eq!(keys, Vec::<String>::new(), "nothing is left in it");

    // If the worker may not run a command that it needs, `check` must report a problem.
    for denied in [
        "-del",
        "-eval",
        "-get",
        "-hget",
        "-hgetall",
        "-hmget",
        "-hset",
        "-hsetnx",
        "-zscan",
        "-set",
        "-zadd",
        "-zcard",
        "-zrange",
        "-zrem",
        "-zrevrangebyscore",
    ] {
        let mut user = redis::cmd("ACL");
        user.arg(&["SETUSER", "limited", "reset", "on", ">hunter2", "~*", "+@all", denied]);
        user.query_async::<()>(&mut connection).await.expect("a user");
        let limited = redis.url.replace("redis://", "redis://limited:hunter2@");
        let checked = check(&["--no-crm"], &rig.env(&[("WTW_LEDGER_URL", &limited)])).await;
        assert_eq!(checked.code, Some(1), "{denied}: {}", checked.said);
        checked.has("ledger", "problem", "may do");
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("keys");
        assert_eq!(keys, Vec::<String>::new(), "{denied}: nothing is left in it");
    }

    let set = redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).query_async::<()>(&mut connection).await;
    set.expect("set");
    let checked = check(&["--no-crm"], &env).await;
    checked.has("ledger", "problem", "give Redis more memory");
    assert!(!checked.said.contains("Index"), "{}", checked.said);

    for (key, value) in [("maxmemory", "100mb"), ("maxmemory-policy", "allkeys-lru"), ("appendonly", "no")] {
        let set = redis::cmd("CONFIG").arg("SET").arg(key).arg(value).query_async::<()>(&mut connection).await;
        set.expect("set");
    }
    let checked = check(&["--no-crm"], &env).await;
    assert_eq!(checked.code, Some(1), "{}", checked.said);
    checked.has("ledger.memory", "problem", "allkeys-lru");
    checked.has("ledger.persistence", "warning", "set appendonly yes");

    let login = redis.url.replace("redis://", "redis://somebody:hunter2@");
    let port = closed_port();
    let away = format!("redis://127.0.0.1:{port}/0");
    let refused = format!("127.0.0.1:{port}: Connection refused → start Redis");
    for (url, part) in [(login.as_str(), "→ check user and password"), (&away, &refused)] {
        let checked = check(&["--no-crm"], &rig.env(&[("WTW_LEDGER_URL", url)])).await;
        assert_eq!(checked.code, Some(1), "{}", checked.said);
        checked.has("ledger", "problem", part);
        assert!(!checked.said.contains("hunter"), "{}", checked.said);
    }
}
