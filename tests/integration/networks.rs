//! Connections to the CRM and the broker through proxies and with TLS.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use wolkvox_task_worker::broker::connect::Connector;
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config::{Config, Sources};
use wolkvox_task_worker::crm::classify::{Classified, classify};
use wolkvox_task_worker::crm::{Crm as _, HttpCrm};

use crate::support::WAIT_TIMEOUT;
use crate::support::broker::unique;
use crate::support::process::{Env, run};
use crate::support::rig::Crm;

fn configuration(more: &[(&str, &str)]) -> Config {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let own = [("WTW_CRM_OPERATION", "demo"), ("WTW_CRM_TOKENS", "demo-token")];
    let environment = own.iter().chain(more).map(|(name, value)| (name.into(), value.into())).collect();
    Config::load(&Sources { environment, ..Sources::default() }, &[]).expect("a configuration").config
}

/// Asks the CRM about the token.
async fn ask(more: &[(&str, &str)]) -> Classified {
    let crm = HttpCrm::new(&configuration(more).crm).expect("a client");
    let result = timeout(WAIT_TIMEOUT, crm.token_information(&"demo-token".to_owned().into())).await.expect("an end");
    classify(&result, Clock::system().now())
}

/// The findings of `check` about the CRM, as `check result: message → advice`.
async fn check(more: &[(&str, &str)]) -> Vec<String> {
    let own = [
        ("WTW_CRM_OPERATION", "demo"),
        ("WTW_CRM_TOKENS", "demo-token"),
        ("WTW_LEDGER_URL", "memory:"),
        ("WTW_BROKER_URLS", "amqp://127.0.0.1:1/%2f"),
    ];
    let env: Env = own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let done = run(&["check", "--json"], &env, b"").await;
    let findings: Vec<Value> = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}", done.stderr));
    let line = |one: &Value| {
        let [check, result, message, advice] =
            ["check", "result", "message", "advice"].map(|key| one[key].as_str().unwrap_or_default());
        format!("{check} {result}: {message} → {advice}")
    };
    let lines = findings.iter().map(line);
    lines.filter(|line| line.starts_with("crm.") || line.starts_with("configuration ")).collect()
}

fn has(findings: &[String], part: &str) {
    assert!(findings.iter().any(|line| line.contains(part)), "no {part:?} in\n{}", findings.join("\n"));
}

/// A SOCKS5 proxy (RFC 1928) that forwards everything to one server. It sends the requested name to the channel.
async fn socks(server: String, names: tokio::sync::mpsc::Sender<String>, listener: TcpListener) {
    loop {
        let (mut client, _) = listener.accept().await.expect("a connection");
        let [_, methods] = [client.read_u8().await.expect("a version"), client.read_u8().await.expect("a number")];
        client.read_exact(&mut vec![0; methods.into()]).await.expect("methods");
        client.write_all(&[5, 0]).await.expect("no login");
        let mut request = [0; 5];
        client.read_exact(&mut request).await.expect("a request");
        assert_eq!(request[3], 3, "a name, which the proxy looks up");
        let mut name = vec![0; request[4].into()];
        client.read_exact(&mut name).await.expect("a name");
        client.read_u16().await.expect("a port");
        names.send(String::from_utf8(name).expect("text")).await.expect("a receiver");
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.expect("success");
        let mut server = TcpStream::connect(&server).await.expect("the server");
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

#[tokio::test]
async fn proxy_is_used_and_shown_and_resolves_the_name() {
    let crm = Crm::start(Crm::options()).await;
    let place = crm.url.trim_start_matches("http://");
    // The sandbox accepts absolute URLs, as an HTTP proxy does.
    let plain = [("WTW_CRM_SERVER", "http://crm.invalid"), ("HTTP_PROXY", crm.url.as_str())];
    assert_eq!(ask(&plain).await.outcome.as_str(), "created");
    let findings = check(&plain).await;
    let proxy = format!("the proxy {} (from HTTP_PROXY)", crm.url);
    has(&findings, &format!("crm.proxy ok: requests go through {proxy}"));
    has(&findings, &format!("CRM http://crm.invalid through {proxy}, operation demo"));
    has(&findings, "crm.token ok: token 0: accepted");

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("socks5h://{}", listener.local_addr().expect("an address"));
    let (sender, mut names) = tokio::sync::mpsc::channel(1);
    let mut proxies = JoinSet::new();
    proxies.spawn(socks(place.to_owned(), sender, listener));
    let socks = [("WTW_CRM_SERVER", "http://crm.invalid"), ("ALL_PROXY", address.as_str())];
    assert_eq!(ask(&socks).await.outcome.as_str(), "created");
    assert_eq!(names.recv().await.as_deref(), Some("crm.invalid"));
    // Nothing on loopback goes through a proxy.
    let own = [("WTW_CRM_SERVER", crm.url.as_str()), ("HTTP_PROXY", "http://127.0.0.1:1")];
    assert_eq!(ask(&own).await.outcome.as_str(), "created");
}

#[tokio::test]
async fn failing_proxy_is_named_and_the_request_counts_as_not_sent() {
    for (variable, proxy, shown) in [
        ("HTTPS_PROXY", "http://u:hunter2@127.0.0.1:1", "http://127.0.0.1:1"),
        ("https_proxy", "127.0.0.1:1", "http://127.0.0.1:1"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "socks5://127.0.0.1:1"),
        ("all_proxy", "socks5h://u:hunter2@127.0.0.1:1", "socks5h://127.0.0.1:1"),
    ] {
        // With socks5 this machine resolves the name; an address needs no lookup.
        let env = [("WTW_CRM_SERVER", "https://192.0.2.1"), (variable, proxy)];
        let asked = ask(&env).await;
        assert_eq!(asked.outcome.as_str(), "unavailable", "{variable}: {}", asked.reason);
        let named = format!("the proxy {shown} (from {variable}): ");
        assert!(asked.reason.contains(&named), "{}", asked.reason);
        assert!(!asked.reason.contains("hunter2") && !asked.reason.contains("os error"), "{}", asked.reason);
        let findings = check(&env).await;
        has(&findings, &format!("crm.proxy problem: {named}"));
        has(&findings, "crm.token warning: token 0: not asked, because the CRM did not answer");
        assert!(!findings.iter().any(|line| line.contains("crm.dns") || line.contains("hunter2")), "{findings:?}");
    }
    let unknown = [("WTW_CRM_SERVER", "https://crm.invalid"), ("ALL_PROXY", "socks5://127.0.0.1:1")];
    let asked = ask(&unknown).await;
    for part in ["this machine cannot look up crm.invalid: ", "; with socks5h:// the proxy looks it up"] {
        assert!(asked.reason.contains(part), "{}", asked.reason);
    }
    let env: Env = [("WTW_CRM_SERVER", "crm.invalid"), ("WTW_CRM_TOKENS", "t"), ("HTTPS_PROXY", "foo://hunter2")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let refused = run(&["check"], &env, b"").await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert!(refused.stderr.contains("HTTPS_PROXY (environment): has the scheme foo"), "{}", refused.stderr);
}

#[tokio::test]
async fn proxy_that_requires_a_login_counts_as_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let refuse = async {
        for _ in 0..2 {
            let (mut client, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(client.read_buf(&mut request).await.expect("a request") > 0, "cut off");
            }
            let answer =
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            client.write_all(answer).await.expect("written");
        }
    };
    let asking = async {
        for (server, variable) in [("http://crm.invalid", "HTTP_PROXY"), ("https://crm.invalid", "HTTPS_PROXY")] {
            let asked = ask(&[("WTW_CRM_SERVER", server), (variable, &address)]).await;
            assert_eq!(asked.outcome.as_str(), "unavailable", "{}", asked.reason);
            let said = "the proxy needs a user and a password, or refuses the ones in its address";
            assert!(asked.reason.contains(said), "{}", asked.reason);
        }
    };
    tokio::join!(refuse, asking);
}

/// A certificate for `localhost` with its key, and the files that hold them.
struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

enum Kind {
    /// Self-signed and marked as an authority, as `openssl req -x509` writes it.
    Authority,
    /// Self-signed and not marked as an authority.
    Own,
    Expired,
    OtherName,
}

fn identity(kind: Kind) -> Identity {
    let name = if matches!(kind, Kind::OtherName) { "other.test" } else { "localhost" };
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    // A name that no authority of this machine has.
    params.distinguished_name.push(DnType::CommonName, format!("a test of the worker for {name}"));
    match kind {
        Kind::Authority => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        Kind::Own | Kind::OtherName => params.is_ca = IsCa::ExplicitNoCa,
        Kind::Expired => params.not_after = date_time_ymd(2020, 1, 1),
    }
    let key = KeyPair::generate().expect("a key");
    Identity { certificate: params.self_signed(&key).expect("a certificate"), key }
}

/// Answers requests over TLS as the CRM does.
async fn serve(listener: TcpListener, identity: Identity) {
    const ANSWER: &[u8] = include_bytes!("../cases/answers/vendor-200-created.http");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key.serialize_der()));
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![identity.certificate.der().clone()], key).expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {}
        let _ = stream.write_all(ANSWER).await;
        let _ = stream.shutdown().await;
    }
}

/// A temporary file, removed when it is dropped.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(unique("certificate"));
        std::fs::write(&path, text).expect("written");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn refused_certificate_is_reported_with_its_true_reason() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for (kind, listed, said) in [
        (Kind::Own, None, ""),
        (Kind::Own, Some(Kind::OtherName), "by an authority that neither this machine nor KEY knows"),
        (
            Kind::Own,
            Some(Kind::Own),
            "the authority in KEY has the right name, but did not sign the server's certificate",
        ),
        (Kind::Authority, None, "make it with basicConstraints=CA:FALSE"),
        (Kind::Expired, None, "has expired"),
        (Kind::OtherName, None, "is for another name"),
    ] {
        let identity = identity(kind);
        let listed = listed.map(self::identity);
        let file = File::new(&listed.as_ref().unwrap_or(&identity).certificate.pem());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, identity));
        let url = format!("https://localhost:{port}");
        let asked = ask(&[("WTW_CRM_SERVER", &url), ("WTW_CRM_CA_FILE", file.path())]).await;
        let url = format!("amqps://localhost:{port}/%2f");
        let config = configuration(&[("WTW_BROKER_URLS", &url), ("WTW_BROKER_CA_FILE", file.path())]);
        let broker = Connector::new(config.broker).connect("test").await.expect_err("it is no broker").message;
        if said.is_empty() {
            assert_eq!(asked.outcome.as_str(), "created", "{}", asked.reason);
            assert!(!broker.contains("certificate"), "{broker}");
        } else {
            assert_eq!(asked.outcome.as_str(), "unavailable", "{}", asked.reason);
            assert!(asked.reason.contains(&said.replace("KEY", "crm.ca_file")), "{}", asked.reason);
            assert!(broker.contains(&said.replace("KEY", "broker.ca_file")), "{broker}");
        }
    }
    // The server answers in plain text where the client expects TLS.
    let crm = Crm::start(Crm::options()).await;
    let asked = ask(&[("WTW_CRM_SERVER", &crm.url.replace("http:", "https:"))]).await;
    assert_eq!(asked.outcome.as_str(), "unavailable");
    assert!(asked.reason.contains("does not speak TLS"), "{}", asked.reason);
}

#[tokio::test]
async fn check_tells_a_bad_certificate_from_a_slow_connection() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let identity = identity(Kind::OtherName);
    let file = File::new(&identity.certificate.pem());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
    let mut server = JoinSet::new();
    server.spawn(serve(listener, identity));
    let findings = check(&[("WTW_CRM_SERVER", &url), ("WTW_CRM_CA_FILE", file.path())]).await;
    has(&findings, "crm.tls problem: ");
    has(&findings, "is for another name");

    // The system accepts the connection, and TLS gets no answer.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://{}", silent.local_addr().expect("an address"));
    let findings = check(&[("WTW_CRM_SERVER", &url), ("WTW_CRM_CONNECT_TIMEOUT", "500ms")]).await;
    has(&findings, "crm.connect problem: ");
    has(&findings, "→ raise crm.connect_timeout");
}

#[tokio::test]
async fn each_bad_certificate_file_is_named_with_its_problem() {
    let (one, other) = (identity(Kind::Own), identity(Kind::Own));
    let (certificate, key, stranger) =
        (File::new(&one.certificate.pem()), File::new(&one.key.serialize_pem()), File::new(&other.key.serialize_pem()));
    let encrypted = File::new("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let (empty, broken) = (File::new(""), File::new("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"));
    for (ca, cert, key, said) in [
        (certificate.path(), certificate.path(), key.path(), "127.0.0.1:1"),
        (empty.path(), certificate.path(), key.path(), "broker.ca_file (PATH): has no certificate"),
        (broken.path(), certificate.path(), key.path(), "broker.ca_file (PATH): has a certificate that cannot be read"),
        ("/nowhere", certificate.path(), key.path(), "broker.ca_file (PATH): cannot be read: there is no such file"),
        (certificate.path(), key.path(), key.path(), "broker.client_cert_file (PATH): has no certificate"),
        (certificate.path(), certificate.path(), encrypted.path(), "broker.client_key_file (PATH): is encrypted"),
        (
            certificate.path(),
            certificate.path(),
            stranger.path(),
            "is not the key of the first certificate in broker.client",
        ),
        (
            certificate.path(),
            certificate.path(),
            certificate.path(),
            "broker.client_key_file (PATH): has no readable private key",
        ),
    ] {
        let config = configuration(&[
            ("WTW_BROKER_URLS", "amqps://127.0.0.1:1/%2f"),
            ("WTW_BROKER_CA_FILE", ca),
            ("WTW_BROKER_CLIENT_CERT_FILE", cert),
            ("WTW_BROKER_CLIENT_KEY_FILE", key),
        ]);
        let failed = Connector::new(config.broker).connect("test").await.expect_err("nothing listens").message;
        let shown = failed.replace(ca, "PATH").replace(cert, "PATH").replace(key, "PATH");
        assert!(shown.contains(said), "{failed}");
    }
    let config = configuration(&[("WTW_CRM_SERVER", "https://crm.invalid"), ("WTW_CRM_CA_FILE", empty.path())]);
    let refused = HttpCrm::new(&config.crm).expect_err("an empty file");
    assert_eq!(
        refused,
        format!("crm.ca_file ({}): has no certificate; one begins with -----BEGIN CERTIFICATE-----", empty.path())
    );
}

/// A machine without root certificates.
#[tokio::test]
async fn root_certificates_are_needed_for_tls_only() {
    let crm = Crm::start(Crm::options()).await;
    let without = |server: &str| -> Env {
        [
            ("WTW_CRM_OPERATION", "demo"),
            ("WTW_CRM_TOKENS", "demo-token"),
            ("WTW_LEDGER_URL", "memory:"),
            ("WTW_BROKER_URLS", "amqp://127.0.0.1:1/%2f"),
            ("WTW_CRM_SERVER", server),
            ("SSL_CERT_FILE", "/nowhere"),
            ("SSL_CERT_DIR", "/nowhere"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    };
    let plain = run(&["check"], &without(&crm.url), b"").await;
    assert!(plain.stdout.contains("token 0: accepted"), "{}", plain.stdout);
    let encrypted = run(&["check"], &without("https://crm.invalid"), b"").await;
    let said = "this machine has no root certificates; install ca-certificates, or name a PEM file in crm.ca_file";
    assert!(encrypted.stdout.contains(said), "{}", encrypted.stdout);
}

#[tokio::test]
async fn certificate_signed_by_the_configured_authority_is_accepted() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut params = CertificateParams::new(Vec::new()).expect("no name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("a certificate");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
    let mut server = JoinSet::new();
    server.spawn(serve(listener, Identity { certificate, key }));
    let file = File::new(&authority.pem());
    let config = configuration(&[("WTW_CRM_SERVER", &url), ("WTW_CRM_CA_FILE", file.path())]);
    let crm = HttpCrm::new(&config.crm).expect("a client");
    // The server answers after the request's head and ignores the body.
    let token = "demo-token".to_owned().into();
    let sending = crm.insert(&token, Bytes::from_static(b"\r\n\r\n"));
    let result = timeout(WAIT_TIMEOUT, sending).await.expect("an end");
    let classified = classify(&result, Clock::system().now());
    assert_eq!(classified.outcome.as_str(), "created", "{}", classified.reason);
}
