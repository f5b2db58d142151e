//! Sends traces to an OpenTelemetry collector, if environment variables name one. The only code that names `opentelemetry`.
//!
//! Names and attributes follow OpenTelemetry's semantic conventions for messaging (RabbitMQ) and HTTP, 1.30. A span never
//! holds a token, a query string or anything of a message's body.
//!
//! A collector that is slow or away costs spans, never messages. Finished spans go into a bounded queue
//! (`OTEL_BSP_MAX_QUEUE_SIZE`, 2048), which a thread empties; when it is full, spans are dropped. Without a collector no
//! span is created.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{FutureExt as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::trace::{Link, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter as OtlpExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter};
use url::Url;

use crate::broker::Message;
use crate::config::Sources;
use crate::message::disposition::Disposition;
use crate::message::retry_state::string;
use crate::sync::lock;

/// Time limit for sending the last spans when the worker stops.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// The headers of W3C Trace Context, in messages and requests.
const HEADERS: [&str; 2] = ["traceparent", "tracestate"];
/// The longest header that is passed on, in bytes: the length that W3C Trace Context requires everybody to accept.
const MAX_HEADER_BYTES: usize = 512;

static EXPORTING: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();
/// Host and port of a RabbitMQ node.
static BROKER: Mutex<Option<(String, u16)>> = Mutex::new(None);

/// The node that this process connected to last. Messages come from it and go to it.
pub fn connected(node: Option<(String, u16)>) {
    *lock(&BROKER) = node;
}

/// Starts to send traces if the environment names a collector. A wrong setting is logged; it does not stop the worker.
pub fn start(sources: &Sources) {
    let set = |name: &str| sources.variable(name).and_then(|value| value.to_str());
    let named = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(set);
    let off = set("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none")
        || set("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true"));
    if named.is_none() || off {
        return;
    }
    let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    if let Some(protocol) = protocols.into_iter().find_map(set).filter(|protocol| *protocol != "http/protobuf") {
        tracing::warn!(protocol, "traces are sent as http/protobuf only; a collector listens for it on port 4318");
    }
    match OtlpExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build() {
        Ok(exporter) => {
            let exporter = LoggingExporter { exporter, is_failing: AtomicBool::new(false) };
            let provider =
                SdkTracerProvider::builder().with_resource(resource(set)).with_batch_exporter(exporter).build();
            let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
            // A second start, as in tests, has no effect.
            let _ = EXPORTING.set((provider, tracer));
        }
        // The error could quote an address with a password.
        Err(_) => tracing::warn!("no traces are sent: check OTEL_EXPORTER_OTLP_ENDPOINT and the other OTEL_ variables"),
    }
}

/// The attributes of this process. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override them.
fn resource<'a>(set: impl Fn(&str) -> Option<&'a str>) -> Resource {
    let ours = [
        KeyValue::new("service.name", env!("CARGO_PKG_NAME")),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", crate::worker_name()),
    ];
    let given = Resource::builder_empty().with_attributes(ours).with_detector(Box::new(EnvResourceDetector::new()));
    match set("OTEL_SERVICE_NAME") {
        Some(name) => given.with_service_name(name.to_owned()).build(),
        None => given.build(),
    }
}

/// Sends the remaining spans, for at most [`FLUSH_TIMEOUT`].
pub async fn finish() {
    if let Some((provider, _)) = EXPORTING.get() {
        // It waits for its thread. Spans that are not sent in time are lost.
        let _ = tokio::task::spawn_blocking(|| provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
    }
}

/// An exporter that logs once when it fails, and once when it works again.
#[derive(Debug)]
struct LoggingExporter {
    exporter: OtlpExporter,
    is_failing: AtomicBool,
}

impl SpanExporter for LoggingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.exporter.export(batch).await;
        let failed_before = self.is_failing.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(error) if !failed_before => {
                tracing::warn!(%error, "traces cannot be sent and are dropped; check OTEL_EXPORTER_OTLP_ENDPOINT");
            }
            Ok(()) if failed_before => tracing::info!("traces are sent again"),
            Ok(()) | Err(_) => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// A span; it ends when it is dropped. Empty when no traces are sent.
pub struct Span(Option<Context>);

impl Span {
    /// An empty span.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    fn begin(builder: impl FnOnce() -> SpanBuilder, parent: impl FnOnce() -> Context) -> Self {
        Self(EXPORTING.get().map(|(_, tracer)| {
            let parent = parent();
            let span = tracer.build_with_context(builder(), &parent);
            parent.with_span(span)
        }))
    }

    /// A span for processing a message from `queue`, within its publisher's trace if the message names one.
    #[must_use]
    pub fn processing(message: &Message, queue: &str) -> Self {
        if EXPORTING.get().is_none() {
            return Self(None);
        }
        let publisher = publisher(message);
        let created = publisher.span().span_context().clone();
        let links = created.is_valid().then(|| Link::with_context(created)).into_iter().collect();
        let destination = destination(message, queue);
        let builder = || {
            let mut attributes = messaging("process", "process", &destination, &message.routing_key);
            attributes.push(KeyValue::new("messaging.rabbitmq.message.delivery_tag", number(message.delivery_tag)));
            attributes.push(KeyValue::new("messaging.message.body.size", number(message.body.len())));
            attributes.extend(message.id().map(|id| KeyValue::new("messaging.message.id", id.to_owned())));
            SpanBuilder::from_name(format!("process {destination}"))
                .with_kind(SpanKind::Consumer)
                .with_attributes(attributes)
                .with_links(links)
        };
        Self::begin(builder, || publisher)
    }

    /// A span for publishing a copy to `queue`, within the current span.
    #[must_use]
    pub fn publishing(queue: &str) -> Self {
        let builder = || {
            SpanBuilder::from_name(format!("publish {queue}"))
                .with_kind(SpanKind::Producer)
                .with_attributes(messaging("publish", "send", queue, queue))
        };
        Self::begin(builder, Context::current)
    }

    /// A span for a request to `url`, within the current span.
    #[must_use]
    pub fn request(method: &str, url: &Url) -> Self {
        let builder = || {
            let mut shown = url.clone();
            // The query string names the account.
            shown.set_query(None);
            let attributes = [
                KeyValue::new("http.request.method", method.to_owned()),
                KeyValue::new("url.full", String::from(shown)),
                KeyValue::new("server.address", url.host_str().unwrap_or_default().to_owned()),
                KeyValue::new("server.port", i64::from(url.port_or_known_default().unwrap_or_default())),
            ];
            SpanBuilder::from_name(method.to_owned()).with_kind(SpanKind::Client).with_attributes(attributes)
        };
        Self::begin(builder, Context::current)
    }

    /// Runs `work` within this span.
    pub async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.0 {
            Some(context) => work.with_context(context.clone()).await,
            None => work.await,
        }
    }

    /// The headers that continue the trace on the other side.
    #[must_use]
    pub fn headers(&self) -> HashMap<String, String> {
        let mut headers = HashMap::new();
        if let Some(context) = &self.0 {
            TraceContextPropagator::new().inject_context(context, &mut headers);
            // An invalid header of the publisher must not stop a request.
            headers.retain(|_, value: &mut String| {
                (1..=MAX_HEADER_BYTES).contains(&value.len()) && value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            });
        }
        headers
    }

    /// Sets the result of the message.
    pub fn settled(&self, disposition: &Disposition, rule: Option<&str>, attempts: u32, stale: bool) {
        let Some(context) = &self.0 else { return };
        if let Some(rule) = rule {
            context.span().set_attribute(KeyValue::new("wtw.rule", rule.to_owned()));
        }
        context.span().set_attribute(KeyValue::new("wtw.outcome", disposition.as_str()));
        context.span().set_attribute(KeyValue::new("wtw.attempts", i64::from(attempts)));
        match disposition {
            _ if stale => self.failed("stale"),
            Disposition::DeadLetter(failure) => {
                self.failed(failure.kind.as_str());
                context.span().set_status(Status::error(failure.log_reason().into_owned()));
            }
            Disposition::Ack
            | Disposition::AlreadyCreated
            | Disposition::Skip(_)
            | Disposition::Retry(_)
            | Disposition::Hold
            | Disposition::Requeue => {}
        }
    }

    /// Sets the HTTP status of an answer.
    pub fn answered(&self, status: u16) {
        let Some(context) = &self.0 else { return };
        context.span().set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 400 {
            self.failed(status.to_string());
        }
    }

    /// Marks the span as failed, with one of a few reasons.
    pub fn failed(&self, kind: impl Into<Cow<'static, str>>) {
        let Some(context) = &self.0 else { return };
        context.span().set_attribute(KeyValue::new("error.type", kind.into()));
        context.span().set_status(Status::error(""));
    }
}

/// The trace of the message's publisher, if it sent one.
fn publisher(message: &Message) -> Context {
    let header = |name: &str| Some((name.to_owned(), message.header(name).and_then(string)?));
    let headers: HashMap<String, String> = HEADERS.into_iter().filter_map(header).collect();
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// The destination's name from exchange, routing key and queue, as the conventions for RabbitMQ define it.
fn destination(message: &Message, queue: &str) -> String {
    let routing_key = Some(message.routing_key.as_str()).filter(|key| *key != queue);
    let parts = [Some(message.exchange.as_str()), routing_key, Some(queue)];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(":")
}

fn messaging(name: &'static str, kind: &'static str, destination: &str, routing_key: &str) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.operation.name", name),
        KeyValue::new("messaging.operation.type", kind),
        KeyValue::new("messaging.destination.name", destination.to_owned()),
    ];
    if !routing_key.is_empty() {
        attributes.push(KeyValue::new("messaging.rabbitmq.destination.routing_key", routing_key.to_owned()));
    }
    if let Some((host, port)) = lock(&BROKER).clone() {
        attributes.push(KeyValue::new("server.address", host));
        attributes.push(KeyValue::new("server.port", i64::from(port)));
    }
    attributes
}

fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_name_leaves_repeated_parts_out() {
        let through = |exchange: &str, routing_key: &str| {
            let (exchange, routing_key) = (exchange.to_owned(), routing_key.to_owned());
            destination(&Message { exchange, routing_key, ..Message::default() }, "tasks")
        };
        assert_eq!(through("", "tasks"), "tasks");
        assert_eq!(through("crm", "tasks"), "crm:tasks");
        assert_eq!(through("crm", "new"), "crm:new:tasks");
        assert_eq!(through("crm", ""), "crm:tasks");
    }

    #[test]
    fn destination_name_leaves_an_empty_routing_key_out() {
        let named = |routing_key| {
            let attributes = messaging("process", "process", "crm:tasks", routing_key);
            attributes.iter().any(|attribute| attribute.key.as_str() == "messaging.rabbitmq.destination.routing_key")
        };
        assert!(named("new") && !named(""));
    }
}
