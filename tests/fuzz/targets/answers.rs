//! Any bytes as the CRM's answer on a real socket: the worker's client returns one outcome in time, and `created` only for a
//! verdict with code 200. The corpus starts with `tests/cases/answers`.
#![no_main]

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use wolkvox_task_worker::config::{Config, Sources};
use wolkvox_task_worker::crm::classify::{Outcome, classify};
use wolkvox_task_worker::crm::{Crm, HttpCrm};

const BODY: &[u8] = b"{}";

struct Site {
    runtime: Runtime,
    listener: TcpListener,
    crm: Arc<HttpCrm>,
}

static SITE: LazyLock<Site> = LazyLock::new(|| {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let server = format!("http://{}", listener.local_addr().expect("an address"));
    let environment = [
        ("WTW_CRM_SERVER", server.as_str()),
        ("WTW_CRM_OPERATION", "demo"),
        ("WTW_CRM_TOKENS", "a-token"),
        ("WTW_CRM_REUSE_CONNECTIONS", "false"),
    ];
    let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
    let loaded = Config::load(&Sources { environment, ..Sources::default() }, &[]).expect("a configuration");
    let crm = HttpCrm::new(&loaded.config.crm).expect("a client");
    Site { runtime, listener, crm }
});

async fn answer(bytes: &[u8]) {
    let (mut stream, _) = SITE.listener.accept().await.expect("a connection");
    let mut request = Vec::new();
    while !request.ends_with(BODY) && stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {}
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    while stream.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
}

fuzz_target!(|bytes: &[u8]| {
    let token = "a-token".to_owned().into();
    let sending = async { tokio::join!(SITE.crm.insert(&token, Bytes::from_static(BODY)), answer(bytes)) };
    let (result, ()) = SITE.runtime.block_on(sending);
    let classified = classify(&result, Timestamp::UNIX_EPOCH);
    assert!(!classified.reason.is_empty());
    if classified.outcome == Outcome::Created {
        assert!(classified.code == Some(200) && classified.http_status.is_some_and(|status| status < 300));
    }
});
