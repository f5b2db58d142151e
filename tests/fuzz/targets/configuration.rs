//! Any configuration file and environment: a configuration, or a list of problems.
#![no_main]

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wolkvox_task_worker::config::{Config, KEYS, Sources};

/// A file that is already unlinked, so that nothing is left when the process ends.
static FILE: LazyLock<File> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("wolkvox-task-worker-fuzz-{}", std::process::id()));
    let file = File::create_new(&path).expect("a new file");
    std::fs::remove_file(path).expect("removed");
    file
});

/// Writes the file. Each line is a known key with some value, or any text. Keys that name other files are left out.
fn write(lines: &[(u8, String)]) -> PathBuf {
    let mut text = String::new();
    for (choice, rest) in lines.iter().filter(|(_, rest)| !rest.contains("_file")) {
        match KEYS.get(usize::from(*choice)) {
            Some(key) => text.extend([key.name, " = ", rest, "\n"]),
            None => text.extend([rest, "\n"]),
        }
    }
    FILE.set_len(0).expect("emptied");
    (&*FILE).seek(SeekFrom::Start(0)).expect("at its beginning");
    (&*FILE).write_all(text.as_bytes()).expect("written");
    format!("/proc/self/fd/{}", FILE.as_raw_fd()).into()
}

fuzz_target!(|given: (Vec<(u8, String)>, Option<Vec<(u8, String)>>)| {
    let (variables, lines) = given;
    let names: Vec<String> =
        KEYS.iter().flat_map(|key| key.variables()).filter(|name| !name.ends_with("_FILE")).collect();
    let environment = variables
        .into_iter()
        .filter_map(|(choice, text)| Some((names.get(usize::from(choice))?.clone().into(), text.into())))
        .collect();
    let sources = Sources { file: lines.map(|lines| write(&lines)), environment, ..Sources::default() };
    if let Err(problems) = Config::load(&sources, &["crm.server"]) {
        assert!(!problems.to_string().is_empty());
    }
});
