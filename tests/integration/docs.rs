//! README, CHANGELOG and docs: links lead somewhere, generated parts are current, and commands do what the pages say.

mod commands;
mod generated;
mod guarantees;
mod links;

use std::fs;
use std::path::Path;

use crate::support::files_below;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Markdown page that users read, by its path from the top.
fn pages() -> Vec<String> {
    let mut pages = ["README.md", "CHANGELOG.md", "SECURITY.md"].map(str::to_owned).to_vec();
    let docs = files_below("docs", "md");
    pages.extend(docs.iter().map(|path| path.to_str().expect("text").to_owned()));
    pages.sort();
    pages
}
