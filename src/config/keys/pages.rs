//! Writes the table of keys for people: docs/configuration.md, `config explain` and `config init`.

use std::fmt::Write as _;

use super::table::SECTIONS;
use super::{KEYS, Key, Preset, variable};
use crate::duration;
use crate::suggest::suggest;

impl Key {
    fn section(&self) -> &'static str {
        self.name.split('.').next().unwrap_or_default()
    }

    fn leaf(&self) -> &'static str {
        self.name.split('.').nth(1).unwrap_or_default()
    }

    /// The default in words.
    fn default(&self) -> &'static str {
        match self.preset {
            Preset::Text(text) | Preset::Derived(text) => text,
            Preset::Required => "required",
            Preset::Absent => "–",
        }
    }
}

fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section() == section)
}

/// What applies to all keys.
fn rules() -> [String; 4] {
    let secrets: Vec<String> =
        KEYS.iter().filter(|key| key.is_secret).map(|key| format!("`{}_file`", key.name)).collect();
    [
        "The worker reads a TOML file, which `--config` or `WTW_CONFIG` names. Environment variables override it: \
         `server` in `[crm]` is `WTW_CRM_SERVER`. An empty value means unset."
            .to_owned(),
        format!("A duration is {}. A list is a TOML array, or a text with commas.", duration::ALLOWED),
        format!(
            "Secrets can come from files of at most 64 KiB: {}. A file is read again when it changes.",
            secrets.join(", ")
        ),
        "`wolkvox-task-worker config init` prints a commented file, `config show` the values in use, and `config explain KEY` \
         the meaning of one key."
            .to_owned(),
    ]
}

/// The page docs/configuration.md.
#[must_use]
pub fn markdown_page() -> String {
    let mut page = "# Configuration\n".to_owned();
    // Writing to a `String` cannot fail.
    for rule in rules() {
        let _ = write!(page, "\n{rule}\n");
    }
    for (section, about) in SECTIONS {
        let about = about.replace("docs/mapping.md", "[mapping.md](mapping.md)");
        let _ = write!(page, "\n## [{section}]\n\n{about}\n\n| key | default | meaning |\n| --- | --- | --- |\n");
        for key in keys_of(section) {
            let default = match key.preset {
                Preset::Text(text) => format!("`{text}`"),
                // Markdown reads it as a tag.
                Preset::Derived(text) if text.starts_with('<') => format!("`{text}`"),
                Preset::Derived(_) | Preset::Required | Preset::Absent => key.default().to_owned(),
            };
            let _ = writeln!(page, "| `{}` | {default} | {} Allowed: {}. |", key.name, key.meaning, key.brief());
        }
    }
    page
}

/// Lists of tables, which are no single keys.
const LISTS: [(&str, &str); 2] = [
    (
        "broker.bindings",
        "  An exchange that the work queue is bound to. May be given several times, in the TOML file only.
  exchange     the exchange's name; required
  type         topic, direct, fanout or headers: the worker declares the exchange; without it the exchange must exist
  routing_key  the binding's key, with * and # for a topic exchange; required for topic and direct; otherwise empty where
               it is left out
  headers      arguments of the binding, for a headers exchange
  Example:
    [[broker.bindings]]
    exchange = \"helpdesk\"
    type = \"topic\"
    routing_key = \"ticket.#\"
  More in docs/mapping.md.",
    ),
    (
        "rules",
        "  Turns events into tasks: the first rule that matches a message is applied. In the TOML file, or in events.rules_file.
  name          its name in logs, metrics and dead letters; required
  routing_key   an AMQP topic pattern that the routing key must match
  when          an expression that must be true
  message_id    a template of the message id; without it the AMQP message id is used
  action        \"skip\": nothing is sent
  [rules.task]  a template or a fixed value for each field of the task
  [[rules.examples]]  events, and what must become of them; run by check, at start, and by map --all-examples
  Example:
    [[rules]]
    name = \"ticket-opened\"
    routing_key = \"ticket.opened.#\"
    action = \"skip\"
  More in docs/mapping.md.",
    ),
];

/// Explains a key, by its name or its environment variable, or all keys of a section.
///
/// # Errors
/// There is no such key; with the nearest name.
pub fn explain(name: &str) -> Result<String, String> {
    let is_named = |key: &&Key| key.slots().any(|slot| slot == name || variable(&slot) == name);
    if let Some(key) = KEYS.iter().find(is_named) {
        return Ok(explained(key));
    }
    let section = name.trim_matches(['[', ']']);
    let is_list = |known: &str| known == section || known.strip_prefix("broker.") == Some(section);
    if let Some((name, text)) = LISTS.iter().find(|(known, _)| is_list(known)) {
        return Ok(format!("[[{name}]]\n{text}"));
    }
    if let Some((_, about)) = SECTIONS.iter().find(|(known, _)| *known == section) {
        let keys: Vec<String> = keys_of(section).map(explained).collect();
        return Ok(format!("[{section}]\n{about}\n\n{}", keys.join("\n\n")));
    }
    let by_leaf = KEYS.iter().find(|key| key.leaf() == name).map(|key| key.name);
    let names = KEYS.iter().map(|key| key.name).chain(LISTS.iter().map(|(name, _)| *name));
    Err(match by_leaf.or_else(|| suggest(name, names)) {
        Some(meant) => format!("there is no key {name}; did you mean {meant}?"),
        None => format!(
            "there is no key {name}; \"wolkvox-task-worker config init\" lists all but broker.bindings and rules"
        ),
    })
}

fn explained(key: &Key) -> String {
    let plain = |text: &str| text.replace('`', "");
    let default = match key.preset {
        Preset::Text(text) | Preset::Derived(text) => text,
        Preset::Required => "none; the key is required",
        Preset::Absent => "none",
    };
    format!(
        "{}\n  {}\n  Allowed: {}.\n  Default: {}.\n  Environment: {}.",
        key.name,
        plain(key.meaning),
        plain(&key.allowed()),
        default,
        key.variables().join(" or "),
    )
}

/// A configuration file that explains every key in comments. Required keys have an example.
#[must_use]
pub fn template() -> String {
    let mut text = String::new();
    for rule in rules() {
        comment(&mut text, &rule.replace('`', ""));
    }
    for (section, about) in SECTIONS {
        text.push('\n');
        comment(&mut text, about);
        let _ = writeln!(text, "[{section}]");
        for key in keys_of(section) {
            text.push('\n');
            comment(&mut text, &format!("{} Allowed: {}.", key.meaning, key.brief()).replace('`', ""));
            if let Preset::Derived(words) = key.preset {
                comment(&mut text, &format!("Default: {words}."));
            }
            if let Preset::Required = key.preset {
                comment(&mut text, "Required.");
            }
            let value = example(key);
            match value == "true" || value == "false" || value.parse::<u64>().is_ok() {
                true => writeln!(text, "#{} = {value}", key.leaf()),
                false => writeln!(text, "#{} = {value:?}", key.leaf()),
            }
            .unwrap_or_default();
            if key.is_secret {
                let _ = writeln!(text, "#{}_file = \"/run/secrets/{}\"", key.leaf(), key.name.replace('.', "-"));
            }
        }
    }
    text
}

/// The default, or else an example.
fn example(key: &Key) -> &'static str {
    match (key.preset, key.name) {
        (Preset::Text(text), _) => text,
        (_, "crm.server") => "crm0001.wolkvox.com",
        (_, "crm.operation") => "my-operation",
        (_, "crm.tokens") => "my-token",
        (_, "crm.requests_per_second") => "2",
        (_, "crm.connect_timeout" | "retry.immediate_max") => "5s",
        (_, "crm.reuse_connections") => "true",
        (_, "crm.request_timeout") => "20s",
        (_, "shutdown.grace") => "25s",
        (_, "gate.hold") => "10m",
        (_, "gate.probe_initial") => "1s",
        (_, "gate.probe_max") => "1m",
        (_, "retry.immediate_initial") => "200ms",
        (_, "task.max_age") => "2d",
        (_, "events.holidays") => "2027-01-01,2027-12-25",
        (_, "events.rules_file") => "rules.toml",
        (_, "log.format") => "json",
        (_, "broker.dead_letter_queue") => "wolkvox.tasks.dead",
        (_, "broker.ca_file" | "crm.ca_file") => "/etc/ssl/ca.pem",
        (_, "broker.client_cert_file") => "/etc/ssl/client.pem",
        (_, "broker.client_key_file") => "/etc/ssl/client.key",
        (_, "task.name_module") => "cases",
        (_, "task.description") => "Created from RabbitMQ",
        (_, "task.wolkvox_owner") => "ADMIN_@my-operation",
        (_, "console.password_file") => "/etc/wolkvox-task-worker/operators",
        (_, "console.viewer_password_file") => "/etc/wolkvox-task-worker/viewers",
        (_, "console.user_header") => "X-Forwarded-User",
        (_, "console.workers") => "http://127.0.0.1:9464",
        (_, "console.allowed_hosts") => "console.example.com",
        (_, "console.trusted_proxies") => "127.0.0.1",
        _ => "",
    }
}

/// Adds comment lines of at most 100 characters.
fn comment(text: &mut String, sentence: &str) {
    const WIDTH: usize = 100;
    let mut line = "#".to_owned();
    for word in sentence.split_whitespace() {
        if line.chars().count() + word.chars().count() >= WIDTH {
            let _ = writeln!(text, "{line}");
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_a_row_of_three_cells_for_every_key() {
        let page = markdown_page();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(rows.len(), KEYS.len());
        for row in rows {
            assert_eq!(row.matches('|').count(), 4, "{row}");
        }
        assert!(page.contains("| `retry.retry_after_max` | `5m` | Longest"), "{page}");
        assert!(page.contains("`broker.urls_file`, `crm.tokens_file`, `ledger.url_file`"), "{page}");
    }

    #[test]
    fn key_is_explained_by_each_of_its_names() {
        for key in KEYS {
            let text = explain(key.name).unwrap();
            assert!(text.contains(&key.meaning.replace('`', "")), "{text}");
            for name in key.slots().chain(key.variables()) {
                assert_eq!(explain(&name).as_ref(), Ok(&text));
            }
        }
        assert!(explain("[gate]").unwrap().contains("gate.failures\n"));
        assert!(explain("events").unwrap().contains("events.rules_file\n"));
        for (name, part) in [
            ("rules", "[rules.task]"),
            ("[[rules]]", "action"),
            ("broker.bindings", "routing_key"),
            ("bindings", "routing_key"),
        ] {
            assert!(explain(name).unwrap().contains(part), "{name}");
        }
        for (name, said) in [
            ("crm.sevrer", "there is no key crm.sevrer; did you mean crm.server?"),
            ("server", "there is no key server; did you mean crm.server?"),
            ("rulse", "there is no key rulse; did you mean rules?"),
            ("zzz", "there is no key zzz; \"wolkvox-task-worker config init\" lists all but broker.bindings and rules"),
        ] {
            assert_eq!(explain(name).unwrap_err(), said);
        }
    }

    #[test]
    fn meaning_is_made_of_sentences() {
        for key in KEYS {
            assert!(key.meaning.ends_with('.') && !key.meaning.contains('|'), "{}", key.name);
            assert!(SECTIONS.iter().any(|(section, _)| *section == key.section()), "{}", key.name);
        }
    }
}
