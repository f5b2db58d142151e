//! Traces, as an OpenTelemetry collector receives them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Json;
use axum::routing::post;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use url::Url;

use crate::support::collector::{Collector, Span};
use crate::support::rig::{Rig, dead_lettered, properties, settled, task};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";

/// Properties of a message that carries its publisher's trace.
fn traced(id: &str, tracestate: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    let parent = format!("00-{TRACE}-{PUBLISHER}-01");
    headers.insert("traceparent".into(), AMQPValue::LongString(parent.into()));
    headers.insert("tracestate".into(), AMQPValue::LongString(tracestate.into()));
    properties(id).with_headers(headers)
}

/// The environment of a worker that sends traces without delay.
fn sending(url: &str) -> [(&str, &str); 2] {
    [("OTEL_EXPORTER_OTLP_ENDPOINT", url), ("OTEL_BSP_SCHEDULE_DELAY", "50")]
}

fn attributes<const N: usize>(expected: [(&str, &str); N]) -> BTreeMap<String, String> {
    expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Attributes of the span in which a message of [`task`] is processed.
fn of_message(rig: &Rig, id: &str, tag: &str, outcome: &str, attempts: &str) -> BTreeMap<String, String> {
    let mut attributes = attributes([
        ("messaging.rabbitmq.message.delivery_tag", tag),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", &rig.queue),
        ("messaging.message.id", id),
        ("messaging.message.body.size", &task(id).len().to_string()),
        ("wtw.outcome", outcome),
        ("wtw.attempts", attempts),
    ]);
    attributes.extend(of_broker(rig, &rig.queue));
    attributes
}

/// Attributes of every span that concerns the broker.
fn of_broker(rig: &Rig, routing_key: &str) -> BTreeMap<String, String> {
    let broker = Url::parse(rig.amqp.url()).expect("an address");
    attributes([
        ("messaging.system", "rabbitmq"),
        ("messaging.rabbitmq.destination.routing_key", routing_key),
        ("server.address", broker.host_str().expect("a host")),
        ("server.port", &broker.port().unwrap_or(5672).to_string()),
    ])
}

/// Attributes of the span of a request to the CRM.
fn of_post(rig: &Rig, status: &str) -> BTreeMap<String, String> {
    attributes([
        ("http.request.method", "POST"),
        ("url.full", &format!("{}/server/API/v2/custom/insert.php", rig.crm.url)),
        ("server.address", "127.0.0.1"),
        ("server.port", rig.crm.url.rsplit(':').next().expect("a port")),
        ("http.response.status_code", status),
    ])
}

/// The span whose parent is `parent`.
fn child<'a>(spans: &'a [Span], parent: &Span) -> &'a Span {
    spans.iter().find(|span| span.parent == parent.id).unwrap_or_else(|| panic!("no child of {parent:?}: {spans:?}"))
}

#[tokio::test]
async fn publishers_trace_continues_through_attempts_copies_and_dead_letter() {
    let (rig, collector) = (Rig::new("traces.continued").await, Collector::start().await);
    rig.crm
        .faults(json!([
            { "action": "status:503", "name_contains": "later", "times": 3 },
            { "action": "api:412:NO SUCH RECORD", "name_contains": "dead" },
        ]))
        .await;
    let mut env = sending(&collector.url).to_vec();
    env.extend([("OTEL_EXPORTER_OTLP_HEADERS", "x-key=collector-key"), ("OTEL_SERVICE_NAME", "tasks-of-sales")]);
    let worker = rig.worker(&env).await;
    rig.publish_with(&task("later"), traced("later", "vendor=x")).await;
    worker.reaches(&settled("created"), 1.0).await;
    rig.publish_with(&task("dead"), traced("dead", "vendor=x")).await;
    let dead_letter = rig.dead_letter().await;
    let name = format!("process {}", rig.queue);
    let (processed, posts) = (collector.spans(&name, 3).await, collector.spans("POST", 5).await);
    worker.process.stop().await;

    let (retried, created, dead) = (&processed[0], &processed[1], &processed[2]);
    for span in &processed {
        assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, PUBLISHER));
        assert_eq!((span.links.as_slice(), span.kind), ([PUBLISHER.to_owned()].as_slice(), SpanKind::Consumer));
        assert_eq!(span.resource["service.name"], "tasks-of-sales");
    }
    let of = |id: &str, tag: &str, outcome: &str, attempts: &str| of_message(&rig, id, tag, outcome, attempts);
    assert_eq!((&retried.attributes, retried.failed), (&of("later", "1", "retried", "3"), false));
    assert_eq!((&created.attributes, created.failed), (&of("later", "2", "created", "4"), false));
    let mut of_dead = of("dead", "3", "dead_lettered", "1");
    of_dead.insert("error.type".to_owned(), "rejected".to_owned());
    assert_eq!((&dead.attributes, dead.failed), (&of_dead, true));

    assert_eq!(posts.iter().filter(|post| post.parent == retried.id).count(), 3, "each attempt has a span");
    let (refused, succeeded) = (child(&posts, retried), child(&posts, created));
    assert_eq!(
        (&succeeded.attributes, succeeded.failed, succeeded.kind),
        (&of_post(&rig, "200"), false, SpanKind::Client)
    );
    let mut of_refused = of_post(&rig, "503");
    of_refused.insert("error.type".to_owned(), "503".to_owned());
    assert_eq!((&refused.attributes, refused.failed, refused.trace.as_str()), (&of_refused, true, TRACE));

    let copy = collector.spans(&format!("publish {}", rig.dead_letter_queue()), 1).await;
    assert_eq!((&copy[0].parent, copy[0].kind), (&dead.id, SpanKind::Producer));
    let mut of_copy = of_broker(&rig, &rig.dead_letter_queue());
    of_copy.extend(attributes([
        ("messaging.operation.name", "publish"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", &rig.dead_letter_queue()),
    ]));
    assert_eq!(copy[0].attributes, of_copy);
    let headers = dead_letter.properties.headers().as_ref().expect("headers").inner();
    let kept = headers.get("traceparent").and_then(AMQPValue::as_long_string).map(ToString::to_string);
    assert_eq!(kept, Some(format!("00-{TRACE}-{PUBLISHER}-01")), "the dead letter keeps the publisher's");
    assert_eq!(collector.header("x-key").as_deref(), Some("collector-key"));
    for secret in ["demo-token", "operation=demo", "ADMIN_@demo"] {
        assert!(!collector.received().contains(secret), "{secret}");
    }
}

/// A CRM that creates every task and keeps the headers of its requests.
async fn listening_crm() -> (String, Arc<Mutex<Vec<HeaderMap>>>, JoinSet<()>) {
    let received = Arc::<Mutex<Vec<HeaderMap>>>::default();
    let hear = async |State(received): State<Arc<Mutex<Vec<HeaderMap>>>>, headers: HeaderMap| {
        received.lock().expect("no panic").push(headers);
        Json(json!({ "code": 200, "msg": "created" }))
    };
    let routes = Router::new().fallback(post(hear)).with_state(Arc::clone(&received));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let mut served = JoinSet::new();
    served.spawn(async move { axum::serve(listener, routes).await.expect("served") });
    (url, received, served)
}

#[tokio::test]
async fn request_carries_its_span_whatever_the_publisher_sent() {
    let (rig, collector) = (Rig::new("traces.request").await, Collector::start().await);
    let (crm, received, _served) = listening_crm().await;
    let mut env = sending(&collector.url).to_vec();
    env.push(("WTW_CRM_SERVER", &crm));
    let worker = rig.worker(&env).await;
    let long = format!("vendor={}", "x".repeat(60_000));
    for tracestate in ["vendor=x", "", "vendor=ñ\u{7f}\nx", &long] {
        rig.publish_with(&task("odd"), traced("", tracestate)).await;
    }
    let mut nonsense = FieldTable::default();
    nonsense.insert("traceparent".into(), AMQPValue::LongString("nonsense".into()));
    rig.publish_with(&task("odd"), properties("untraced").with_headers(nonsense)).await;
    worker.reaches(&settled("created"), 5.0).await;
    let posts = collector.spans("POST", 5).await;
    worker.process.stop().await;

    let received = received.lock().expect("no panic").clone();
    let header =
        |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().expect("text").to_owned());
    let mut states = Vec::new();
    for headers in &received {
        let parent = header(headers, "traceparent").expect("one each");
        let [_, trace, span, flags] = parent.split('-').collect::<Vec<_>>()[..] else { panic!("{parent}") };
        assert_eq!(flags, "01");
        assert!(posts.iter().any(|post| post.id == span && post.trace == trace), "{parent}");
        states.extend(header(headers, "tracestate"));
    }
    assert_eq!(posts.iter().filter(|post| post.trace == TRACE).count(), 4, "the fifth request starts a new trace");
    assert_eq!(states, ["vendor=x"], "a trace state that fits no header is left out");
}

#[tokio::test]
async fn collector_that_hangs_or_is_gone_delays_no_message() {
    let hanging = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let hangs = format!("http://{}", hanging.local_addr().expect("an address"));
    let away = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let refuses = format!("http://{}", away.local_addr().expect("an address"));
    drop(away);
    for (url, name) in [(&hangs, "traces.hangs"), (&refuses, "traces.refuses")] {
        let rig = Rig::new(name).await;
        let mut env = sending(url).to_vec();
        // A small queue, so that the exporter drops most spans.
        env.extend([("OTEL_BSP_MAX_QUEUE_SIZE", "8"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")]);
        let worker = rig.worker(&env).await;
        rig.publish("bad", b"{}").await;
        let began = Instant::now();
        rig.publish_many("m", 100).await;
        worker.reaches(&settled("created"), 100.0).await;
        // The exporter needs ten seconds to drop four spans; there are two hundred.
        assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
        worker.reaches(&dead_lettered("invalid_task"), 1.0).await;
        let (_, page) = crate::support::http::get(&format!("{}/livez", worker.admin)).await.expect("an answer");
        assert_eq!(page, "alive\n");
        if url == &refuses {
            worker.says("traces cannot be sent and are dropped").await;
        }
        let stopping = Instant::now();
        let lines = worker.process.stop().await;
        // The flush has a limit of three seconds. Without it the exporter waits for up to fifteen.
        assert!(stopping.elapsed().as_secs() < 10, "{:?}", stopping.elapsed());
        assert!(lines.iter().filter(|line| line.contains("traces cannot be sent")).count() <= 1, "logged once");
    }
    drop(hanging);
}
