//! The other files of a release: shell completions and manual pages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory as _;
use serde_json::json;
use wolkvox_task_worker::cli::Cli;

#[path = "../../deploy/dist/pages.rs"]
mod pages;
#[path = "../../deploy/dist/sbom.rs"]
mod sbom;

fn written(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    pages::write(&folder, "2026-01-31").unwrap();
    folder
}

/// Runs a program and returns its output; panics with its error output.
fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new("timeout").arg("60").arg(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && said.is_empty() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    Err(format!("{program} ended with {}: {}{said}", output.status, String::from_utf8_lossy(&output.stdout)))
}

/// The words that bash offers to complete the last of these words.
fn completed(script: &Path, words: &[&str]) -> Vec<String> {
    // As readline calls it: the words, the index of the last one, and the function that is registered for the first one.
    let complete = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        registered=$(complete -p "$1"); function=${registered#*-F }; function=${function%% *}
        "$function" "$1" "${@: -1}" "${@: -2:1}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let args = [&["--norc", "-euc", complete, "bash", script.to_str().unwrap()], words].concat();
    run("bash", &args).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    let script = written("completions").join("completions/wolkvox-task-worker.bash");
    run("bash", &["-n", script.to_str().unwrap()]).unwrap();

    let program = "wolkvox-task-worker";
    assert_eq!(completed(&script, &[program, "pub"]), ["publish"]);
    assert_eq!(completed(&script, &[program, "dead-letters", "li"]), ["list"]);
    assert_eq!(completed(&script, &[program, "topology", "--ap"]), ["--apply"]);
    let offered = completed(&script, &[program, ""]);
    for command in Cli::command().get_subcommands() {
        assert!(offered.iter().any(|name| name == command.get_name()), "{} is not offered", command.get_name());
    }
}

#[test]
fn manual_pages_render_without_a_warning() {
    let folder = written("manual").join("man");
    let pages: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|page| page.unwrap().path()).collect();
    let names: Vec<&str> = pages.iter().map(|page| page.to_str().unwrap()).collect();
    if let Err(complaints) = run("mandoc", &[&["-T", "lint", "-W", "warning"], names.as_slice()].concat()) {
        panic!("{complaints}\n(mandoc is a package of Debian; deploy/setup.sh test installs it)");
    }

    let main = run("mandoc", &["-T", "utf8", folder.join("wolkvox-task-worker.1").to_str().unwrap()]).unwrap();
    // A bold character is printed twice, with a backspace between.
    let main: Vec<char> = main.chars().collect();
    let main: String = main
        .iter()
        .enumerate()
        .filter(|(at, letter)| **letter != '\u{8}' && main.get(at + 1) != Some(&'\u{8}'))
        .map(|(_, letter)| letter)
        .collect();
    for word in ["SYNOPSIS", "--config", "EXIT STATUS", "78", "ENVIRONMENT", "WTW_CRM_TOKENS, WTW_CRM_TOKENS_FILE"] {
        assert!(main.contains(word), "{word}\n{main}");
    }
    for command in Cli::command().get_subcommands() {
        let page = format!("wolkvox-task-worker-{}.1", command.get_name());
        assert!(folder.join(&page).is_file(), "{page}");
    }
}

#[test]
fn bill_of_materials_lists_what_the_program_is_built_from() {
    let component = |name: &str| json!({ "name": name, "version": "1.0.0", "bom-ref": format!("ref-{name}") });
    let document = json!({
        "metadata": { "component": component("worker") },
        "components": [component("used"), component("of-tests"), component("deep")],
        "dependencies": [
            { "ref": "ref-worker", "dependsOn": ["ref-of-tests", "ref-used"] },
            { "ref": "ref-used", "dependsOn": ["ref-deep"] },
            { "ref": "ref-of-tests", "dependsOn": ["ref-deep"] },
            { "ref": "ref-deep" },
        ],
    });
    let tree = "deep@1.0.0\nused@1.0.0\nworker@1.0.0\n";
    let exact = sbom::exact(document.clone(), tree).unwrap();
    assert_eq!(exact["components"], json!([component("used"), component("deep")]));
    assert_eq!(
        exact["dependencies"],
        json!([
            { "ref": "ref-worker", "dependsOn": ["ref-used"] },
            { "ref": "ref-used", "dependsOn": ["ref-deep"] },
            { "ref": "ref-deep" },
        ])
    );
    let missing = sbom::exact(document, "used@1.0.0\nused@2.0.0\n").unwrap_err();
    assert!(missing.contains("used@2.0.0"), "{missing}");
    assert!(sbom::exact(json!({}), tree).is_err());
}
