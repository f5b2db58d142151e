//! The table of keys itself.

use super::{Key, Kind, Preset, QUEUE_BYTES, SUFFIX_BYTES, key};

const TEXT: Kind = Kind::Like("text without control characters");
const FILE: Kind = Kind::Like("path of a PEM file");
const FLAG: Kind = Kind::Choice(&["true", "false"]);

/// Every key, in the order in which people read about them.
pub const KEYS: &[Key] = &[
    key(
        "broker.urls",
        Preset::Text("amqp://guest:guest@127.0.0.1:5672/%2f"),
        Kind::Like("amqp:// or amqps:// with a host name or IPv4 address and a virtual host, such as amqps://user:password@host:5671/%2f"),
        "one or more nodes, tried in turn",
    )
    .list()
    .secret(),
    key(
        "broker.queue",
        Preset::Text("wolkvox.tasks"),
        Kind::Queue(QUEUE_BYTES - SUFFIX_BYTES),
        "the work queue",
    ),
    key(
        "broker.dead_letter_queue",
        Preset::Derived("<queue>.dead"),
        Kind::Queue(QUEUE_BYTES),
        "where goes what cannot be done",
    ),
    key(
        "broker.topology",
        Preset::Text("declare"),
        Kind::Choice(&["declare", "verify"]),
        "declare the queues, or only verify that they are there, for brokers where others own the topology",
    ),
    key(
        "broker.single_active_consumer",
        Preset::Text("true"),
        FLAG,
        "replicas are standbys: the CRM's limit is per token, not per pod",
    ),
    key("broker.ca_file", Preset::Absent, FILE, "further root certificates for amqps"),
    key(
        "broker.client_cert_file",
        Preset::Absent,
        FILE,
        "the client's certificate chain; only with `broker.client_key_file`",
    ),
    key(
        "broker.client_key_file",
        Preset::Absent,
        FILE,
        "the client's PKCS #8 key; only with `broker.client_cert_file`",
    ),
    key(
        "crm.server",
        Preset::Required,
        Kind::Like("host, host:port, or http(s)://host:port, without path, query and user, such as crm0001.wolkvox.com"),
        "the CRM; plain http beyond loopback is warned of",
    ),
    key("crm.operation", Preset::Required, TEXT, "the CRM's name for the account"),
    key(
        "crm.tokens",
        Preset::Required,
        Kind::Like("at most 64 different tokens of visible ASCII characters"),
        "API tokens; each has its own slots, quota and quarantine; a tokens file is read again when it changes",
    )
    .list()
    .secret(),
    key(
        "crm.max_in_flight_per_token",
        Preset::Text("2"),
        Kind::Count(1, 1000),
        "requests at a time on one token; 2 is the vendor's limit",
    ),
    key(
        "crm.requests_per_second",
        Preset::Absent,
        Kind::Like("a number from 0.001 to 10000"),
        "limit of this process, all tokens together",
    ),
    key(
        "crm.connect_timeout",
        Preset::Text("5s"),
        Kind::Duration("1ms", "10m"),
        "longest wait for name, connection and TLS; not above `crm.request_timeout`",
    ),
    key(
        "crm.request_timeout",
        Preset::Text("20s"),
        Kind::Duration("1ms", "10m"),
        "longest wait for a whole attempt, the connection included",
    ),
    key(
        "crm.timezone",
        Preset::Text("UTC"),
        Kind::Like("an IANA time zone name, such as America/Bogota"),
        "the account's zone, for dates given with an offset and for the quota's reset",
    ),
    key("task.status", Preset::Text("created"), TEXT, "used where a message leaves it out"),
    key(
        "task.priority",
        Preset::Text("normal"),
        Kind::Choice(&["high", "normal", "low"]),
        "used where a message leaves it out",
    ),
    key("task.remember", Preset::Text("false"), FLAG, "used where a message leaves it out"),
    key("task.name_module", Preset::Absent, TEXT, "used where a message leaves it out"),
    key("task.wolkvox_owner", Preset::Absent, TEXT, "used where a message leaves it out"),
    key(
        "task.description",
        Preset::Absent,
        Kind::Like("text"),
        "used where a message leaves it out",
    ),
    key(
        "task.unknown_fields",
        Preset::Text("reject"),
        Kind::Choice(&["reject", "ignore"]),
        "what becomes of a message with a field that is not known",
    ),
    key(
        "task.max_age",
        Preset::Absent,
        Kind::Duration("1ms", "3650d"),
        "a message published longer ago (AMQP timestamp, else first attempt) is dead-lettered as `expired`",
    ),
    key(
        "retry.immediate_attempts",
        Preset::Text("3"),
        Kind::Count(1, 20),
        "posts in a round, the first included",
    ),
    key(
        "retry.immediate_initial",
        Preset::Text("200ms"),
        Kind::Duration("1ms", "5m"),
        "wait before a round's second post, exponential from there",
    ),
    key(
        "retry.immediate_max",
        Preset::Text("5s"),
        Kind::Duration("1ms", "5m"),
        "longest wait between two posts of a round",
    ),
    key(
        "retry.delays",
        Preset::Text("10s,1m,5m,30m"),
        Kind::Like("at most 20 durations from 1ms to 24h, or none"),
        "wait before each delayed round; `none` for no such round",
    )
    .list(),
    key(
        "retry.retry_after_max",
        Preset::Text("5m"),
        Kind::Duration("1ms", "24h"),
        "the longest `Retry-After` that is honoured",
    ),
    key(
        "retry.on_unknown",
        Preset::Text("retry"),
        Kind::Choice(&["retry", "dead-letter"]),
        "after an attempt of which nobody knows whether it made a task: a second task is possible, or never risk a double",
    ),
    key(
        "gate.failures",
        Preset::Text("5"),
        Kind::Count(1, 1000),
        "in a row, whatever the message, close the gate",
    ),
    key(
        "gate.probe_initial",
        Preset::Text("1s"),
        Kind::Duration("1ms", "1h"),
        "first wait between probes while the gate is closed",
    ),
    key(
        "gate.probe_max",
        Preset::Text("1m"),
        Kind::Duration("1ms", "1h"),
        "longest wait between probes while the gate is closed",
    ),
    key(
        "gate.recheck",
        Preset::Text("15m"),
        Kind::Duration("1ms", "24h"),
        "how often a parked or quarantined token is tried all the same",
    ),
    key(
        "gate.hold",
        Preset::Text("10m"),
        Kind::Duration("1ms", "24h"),
        "how long a message is held, counted from delivery; well below the broker's consumer timeout (30 minutes unless changed)",
    ),
    key(
        "ledger.url",
        Preset::Text("file:wolkvox-task-worker.redb"),
        Kind::Like("memory:, file:PATH, redis://… or rediss://…"),
        "where intents and outcomes are remembered; redis is shared by replicas",
    )
    .secret(),
    key(
        "ledger.retention",
        Preset::Text("7d"),
        Kind::Duration("1s", "3650d"),
        "how long an outcome is remembered",
    ),
    key(
        "ledger.max_entries",
        Preset::Text("1000000"),
        Kind::Count(1, 1_000_000_000),
        "the oldest outcomes leave first, open intents never",
    ),
    key(
        "admin.listen",
        Preset::Text("127.0.0.1:9464"),
        Kind::Like("an IP address and a port, such as 0.0.0.0:9464 or [::]:9464"),
        "address of `/livez`, `/readyz`, `/metrics` and `/status`",
    ),
    key(
        "console.listen",
        Preset::Text("127.0.0.1:9465"),
        Kind::Like("an IP address and a port; beyond loopback only with `console.password_file`"),
        "the console's address",
    ),
    key(
        "console.workers",
        Preset::Text("http://127.0.0.1:9464"),
        Kind::Like("http addresses of admin ports"),
        "the workers that `status`, `find` and the console ask",
    )
    .list(),
    key(
        "console.state",
        Preset::Text("wolkvox-task-worker-console.db"),
        Kind::Like("path of a file"),
        "where the console keeps actions, their progress, sessions and the check-off list",
    ),
    key(
        "console.password_file",
        Preset::Absent,
        Kind::Like("path of a file with one Argon2 hash a line, or NAME:HASH"),
        "passwords of those who may act; `console --hash-password` makes a line",
    ),
    key(
        "console.viewer_password_file",
        Preset::Absent,
        Kind::Like("path of a file with one Argon2 hash a line, or NAME:HASH"),
        "passwords of those who may look, and see no bodies",
    ),
    key(
        "console.user_header",
        Preset::Absent,
        Kind::Like("name of an HTTP header; only with `console.trusted_proxies`"),
        "the header in which the proxy names the user, who then needs no password here",
    ),
    key("console.read_only", Preset::Text("false"), FLAG, "nobody may do anything but look"),
    key(
        "console.allowed_hosts",
        Preset::Absent,
        Kind::Like("host names without scheme and path"),
        "names under which the console is reached, beside the loopback names",
    )
    .list(),
    key(
        "console.base_path",
        Preset::Text("/"),
        Kind::Like("a path such as /wolkvox/"),
        "what the paths of all pages begin with, behind a proxy",
    ),
    key(
        "console.trusted_proxies",
        Preset::Absent,
        Kind::Like("IP addresses"),
        "proxies whose `X-Forwarded-For`, `X-Forwarded-Proto` and `console.user_header` are believed",
    )
    .list(),
    key(
        "shutdown.grace",
        Preset::Text("25s"),
        Kind::Duration("1ms", "1h"),
        "how long what is in flight may take to finish; longer than `crm.request_timeout`",
    ),
    key(
        "log.format",
        Preset::Derived("text on a terminal, else json"),
        Kind::Choice(&["text", "json"]),
        "lines for people, or one JSON object a line",
    ),
    key(
        "log.level",
        Preset::Text("info"),
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        "the least level that is logged",
    ),
];
