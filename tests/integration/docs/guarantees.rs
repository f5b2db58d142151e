//! Every test that docs/guarantees.md names exists.

use std::fs;
use std::path::Path;

use super::{ROOT, read};

#[test]
fn tests_named_by_the_guarantees_exist() {
    let page = read("docs/guarantees.md");
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(|code| code.contains("::")).collect();
    assert!(named.len() >= 60, "{named:?}");
    let unknown: Vec<&str> = named.into_iter().filter(|test| !is_test(test)).collect();
    assert!(unknown.is_empty(), "these are no tests: {unknown:#?}");
}

#[test]
fn each_promise_names_a_test() {
    let page = read("docs/guarantees.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).collect();
    let promises = rows.iter().filter(|row| !row.starts_with("| **") && !row.starts_with("| promise"));
    let mut count = 0;
    for promise in promises {
        count += 1;
        assert!(promise.contains("::"), "no test keeps this promise: {promise}");
    }
    assert!(count > 40, "{count}");
}

/// Whether there is a test of that path: of the integration tests, the simulation, or a module.
fn is_test(path: &str) -> bool {
    let Some((modules, function)) = path.rsplit_once("::") else { return false };
    let folder = modules.replace("::", "/");
    let inline = folder.strip_suffix("/tests").unwrap_or(&folder);
    let files = [
        format!("tests/integration/{folder}.rs"),
        format!("tests/{folder}/main.rs"),
        format!("src/{folder}.rs"),
        format!("src/{inline}.rs"),
    ];
    let sources = files.iter().filter_map(|file| fs::read_to_string(Path::new(ROOT).join(file)).ok());
    sources.into_iter().any(|source| {
        let before = source.split(&format!("fn {function}(")).next().filter(|before| before.len() < source.len());
        // The attributes before the function, of which one marks a test.
        let attributes = before.and_then(|before| before.rsplit("\n\n").next());
        attributes.is_some_and(|text| text.contains("#[test]") || text.contains("#[tokio::test"))
    })
}
