//! Any environment: a configuration, or problems in words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wolkvox_task_worker::config::{Config, KEYS, Sources};

fuzz_target!(|given: Vec<(u8, String)>| {
    let variables: Vec<String> = KEYS.iter().flat_map(|key| key.variables()).filter(|name| !name.ends_with("_FILE")).collect();
    let environment = given
        .into_iter()
        .filter_map(|(choice, text)| Some((variables.get(usize::from(choice))?.clone().into(), text.into())))
        .collect();
    let sources = Sources { environment, ..Sources::default() };
    if let Err(problems) = Config::load(&sources, &["crm.server"]) {
        assert!(!problems.to_string().is_empty());
    }
});
