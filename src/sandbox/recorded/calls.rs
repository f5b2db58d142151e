//! The keys of `sandbox.answers` in a report: one for each kind of call whose answer was recorded.

/// All calls. The account refused the first one, so no other was sent.
pub(in crate::sandbox) const EVERYTHING: &str = "everything";
/// An insert that creates the task.
pub(in crate::sandbox) const CREATED: &str = "created";
/// An insert that does not create the task.
pub(in crate::sandbox) const REFUSED: &str = "refused";
/// An insert that lacks a field.
pub(in crate::sandbox) const MISSING_FIELD: &str = "missing_field";
/// A call with a token that is not known.
pub(in crate::sandbox) const WRONG_TOKEN: &str = "wrong_token";
/// A call for an operation that is not the token's.
pub(in crate::sandbox) const WRONG_OPERATION: &str = "wrong_operation";
/// `tokenInformation.php`.
pub(in crate::sandbox) const COUNTER: &str = "counter";
/// The fields by which `query.php` was asked.
pub(in crate::sandbox) const FIELDS: [&str; 3] = ["wolkvox_id", "name", "id_record"];
/// What `queryDates.php` searches by.
pub(in crate::sandbox) const DATES: &str = "dates";
/// All keys.
pub(in crate::sandbox) const ALL: [&str; 15] = [
    EVERYTHING,
    CREATED,
    REFUSED,
    MISSING_FIELD,
    WRONG_TOKEN,
    WRONG_OPERATION,
    COUNTER,
    "found_by_wolkvox_id",
    "found_by_name",
    "found_by_id_record",
    "found_by_dates",
    "not_found_by_wolkvox_id",
    "not_found_by_name",
    "not_found_by_id_record",
    "not_found_by_dates",
];

/// A search that finds a task by this.
pub(in crate::sandbox) fn found(by: &str) -> String {
    format!("found_by_{by}")
}

/// A search that finds no task by this, or is refused.
pub(in crate::sandbox) fn not_found(by: &str) -> String {
    format!("not_found_by_{by}")
}

/// Whether a call finds no task, or is refused.
pub(in crate::sandbox) fn is_not_found(call: &str) -> bool {
    call.starts_with(&not_found(""))
}

/// Whether a call creates or finds a task.
pub(in crate::sandbox) fn has_task(call: &str) -> bool {
    call == CREATED || call.starts_with(&found(""))
}
