//! Tests of a replay that is killed or interrupted and then run again.

use std::collections::BTreeSet;

use super::replaying::eventually_quiet;
use super::{dead_properties, succeeds, tool};
use crate::support::process::Process;
use crate::support::rig::{LedgerFile, Rig, task};

#[tokio::test]
async fn replay_that_is_killed_repeatedly_creates_each_task_once() {
    let _turn = crate::support::heavy().await;
    const COUNT: usize = 400;
    let rig = Rig::new("dead.killed").await;
    let ledger = LedgerFile::new();
    let settings = [("WTW_LEDGER_URL", ledger.url()), ("WTW_RETRY_ON_UNKNOWN", "dead-letter".to_owned())];
    let settings = settings.each_ref().map(|(key, value)| (*key, value.as_str()));
    let worker = rig.worker(&settings).await;
    let mut names = BTreeSet::new();
    for n in 0..COUNT {
        let name = format!("n-{n}");
        // Half of the messages have no id.
        let id = (n % 2 == 0).then(|| format!("m-{n}"));
        rig.put_dead_letter(&task(&name), dead_properties(id.as_deref(), "rejected", "no", &[])).await;
        names.insert(name);
    }
    let env = rig.env(&settings);
    for n in 0..12 {
        let replay = Process::start(&["dead-letters", "replay", "--yes", "--all"], &env);
        let before = rig.crm.requests("created").await;
        let under_way = || async { (rig.crm.requests("created").await > before + n).then_some(()) };
        let _ = tokio::time::timeout(
            std::time::Duration::from_secs(3),
            crate::support::eventually("it replays", under_way),
        )
        .await;
        replay.kill().await;
    }
    let last = tool(&env, &["replay", "--yes", "--all"]).await;
    // If a replay is killed right after a copy was confirmed, its dead letter stays although the task is created. Nothing
    // else may be left.
    let stayed = ["created since the count", "nothing was replayed"];
    let done = last.code == Some(0) || stayed.iter().any(|why| last.stderr.contains(why));
    assert!(done, "{:?}: {}", last.code, last.stderr);
    eventually_quiet(&rig).await;
    rig.crm.created(COUNT as u64).await;
    let created = rig.crm.names().await;
    assert_eq!(created.len(), COUNT, "none twice");
    assert_eq!(created.into_iter().collect::<BTreeSet<_>>(), names, "none lost");
    worker.process.stop().await;
}

#[tokio::test]
async fn interrupted_slow_replay_continues_and_holds_no_message_for_long() {
    let rig = Rig::new("dead.slow").await;
    let _worker = rig.worker(&[]).await;
    for n in 0..30 {
        rig.put_dead_letter(&task(&format!("n-{n}")), dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[]))
            .await;
        rig.put_dead_letter(b"no task", dead_properties(Some(&format!("bad-{n}")), "invalid_message", "no", &[])).await;
    }
    let env = rig.env(&[]);
    let slowly = |rate| ["dead-letters", "replay", "--yes", "--kind", "rejected", "--hold", "1s", "--rate", rate];
    let mut replay = Process::start(&slowly("2"), &env);
    rig.crm.created(3).await;
    replay.signal("INT").await;
    assert_eq!(replay.ended().await.code(), Some(1));
    assert!(replay.lines().join("\n").contains("run the same command again to go on"), "{:?}", replay.lines());
    let began = tokio::time::Instant::now();
    succeeds(&env, &slowly("10")[1..]).await;
    assert!(began.elapsed().as_secs_f64() > 1.0, "slowly, and longer than it may hold anything");
    rig.crm.created(30).await;
    rig.wait_for_dead_letters(30).await;
    assert_eq!(rig.crm.names().await.len(), 30);
}

#[tokio::test]
async fn killed_replay_is_on_record() {
    let rig = Rig::new("dead.audit").await;
    rig.declare_topology().await;
    for n in 0..3 {
        rig.put_dead_letter(&task("x"), dead_properties(Some(&format!("m-{n}")), "rejected", "no", &[])).await;
    }
    let replay = Process::start(&["dead-letters", "replay", "--yes", "--all", "--rate", "0.5"], &rig.env(&[]));
    let under_way = || async { (rig.amqp.count(&rig.queue).await == Some(1)).then_some(()) };
    crate::support::eventually("the first copy", under_way).await;
    replay.kill().await;
    let [.., audit] = rig.tool_queues();
    let recorded = || async { (rig.amqp.count(&audit).await == Some(1)).then_some(()) };
    crate::support::eventually("a record in the stream", recorded).await;
}
