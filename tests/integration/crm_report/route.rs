//! The address family and the proxy that a report names are those of its connections.

use std::sync::Arc;

use rcgen::{CertificateParams, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use wolkvox_task_worker::sandbox::Options;

use super::{Folder, MESSAGE, answer, env, finding, options};
use crate::support::process::{Env, run};
use crate::support::rig::Crm;

/// Runs the command with these variables, and returns its output and its report.
async fn report_with(env: &Env, folder: &Folder) -> (String, Value) {
    let path = folder.report();
    let args = ["crm-report", "--yes", "--search-for", "0s", "--output", path.to_str().expect("text"), "-"];
    let finished = run(&args, env, MESSAGE.as_bytes()).await;
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    let json = std::fs::read(&path).expect("a report");
    (finished.stdout, serde_json::from_slice(&json).expect("JSON"))
}

/// The address family of each answer.
fn families(report: &Value) -> Vec<&str> {
    let exchanges = report["exchanges"].as_array().expect("exchanges").iter();
    exchanges.map(|exchange| exchange["response"]["family"].as_str().expect("text")).collect()
}

#[tokio::test]
async fn route_over_ipv6_is_named() {
    let (listen, folder) = ("[::1]:0".parse().expect("an address"), Folder::new("ipv6"));
    let crm = Crm::start(Options { listen, ..options() }).await;
    let (stdout, report) = report_with(&env(&crm.url), &folder).await;
    assert_eq!(answer(&report, "route"), "IPv6", "{stdout}");
    assert!(stdout.contains("Requests go by IPv6, without a proxy."), "{stdout}");
    assert!(families(&report).iter().all(|family| *family == "IPv6"), "{report}");
    assert_eq!(answer(&report, "connections"), "reused");
}

/// An HTTP proxy that forwards everything to one server. It answers CONNECT (RFC 9110, 9.3.6) and passes other requests on.
async fn proxy(listener: TcpListener, server: String) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.expect("a connection");
        let server = server.clone();
        connections.spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await?);
            }
            let mut server = TcpStream::connect(server).await?;
            match head.starts_with(b"CONNECT crm.test:443 ") {
                true => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
                false => server.write_all(&head).await?,
            }
            copy_bidirectional(&mut client, &mut server).await
        });
    }
}

/// The TLS side of a server that has none.
async fn tls(listener: TcpListener, config: rustls::ServerConfig, server: String) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (client, _) = listener.accept().await.expect("a connection");
        let Ok(mut client) = acceptor.accept(client).await else { continue };
        let mut server = TcpStream::connect(&server).await.expect("the server");
        // The client can close the connection without an announcement.
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn listen(address: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind(address).await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

#[tokio::test]
async fn route_through_an_http_proxy_names_the_proxy_and_its_family() {
    let (crm, folder) = (Crm::start(options()).await, Folder::new("forward"));
    let server = crm.url.trim_start_matches("http://");
    for (address, family) in [("127.0.0.1:0", "IPv4"), ("[::1]:0", "IPv6")] {
        let (listener, address) = listen(address).await;
        let mut running = JoinSet::new();
        running.spawn(proxy(listener, server.to_owned()));
        let mut env = env("http://crm.test");
        env.push(("HTTP_PROXY".to_owned(), format!("http://ben:pa55word@{address}")));
        let (stdout, json) = report_with(&env, &folder).await;
        assert_eq!(answer(&json, "route"), format!("{family}, proxy"), "{stdout}");
        let said = format!(
            "This machine reaches the proxy by {family}. The CRM sees the proxy's address. \"the proxy http://{address} (from HTTP_PROXY)\""
        );
        assert!(stdout.contains(&said), "{said} is not in {stdout}");
        assert_eq!((answer(&json, "insert"), answer(&json, "connections")), ("created", "reused"), "{stdout}");
        for (name, text) in [("stdout", &stdout), ("json", &json.to_string())] {
            assert!(!text.contains("pa55word"), "{name}: {text}");
        }
        // The name of a proxy can identify the company, so the file must not have it.
        assert!(!json.to_string().contains(&address), "{json}");
        std::fs::remove_file(folder.report()).expect("removed");
    }
    assert_eq!(crm.tasks().await.len(), 2);
}

#[tokio::test]
async fn route_through_a_tunnel_of_an_http_proxy_names_the_proxy() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (crm, folder) = (Crm::start(options()).await, Folder::new("tunnel"));
    let mut params = CertificateParams::new(vec!["crm.test".to_owned()]).expect("a name");
    params.is_ca = IsCa::ExplicitNoCa;
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], key).expect("a configuration");
    let authority = folder.0.join("authority.pem");
    std::fs::write(&authority, certificate.pem()).expect("written");
    let ((secure, secure_at), (listener, address)) = (listen("127.0.0.1:0").await, listen("[::1]:0").await);
    let mut running = JoinSet::new();
    running.spawn(tls(secure, config, crm.url.trim_start_matches("http://").to_owned()));
    running.spawn(proxy(listener, secure_at));
    let mut env = env("https://crm.test");
    env.push(("WTW_CRM_CA_FILE".to_owned(), authority.to_str().expect("text").to_owned()));
    env.push(("HTTPS_PROXY".to_owned(), format!("http://{address}")));
    let (stdout, json) = report_with(&env, &folder).await;
    assert_eq!(answer(&json, "route"), "IPv6, proxy", "{stdout}");
    assert!(stdout.contains(&format!("\"the proxy http://{address} (from HTTPS_PROXY)\"")), "{stdout}");
    let said = finding(&json, "route")["said"].as_str().expect("text");
    assert!(said.contains("[proxy]") && said.contains("HTTPS_PROXY"), "{said}");
    assert_eq!(answer(&json, "insert"), "created", "{stdout}");
    assert_eq!(crm.tasks().await.len(), 1);
}
