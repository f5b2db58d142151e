//! Tests of `ledger renew-id`, and of a Redis user without the right to `INFO`.

use super::*;

async fn renew_id(url: &str) -> (Option<i32>, String) {
    let env: Env = [("WTW_LEDGER_URL".to_owned(), url.to_owned())].into();
    let finished = run(&["ledger", "renew-id"], &env, b"").await;
    (finished.code, format!("{}{}", finished.stdout, finished.stderr))
}

#[tokio::test]
async fn renew_id_command_renews_a_closed_file_and_explains_the_effect() {
    let folder = std::env::temp_dir().join(unique("ledger"));
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("ledger.db");
    let url = format!("file:{}", path.display());
    let ledger = SqliteLedger::open(&path, LONG_RETENTION, Clock::system()).await.unwrap();
    let before = LedgerMetadata { proves_unsent: true, ..ledger.about() };
    ledger.set_about(ledger.about(), before.clone()).await.unwrap();
    let (code, said) = renew_id(&url).await;
    assert!(code == Some(1) && said.contains("another process has it open; stop the other worker"), "{said}");
    drop(ledger);
    let (code, said) = renew_id(&url).await;
    assert!(code == Some(0) && said.contains(&before.id) && said.contains("is now in doubt"), "{said}");
    let after = SqliteLedger::open(&path, LONG_RETENTION, Clock::system()).await.unwrap().about();
    assert!(after.id != before.id && said.contains(&after.id), "{said}");
    assert_eq!((after.proves_unsent, after.epoch), (false, before.epoch + 1));
    std::fs::remove_dir_all(&folder).unwrap();
    for (url, expected) in [("memory:", "only the worker's process has it"), (&url, "there is no such file")] {
        let (code, said) = renew_id(url).await;
        assert!(code == Some(1) && said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn renew_id_command_renews_redis_and_an_open_ledger_notices() {
    let redis = Redis::own().await.unwrap();
    let clock = FakeClock::new();
    let opened = open(&redis.url, &prefix("wolkvox.tasks"), LONG_RETENTION, clock.clock()).await.unwrap();
    let fixture = Fixture { ledger: Arc::new(opened), clock };
    fixture.create("a", 1).await;
    let before = LedgerMetadata { proves_unsent: true, ..fixture.ledger.about() };
    fixture.ledger.set_about(fixture.ledger.about(), before.clone()).await.unwrap();
    let (code, said) = renew_id(&redis.url).await;
    assert!(code == Some(0) && said.contains(&before.id), "{said}");
    let claim = Change::Claim { expected: None, new: first(2, fixture.clock.now()) };
    assert_eq!(fixture.change("b", claim).await, Changed::Conflict(None));
    let after = fixture.ledger.about();
    assert!(after.id != before.id && said.contains(&after.id), "{said}");
    assert_eq!((after.proves_unsent, after.epoch), (false, before.epoch + 1));
    assert!(fixture.is_created("a").await);
}

#[tokio::test]
async fn redis_user_without_info_can_claim_and_proves_nothing_after_a_reconnect() {
    let redis = Redis::own().await.unwrap();
    let mut connection = connect(&redis).await;
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("limited").arg("on").arg(">secret").arg("~*").arg("+@all").arg("-info");
    user.query_async::<()>(&mut connection).await.unwrap();
    let url = redis.url.replacen("redis://", "redis://limited:secret@", 1);
    let clock = FakeClock::new();
    let fixture =
        Fixture { ledger: Arc::new(open(&url, "test:", LONG_RETENTION, clock.clock()).await.unwrap()), clock };
    let epoch = fixture.ledger.epoch();
    let claim = |id| Change::Claim { expected: None, new: NewClaim { epoch, ..first(id, fixture.clock.now()) } };
    for id in 0..5_u64 {
        assert!(matches!(fixture.change(id.to_string(), claim(id)).await, Changed::Done(_)), "claim {id}");
    }
    assert_eq!(fixture.ledger.epoch(), epoch, "the connection is kept");
    let about = fixture.ledger.about();
    assert!(fixture.ledger.set_about(about.clone(), LedgerMetadata { proves_unsent: true, ..about }).await.unwrap());
    redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .query_async::<i64>(&mut connection)
        .await
        .unwrap();
    in_time(async || fixture.ledger.reload_about().await.map(drop)).await;
    assert!(!fixture.ledger.about().proves_unsent && fixture.ledger.epoch() != epoch, "it may be another server");
}

#[tokio::test]
async fn repeated_claim_succeeds_although_redis_may_have_lost_writes() {
    let redis = Redis::shared().await;
    let clock = FakeClock::new();
    let fixture = Fixture { ledger: Arc::new(own(redis, LONG_RETENTION, clock.clock()).await), clock };
    let claim = Change::Claim { expected: None, new: first(1, fixture.clock.now()) };
    let claimed = fixture.change("a", claim.clone()).await;
    assert!(matches!(claimed, Changed::Done(Some(_))));
    let about = fixture.ledger.about();
    assert!(fixture.ledger.set_about(about.clone(), LedgerMetadata { epoch: 1, ..about }).await.unwrap());
    assert_eq!(fixture.change("a", claim).await, claimed, "otherwise its worker waits for its own claim");
    let other = Change::Claim { expected: None, new: first(2, fixture.clock.now()) };
    assert_eq!(fixture.change("b", other).await, Changed::Conflict(None));
}
