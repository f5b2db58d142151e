//! Any status, header and body as the CRM's answer: one outcome, and `created` only for a verdict with code 200.
#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use wolkvox_task_worker::crm::classify::{HttpResult, Outcome, Reply, classify};

fuzz_target!(|input: (u16, bool, Option<String>, Vec<u8>)| {
    let (status, is_cut, retry_after, body) = input;
    let result = HttpResult::Reply(Reply { status, retry_after, body, is_cut });
    let classified = classify(&result, Timestamp::UNIX_EPOCH);
    assert!(classified.outcome != Outcome::Created || (classified.code == Some(200) && status < 300));
    assert!(!classified.reason.is_empty());
});
