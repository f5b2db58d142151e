//! Tests that image, compose file, systemd unit and the install pages agree with the program and the chart.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use wolkvox_task_worker::config::KEYS;

use super::{RENDERED, array, case, configuration, deploy, printed, run, text, workload};
use crate::support::process;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// The value after the only line with this beginning.
fn line<'a>(file: &'a str, begin: &str) -> &'a str {
    let found: Vec<&str> = file.lines().filter_map(|line| line.trim().strip_prefix(begin)).collect();
    assert_eq!(found.len(), 1, "{begin}");
    found[0].trim()
}

#[test]
fn environment_variables_in_files_are_known_keys() {
    let variables = KEYS.iter().flat_map(|key| key.variables());
    let known: BTreeSet<String> = variables.chain(["WTW_CONFIG".to_owned()]).collect();
    let pages = ["helm", "kubernetes", "compose", "systemd"].map(|name| format!("docs/install/{name}.md"));
    let files = ["deploy/compose.yaml", "deploy/Dockerfile", "deploy/systemd/wolkvox-task-worker.service"];
    let mut words = BTreeSet::new();
    for text in files.into_iter().map(read).chain(pages.iter().map(|page| read(page))) {
        let found = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.extend(found.filter(|word| word.starts_with("WTW_")).map(str::to_owned));
    }
    assert!(words.len() > 5);
    for word in &words {
        assert!(known.contains(word), "{word} is no configuration key");
    }
}

#[test]
fn paths_on_the_install_pages_exist() {
    for page in ["helm", "kubernetes", "compose", "systemd"] {
        let text = read(&format!("docs/install/{page}.md"));
        let words = text.split(|c: char| c.is_whitespace() || "`()\"',:".contains(c));
        let paths =
            words.filter(|word| word.starts_with("deploy/") && !word.contains("secrets") && *word != "deploy/.env");
        for path in paths.filter(|path| !path.starts_with("deploy/wtw") && *path != "deploy/wolkvox-task-worker") {
            assert!(Path::new(ROOT).join(path).exists(), "{page}.md: {path}");
        }
    }
}

#[test]
fn image_chart_and_program_have_one_version_and_one_user() {
    let chart = read("deploy/helm/wolkvox-task-worker/Chart.yaml");
    for key in ["version: ", "appVersion: "] {
        assert_eq!(line(&chart, key), env!("CARGO_PKG_VERSION"));
    }
    let pod = workload(case("minimal"), "worker").0;
    let image = concat!("wolkvox-task-worker:", env!("CARGO_PKG_VERSION"));
    assert_eq!(pod["spec"]["containers"][0]["image"], image);
    let user = &pod["spec"]["securityContext"];
    let dockerfile = read("deploy/Dockerfile");
    assert_eq!(line(&dockerfile, "USER "), format!("{}:{}", user["runAsUser"], user["runAsGroup"]));
    for page in ["helm", "kubernetes"] {
        assert!(read(&format!("docs/install/{page}.md")).contains(image), "{page}");
    }
}

#[test]
fn stop_timeouts_are_equal_everywhere() {
    let seconds = &workload(case("minimal"), "worker").0["spec"]["terminationGracePeriodSeconds"];
    let unit = read("deploy/systemd/wolkvox-task-worker.service");
    assert_eq!(line(&unit, "TimeoutStopSec="), format!("{seconds}s"));
    assert_eq!(line(&read("deploy/compose.yaml"), "stop_grace_period: "), format!("{seconds}s"));
}

/// The program accepts the configuration of compose, and the sandbox its token.
#[tokio::test]
async fn compose_configuration_is_accepted_by_worker_and_sandbox() {
    let compose = read("deploy/compose.yaml");
    let token = read("deploy/compose/sandbox/crm-tokens");
    assert!(line(&compose, "command: [\"sandbox\"").contains(&format!("\"--token\", \"{}\"", token.trim())));
    let sandbox = Path::new(ROOT).join("deploy/compose/sandbox");
    let file = |name: &str| sandbox.join(name).to_str().unwrap().to_owned();
    let config = Path::new(ROOT).join("deploy/compose/config/worker.toml").to_str().unwrap().to_owned();
    let env = [
        ("WTW_CONFIG", config),
        ("WTW_BROKER_URLS_FILE", file("broker-urls")),
        ("WTW_CRM_TOKENS_FILE", file("crm-tokens")),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let checked = process::run(&["check", "--offline"], &env, b"").await;
    assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
}

#[test]
fn systemd_unit_is_valid_and_hardened() {
    let unit = read("deploy/systemd/wolkvox-task-worker.service");
    let here = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wolkvox-task-worker.service");
    // systemd also checks that the programs exist, and this machine has none at that path.
    fs::write(&here, unit.replace("/usr/local/bin/wolkvox-task-worker", env!("CARGO_BIN_EXE_wolkvox-task-worker")))
        .unwrap();
    let analyze = |args: &[&str]| run(Path::new("systemd-analyze"), &[args, &[here.to_str().unwrap()]].concat(), "");
    let verified = analyze(&["verify"]);
    assert!(verified.status.success() && verified.stderr.is_empty(), "{:?}", printed(&verified));
    // 0 is the least exposed, 10 the most. The test fails above 1.5.
    let security = analyze(&["security", "--offline=true", "--threshold=15", "--no-pager"]);
    printed(&security).unwrap();
    // The ledger is in the folder that systemd creates.
    let folder = format!("file:%S/{}", line(&unit, "StateDirectory="));
    assert!(line(&unit, "Environment=WTW_LEDGER_URL=").starts_with(&folder));
    for name in ["broker-urls", "crm-tokens"] {
        assert!(
            unit.contains(&format!("LoadCredential={name}:")) && unit.contains(&format!("_FILE=%d/{name}")),
            "{name}"
        );
    }
    assert!(unit.contains("RestartPreventExitStatus=78"), "an invalid configuration is not started again and again");
}

#[test]
fn image_bill_of_materials_lists_crates_and_packages() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image-sbom");
    fs::create_dir_all(folder.join("status")).unwrap();
    fs::write(folder.join("crates"), "serde v1.0.0\nwolkvox-task-worker v1.0.0\n").unwrap();
    let package = "Package: libc6\nArchitecture: amd64\nVersion: 2:2.41-12+deb13u1\nDescription: GNU C Library\n";
    fs::write(folder.join("status/libc6"), package).unwrap();
    let paths = ["crates", "status"].map(|name| folder.join(name).to_str().unwrap().to_owned());
    let written = printed(&run(&deploy().join("docker/sbom.sh"), &["1.0.0", &paths[0], &paths[1]], "")).unwrap();
    let document: Value = serde_json::from_str(&written).unwrap();
    assert_eq!((text(&document["bomFormat"]), text(&document["specVersion"])), ("CycloneDX", "1.5"));
    let purls: BTreeSet<&str> = array(&document["components"]).iter().map(|part| text(&part["purl"])).collect();
    let expected = ["pkg:cargo/serde@1.0.0", "pkg:deb/debian/libc6@2%3A2.41-12%2Bdeb13u1?arch=amd64"];
    assert_eq!(purls, BTreeSet::from(expected));
}

#[test]
fn default_ledger_file_has_one_name_everywhere() {
    let unit = read("deploy/systemd/wolkvox-task-worker.service");
    let url = configuration(case("minimal"))["ledger"]["url"].as_str().unwrap().to_owned();
    let name = url.rsplit('/').next().unwrap();
    assert!(line(&unit, "Environment=WTW_LEDGER_URL=").ends_with(&format!("/{name}")));
    assert!(!RENDERED.is_empty());
}
