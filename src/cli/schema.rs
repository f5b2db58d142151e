//! `schema`: the JSON Schema of a task message, or an AsyncAPI document of the queues and messages.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::{Error, load, print};
use crate::config::Sources;
use crate::message::payload::REQUIRED;

mod asyncapi;

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wolkvox-task-worker schema > task.schema.json
  wolkvox-task-worker --config worker.toml schema --asyncapi > asyncapi.json")]
pub struct Args {
    /// Print an AsyncAPI 3 document of this configuration's queues, exchanges and messages instead
    #[arg(long)]
    asyncapi: bool,
}

/// Prints the schema, or the document.
///
/// # Errors
/// The configuration is invalid, or standard output cannot be written.
pub fn run(args: &Args, sources: &Sources) -> Result<ExitCode, Error> {
    let printed = match args.asyncapi {
        true => asyncapi::document(&load(sources, &[])?),
        false => schema(),
    };
    print(&serde_json::to_string_pretty(&printed).map_err(Error::failed)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The schema of a message that uses no default of the worker's configuration.
///
/// A schema cannot say that a date exists, that the reminder is not after the completion date, and that no key is given
/// twice. The worker checks these, too.
#[must_use]
pub fn schema() -> Value {
    const DATE: &str = "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\
        ([.,][0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)?$";
    let text = |description: &str| json!({ "type": ["string", "null"], "minLength": 1, "description": description });
    let required_text = |description: &str| json!({ "type": "string", "minLength": 1, "description": description });
    let date = |kinds: Value, description: &str| json!({ "type": kinds, "pattern": DATE, "description": description });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Task message",
        "description": "A wolkvox CRM task; at most 256 KiB of UTF-8 JSON. Dates are YYYY-MM-DD HH:MM:SS or \
                        YYYY-MM-DDTHH:MM:SS in the account's wall clock, or the same with an offset.",
        "type": "object",
        "properties": {
            "name": required_text("Name of the activity."),
            "name_module": required_text("Module of the record, such as cases."),
            "completion_date": date(json!("string"), "When it is due."),
            "id_record": { "type": ["string", "integer"], "minLength": 1, "description": "The record in that module." },
            "wolkvox_owner": required_text("The user that owns the activity."),
            "description": { "type": ["string", "null"], "description": "Free text, may be empty." },
            "status": text("Status of the activity."),
            "priority": { "enum": ["high", "normal", "low", null], "description": "Priority of the activity." },
            "remember": { "type": ["boolean", "null"], "description": "Whether the CRM reminds." },
            "reminder_date": date(json!(["string", "null"]), "When the CRM reminds; not after completion_date."),
        },
        "required": REQUIRED,
        "if": { "properties": { "remember": { "const": true } }, "required": ["remember"] },
        "then": { "properties": { "reminder_date": { "type": "string" } }, "required": ["reminder_date"] },
        "additionalProperties": false,
    })
}

#[cfg(test)]
mod tests;
