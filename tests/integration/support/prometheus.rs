//! Runs a real Prometheus that scrapes a worker and its broker, and promtool.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reqwest::Url;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::broker::{free_port, install, unique};
use super::{eventually, http};

/// The longest time of promtool: it evaluates the rules over days.
const PROMTOOL: Duration = Duration::from_secs(300);

/// A Prometheus with the configuration and the rules of `deploy/prometheus`. Dropping it removes it.
pub(crate) struct Prometheus {
    url: String,
    folder: PathBuf,
    _child: Child,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes a worker and a broker every second. Both are given as host and port.
    pub(crate) async fn watching(worker: &str, broker: &str) -> Self {
        let config = std::fs::read_to_string(folder().join("prometheus.yaml")).expect("a configuration");
        let mut watching = config.clone();
        for (from, to) in [
            ("[worker:9464]", format!("['{worker}']\n        labels: {{ namespace: crm, pod: worker-0 }}")),
            ("[rabbitmq:15692]", format!("['{broker}']")),
            ("- rules.yaml", format!("- '{}'", folder().join("rules.yaml").display())),
            ("15s", "1s".to_owned()),
        ] {
            assert!(watching.contains(from), "{from} is not in {config}");
            watching = watching.replace(from, &to);
        }
        let folder = std::env::temp_dir().join(unique("wolkvox-task-worker-prometheus"));
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("prometheus.yaml"), watching).expect("written");
        let address = format!("127.0.0.1:{}", free_port().expect("a port"));
        let log = std::fs::File::create(folder.join("log")).expect("a log");
        let mut command = Command::new(program("prometheus").await);
        command
            .args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=warn"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        let child = command.spawn().expect("spawned");
        let prometheus = Self { url: format!("http://{address}"), folder, _child: child };
        let ready = format!("{}/-/ready", prometheus.url);
        eventually("Prometheus", || async { http::get(&ready).await.filter(|(status, _)| status.is_success()) }).await;
        prometheus
    }

    /// The member `data` of the answer of an API page. Panics if the answer is an error.
    pub(crate) async fn api(&self, page: &str, parameters: &[(&str, &str)]) -> Value {
        let url = Url::parse_with_params(&format!("{}/api/v1/{page}", self.url), parameters).expect("a URL");
        let (_, body) = http::get(url.as_str()).await.expect("an answer");
        let mut answer: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(answer["status"], "success", "{page} {parameters:?}: {body}");
        answer["data"].take()
    }

    /// How many series of an expression have a number now.
    pub(crate) async fn numbers(&self, expression: &str) -> usize {
        let data = self.api("query", &[("query", expression)]).await;
        let series = data["result"].as_array().expect("a vector").iter();
        series.filter(|series| series["value"][1] != "NaN").count()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The files for Prometheus in this repository.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus")
}

/// Runs promtool in [`folder`]. Panics with its output if it finds a problem.
pub(crate) async fn promtool(arguments: &[&str], input: Option<&Path>) {
    let input = input.map_or_else(Stdio::null, |path| std::fs::File::open(path).expect("a file").into());
    let mut command = Command::new(program("promtool").await);
    command.args(arguments).current_dir(folder()).stdin(input).kill_on_drop(true);
    let output = timeout(PROMTOOL, command.output()).await.expect("promtool ends in time").expect("promtool");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

async fn program(name: &str) -> PathBuf {
    Path::new(&install("deploy/prometheus.sh").await.expect("Prometheus")).join(name)
}
