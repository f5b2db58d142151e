//! An OpenTelemetry collector in the test process: OTLP over HTTP with protobuf.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::eventually;

/// The collector. It ends with the test.
pub(crate) struct Collector {
    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) url: String,
    got: Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>,
    _served: JoinSet<()>,
}

/// A span with its attributes as text.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) links: Vec<String>,
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    pub(crate) failed: bool,
    /// Why it failed.
    pub(crate) reason: String,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Attributes of the process that sent it.
    pub(crate) resource: BTreeMap<String, String>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let got = Arc::default();
        let take = async |State(got): State<Arc<Mutex<Vec<_>>>>, headers: HeaderMap, body: Bytes| {
            let request = ExportTraceServiceRequest::decode(body).expect("protobuf");
            got.lock().expect("no panic").push((headers, request));
        };
        let routes = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&got));
        let mut served = JoinSet::new();
        served.spawn(async move { axum::serve(listener, routes).await.expect("served") });
        Self { url, got, _served: served }
    }

    /// Waits until `count` spans with this name have arrived.
    pub(crate) async fn spans(&self, name: &str, count: usize) -> Vec<Span> {
        eventually(&format!("{count} spans: {name}"), || async {
            let spans: Vec<Span> = self.all().into_iter().filter(|span| span.name == name).collect();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }

    /// All spans that have arrived.
    pub(crate) fn all(&self) -> Vec<Span> {
        let got = self.got.lock().expect("no panic");
        let groups = got.iter().flat_map(|(_, request)| &request.resource_spans);
        let spans = groups.flat_map(|group| {
            let resource = readable(&group.resource.as_ref().expect("a resource").attributes);
            let spans = group.scope_spans.iter().flat_map(|scope| &scope.spans);
            spans.map(move |span| Span {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
                name: span.name.clone(),
                kind: span.kind(),
                failed: span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
                reason: span.status.as_ref().map(|status| status.message.clone()).unwrap_or_default(),
                attributes: readable(&span.attributes),
                resource: resource.clone(),
            })
        });
        spans.collect()
    }

    /// Everything that has arrived, as text, without the headers of the requests.
    pub(crate) fn received(&self) -> String {
        let got = self.got.lock().expect("no panic");
        got.iter().map(|(_, request)| format!("{request:?}\n")).collect()
    }

    /// A header of the first request.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let got = self.got.lock().expect("no panic");
        Some(got.first()?.0.get(name)?.to_str().expect("text").to_owned())
    }
}

fn readable(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
