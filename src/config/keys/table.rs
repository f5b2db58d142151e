//! The rows of the table of keys.

use super::{Key, Kind, MAX_QUEUE_BYTES, Preset, SUFFIX_BYTES, key};

const TEXT: Kind = Kind::Like("text without control characters");
const FILE: Kind = Kind::Like("path of a PEM file");
const FLAG: Kind = Kind::Choice(&["true", "false"]);

/// The sections and their meaning, in the order of the keys.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    (
        "broker",
        "RabbitMQ: where messages come from. `[[broker.bindings]]` names the exchanges that the work queue is bound to.",
    ),
    ("crm", "The wolkvox CRM: where tasks go."),
    ("task", "What is sent if a message leaves out a field, and which messages are accepted."),
    ("events", "Messages that are not task messages. `[[rules]]` turn them into tasks; docs/mapping.md explains them."),
    (
        "retry",
        "When a failed attempt is repeated. A round is a few attempts in quick succession; between rounds the message waits on a retry queue.",
    ),
    ("gate", "When requests are held back because the CRM does not work."),
    ("ledger", "The record of what was sent, which prevents duplicates."),
    ("admin", "The pages for operators and probes."),
    ("console", "The page in the browser, served by the command `console`."),
    ("shutdown", "How the worker stops."),
    ("log", "What the worker logs, on standard error."),
];

/// Every key, in the order in which people read about them.
pub const KEYS: &[Key] = &[
    key(
        "broker.urls",
        Preset::Text("amqp://guest:guest@127.0.0.1:5672/%2f"),
        Kind::Like("amqp:// or amqps:// with a host name or IPv4 address and a virtual host, such as amqps://user:password@host:5671/%2f"),
        "One or more nodes, tried in turn; every address of a host name is tried. `?heartbeat=` (8 s) and `?frame_max=` (131072 bytes) can be set in the address.",
    )
    .list()
    .secret(),
    key(
        "broker.queue",
        Preset::Text("wolkvox.tasks"),
        Kind::Queue(MAX_QUEUE_BYTES - SUFFIX_BYTES),
        "The work queue.",
    ),
    key(
        "broker.dead_letter_queue",
        Preset::Derived("<queue>.dead"),
        Kind::Queue(MAX_QUEUE_BYTES),
        "The queue for messages that cannot become a task.",
    ),
    key(
        "broker.topology",
        Preset::Text("declare"),
        Kind::Choice(&["declare", "verify"]),
        "`declare`: the worker declares its queues. `verify`: somebody else declares them, and the worker only checks that they exist.",
    ),
    key(
        "broker.single_active_consumer",
        Preset::Text("true"),
        FLAG,
        "RabbitMQ gives messages to one worker at a time; other replicas are standbys. The CRM's limit is per token, not per pod.",
    ),
    key("broker.ca_file", Preset::Absent, FILE, "Further root certificates for `amqps`."),
    key(
        "broker.client_cert_file",
        Preset::Absent,
        FILE,
        "The client's certificate chain; only with `broker.client_key_file`.",
    ),
    key(
        "broker.client_key_file",
        Preset::Absent,
        FILE,
        "The client's PKCS #8 key; only with `broker.client_cert_file`.",
    ),
    key(
        "crm.server",
        Preset::Required,
        Kind::Like("host, host:port, or http(s)://host:port, without path, query and user, such as crm0001.wolkvox.com"),
        "The CRM. Plain http beyond loopback brings a warning.",
    ),
    key("crm.operation", Preset::Required, TEXT, "The CRM's name for the account."),
    key(
        "crm.tokens",
        Preset::Required,
        Kind::Like("at most 64 different tokens of visible ASCII characters"),
        "API tokens. Each has its own slots, quota and suspension.",
    )
    .list()
    .secret(),
    key(
        "crm.max_in_flight_per_token",
        Preset::Text("2"),
        Kind::Count(1, 1000),
        "Open requests on one token; 2 is the vendor's limit.",
    ),
    key(
        "crm.requests_per_second",
        Preset::Absent,
        Kind::Like("a number from 0.001 to 10000"),
        "The most requests a second of this process, on all tokens together.",
    ),
    key(
        "crm.connect_timeout",
        Preset::Derived("the smaller of 5s and crm.request_timeout"),
        Kind::Duration("1ms", "10m"),
        "Longest wait for name, connection and TLS; not above `crm.request_timeout`.",
    ),
    key(
        "crm.request_timeout",
        Preset::Derived("20s; more if crm.connect_timeout is longer, less if shutdown.grace or gate.hold is too short for it"),
        Kind::Duration("1ms", "10m"),
        "Longest wait for a whole attempt, the connection included.",
    ),
    key(
        "crm.reuse_connections",
        Preset::Derived("true; false with retry.on_unknown = \"dead-letter\""),
        FLAG,
        "Use a connection for more than one request. A kept connection that the server closes leaves an attempt in doubt.",
    ),
    key("crm.ca_file", Preset::Absent, FILE, "Further root certificates."),
    key(
        "crm.timezone",
        Preset::Text("UTC"),
        Kind::Like("an IANA time zone name, such as America/Bogota"),
        "The account's zone, for dates with an offset and for the quota's reset.",
    ),
    key("task.status", Preset::Text("created"), TEXT, "Sent if a message has no `status`."),
    key(
        "task.priority",
        Preset::Text("normal"),
        Kind::Choice(&["high", "normal", "low"]),
        "Sent if a message has no `priority`.",
    ),
    key("task.remember", Preset::Text("false"), FLAG, "Sent if a message has no `remember`."),
    key("task.name_module", Preset::Absent, TEXT, "Sent if a message has no `name_module`."),
    key("task.wolkvox_owner", Preset::Absent, TEXT, "Sent if a message has no `wolkvox_owner`."),
    key(
        "task.description",
        Preset::Absent,
        Kind::Like("text"),
        "Sent if a message has no `description`.",
    ),
    key(
        "task.unknown_fields",
        Preset::Text("reject"),
        Kind::Choice(&["reject", "ignore"]),
        "What happens to a message with a field that is not known: it is rejected, or the field is ignored. Without rules only.",
    ),
    key(
        "task.max_age",
        Preset::Absent,
        Kind::Duration("1ms", "3650d"),
        "An older message (by its AMQP timestamp, or its first attempt) is dead-lettered as `expired`.",
    ),
    key(
        "task.reference",
        Preset::Text("none"),
        Kind::Choice(&["none", "description", "name"]),
        "The field to which `[ref:…]` is appended. It is the same for every attempt of a message; `find` takes it.",
    ),
    key(
        "events.unmatched",
        Preset::Text("dead-letter"),
        Kind::Choice(&["dead-letter", "skip"]),
        "What happens to a message that no rule matches.",
    ),
    key(
        "events.holidays",
        Preset::Absent,
        Kind::Like("dates, YYYY-MM-DD"),
        "Days that `add_business_days` leaves out.",
    )
    .list(),
    key(
        "events.rules_file",
        Preset::Absent,
        Kind::Like("path of a TOML file"),
        "File with `[events]` and `[[rules]]`, in place of rules in the main file. It is read again when it changes. In the main file a relative path counts from that file's folder.",
    ),
    key(
        "retry.immediate_attempts",
        Preset::Text("3"),
        Kind::Count(1, 20),
        "Attempts in a round, the first included.",
    ),
    key(
        "retry.immediate_initial",
        Preset::Derived("200ms, or retry.immediate_max where that is less"),
        Kind::Duration("1ms", "5m"),
        "Wait before a round's second attempt; later waits grow exponentially.",
    ),
    key(
        "retry.immediate_max",
        Preset::Derived("5s, or retry.immediate_initial where that is more"),
        Kind::Duration("1ms", "5m"),
        "Longest wait between two attempts of a round.",
    ),
    key(
        "retry.delays",
        Preset::Text("10s,1m,5m,30m"),
        Kind::Like("at most 20 durations from 1ms to 24h, or none"),
        "Wait before each delayed round; `none` for no such round.",
    )
    .list(),
    key(
        "retry.retry_after_max",
        Preset::Text("5m"),
        Kind::Duration("1ms", "24h"),
        "Longest `Retry-After` that is honoured.",
    ),
    key(
        "retry.on_unknown",
        Preset::Text("retry"),
        Kind::Choice(&["retry", "dead-letter"]),
        "What follows an attempt whose result is not known: another attempt, which may create a second task, or the dead-letter queue (strict mode).",
    ),
    key(
        "gate.failures",
        Preset::Text("5"),
        Kind::Count(1, 1000),
        "The gate closes after this many outcomes `unavailable` or `unknown` in a row, of any messages.",
    ),
    key(
        "gate.probe_initial",
        Preset::Derived("1s, or gate.probe_max where that is less"),
        Kind::Duration("1ms", "1h"),
        "First wait between probes while the gate is closed.",
    ),
    key(
        "gate.probe_max",
        Preset::Derived("1m, or gate.probe_initial where that is more"),
        Kind::Duration("1ms", "1h"),
        "Longest wait between probes while the gate is closed.",
    ),
    key(
        "gate.recheck",
        Preset::Text("15m"),
        Kind::Duration("1ms", "24h"),
        "How often a suspended token is tried again.",
    ),
    key(
        "gate.hold",
        Preset::Derived("10m, or crm.request_timeout + 10s where that is more"),
        Kind::Duration("11s", "24h"),
        "Longest time that a message is kept in memory; at least `crm.request_timeout` + 10s. Stay well below RabbitMQ's consumer timeout (30 minutes unless changed).",
    ),
    key(
        "ledger.url",
        Preset::Text("file:wolkvox-task-worker.db"),
        Kind::Like("memory:, file:PATH, redis://… or rediss://…"),
        "The store that records which message ids were sent. Replicas can share Redis. If `ledger.url_file` changes while the worker runs, only the login may differ.",
    )
    .secret(),
    key(
        "ledger.retention",
        Preset::Text("7d"),
        Kind::Duration("1d", "3650d"),
        "How long a result is kept.",
    ),
    key(
        "ledger.max_entries",
        Preset::Text("1000000"),
        Kind::Count(10_000, 1_000_000_000),
        "Most entries; the oldest are removed first, open claims never.",
    ),
    key(
        "admin.listen",
        Preset::Text("127.0.0.1:9464"),
        Kind::Like("an IP address and a port, such as 0.0.0.0:9464 or [::]:9464"),
        "Address of `/livez`, `/readyz`, `/metrics` and `/status`. `[::]` answers IPv4 and IPv6.",
    ),
    key(
        "console.listen",
        Preset::Text("127.0.0.1:9465"),
        Kind::Like("an IP address and a port; beyond loopback only with `console.password_file`"),
        "The console's address.",
    ),
    key(
        "console.workers",
        Preset::Derived("the address of admin.listen; http://127.0.0.1:9464 if its port is 0"),
        Kind::Like("http addresses of admin ports"),
        "The workers that `status`, `find`, `dead-letters` and the console ask.",
    )
    .list(),
    key(
        "console.state",
        Preset::Text("wolkvox-task-worker-console.db"),
        Kind::Like("path of a file"),
        "Where the console keeps actions, their progress, sessions and the check-off list.",
    ),
    key(
        "console.password_file",
        Preset::Absent,
        Kind::Like("path of a file with one Argon2 hash a line, or NAME:HASH"),
        "Passwords of operators, who can act; `console --hash-password` makes a line.",
    ),
    key(
        "console.viewer_password_file",
        Preset::Absent,
        Kind::Like("path of a file with one Argon2 hash a line, or NAME:HASH"),
        "Passwords of viewers, who see no bodies and cannot act.",
    ),
    key(
        "console.user_header",
        Preset::Absent,
        Kind::Like("name of an HTTP header; only with `console.trusted_proxies`"),
        "The header in which the proxy names the user, who then needs no password here.",
    ),
    key("console.read_only", Preset::Text("false"), FLAG, "Switches all actions off; one that is under way waits. Export stays."),
    key(
        "console.allowed_hosts",
        Preset::Absent,
        Kind::Like("host names without scheme and path"),
        "Host names of the console besides the loopback names.",
    )
    .list(),
    key(
        "console.base_path",
        Preset::Text("/"),
        Kind::Like("a path such as /wolkvox/"),
        "The start of the path of every page, if a proxy serves the console under a path.",
    ),
    key(
        "console.trusted_proxies",
        Preset::Absent,
        Kind::Like("IP addresses"),
        "Proxies whose `X-Forwarded-For`, `X-Forwarded-Host`, `X-Forwarded-Proto` and `console.user_header` are believed.",
    )
    .list(),
    key(
        "shutdown.grace",
        Preset::Derived("crm.request_timeout + 5s"),
        Kind::Duration("2ms", "1h"),
        "How long open requests may take to finish at shutdown; longer than `crm.request_timeout`.",
    ),
    key(
        "log.format",
        Preset::Derived("text on a terminal, otherwise json"),
        Kind::Choice(&["text", "json"]),
        "Lines for people, or one JSON object a line.",
    ),
    key(
        "log.level",
        Preset::Text("info"),
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        "The lowest level that is logged. Audit lines are logged at every level.",
    ),
];
