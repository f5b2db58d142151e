//! Any status, header and body as the CRM's answer: one outcome, and `created` only where the body says 200.
#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use wolkvox_task_worker::crm::classify::{HttpResult, Outcome, Reply, classify, token_accepted};

fuzz_target!(|input: (u16, Option<String>, Vec<u8>)| {
    let (status, retry_after, body) = input;
    let says_200 = body.windows(3).any(|part| part == b"200") || body.contains(&b'.') || body.contains(&b'e');
    let answer = HttpResult::Reply(Reply { status, retry_after, body });
    let classified = classify(&answer, Timestamp::UNIX_EPOCH);
    assert!(classified.outcome != Outcome::Created || (classified.code == Some(200) && says_200));
    assert!(!classified.reason.is_empty());
    let _ = token_accepted(&answer);
});
