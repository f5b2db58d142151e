//! Reads files with secrets or rules again when they change. An invalid file changes nothing and is reported.

use std::path::Path;
use std::sync::Arc;

use crate::broker::connect::Connector;
use crate::clock::{Clock, rfc3339};
use crate::config::{self, FileWatch, Problem, Problems, SharedSecret, WatchedFile};
use crate::gate::Gate;
use crate::message::failure::shorten;
use crate::message::mapper::Mapper;
use crate::observe::watched_files::{FileKey, WatchedFiles};
use crate::worker::ownership::Ownership;

/// The longest report about a file, in bytes.
const LONGEST_REPORT: usize = 4_000;

/// A watched file, and where its changes are reported.
struct Watched {
    key: FileKey,
    file: WatchedFile,
    watch: FileWatch,
    reports: Arc<WatchedFiles>,
    /// The problem that was reported last.
    problem: Option<String>,
}

impl Watched {
    fn new(key: FileKey, file: WatchedFile, reports: Arc<WatchedFiles>) -> Self {
        reports.watched(key, file.path());
        Self { key, watch: file.watch(), file, reports, problem: None }
    }

    /// The file's text after its next change. A file that cannot be read is reported.
    async fn text(&mut self) -> String {
        loop {
            match self.watch.changed().await {
                Ok(text) => return text,
                Err(why) => {
                    let source = format!("file {}", self.file.path().display());
                    self.report(&Err(Problems(vec![Problem::new(self.key.as_str(), source, why)])));
                }
            }
        }
    }

    /// Reports that the file is in use, with the warnings about it, or why it is not. A problem that a second try finds again is
    /// not reported twice.
    fn report(&mut self, used: &Result<Vec<Problem>, Problems>) {
        let (key, path) = (self.key.as_str(), self.file.path().display());
        let problem = used.as_ref().err().map(|Problems(problems)| {
            let listed: Vec<String> = problems.iter().map(ToString::to_string).collect();
            shorten(&listed.join("; "), LONGEST_REPORT)
        });
        if self.watch.is_repeated() && problem.is_some() && problem == self.problem {
            return;
        }
        self.problem.clone_from(&problem);
        match &problem {
            None => tracing::info!(key, %path, "the file changed, and is in use"),
            Some(problem) => tracing::warn!(
                key,
                %path,
                problem,
                "the file changed and cannot be used. The worker keeps what it read before. Correct the file before the next \
                 restart: the worker does not start with it"
            ),
        }
        for warning in used.iter().flatten() {
            tracing::warn!(key, %path, %warning, "the file in use has something that may be a mistake");
        }
        self.reports.changed(self.key, rfc3339(Clock::system().now()), problem);
    }
}

/// Reads the file after each change, gives the value to `replace`, and reports the warnings, or why the file is not used.
async fn follow<T>(
    key: FileKey,
    file: WatchedFile,
    reports: Arc<WatchedFiles>,
    read: impl Fn(&Path, &str) -> Result<config::WithWarnings<T>, Problems>,
    replace: impl Fn(T),
) {
    let mut watched = Watched::new(key, file, reports);
    loop {
        let text = watched.text().await;
        let used = read(watched.file.path(), &text).map(|(value, warnings)| {
            replace(value);
            warnings
        });
        watched.report(&used);
    }
}

/// Uses new tokens when their file changes.
pub(crate) async fn tokens(file: WatchedFile, gate: Arc<Gate>, reports: Arc<WatchedFiles>) {
    follow(FileKey::CrmTokens, file, reports, config::read_tokens, |tokens| gate.replace_tokens(tokens)).await;
}

/// Uses new RabbitMQ addresses when their file changes. An open connection stays.
pub(crate) async fn broker_urls(file: WatchedFile, connector: Arc<Connector>, reports: Arc<WatchedFiles>) {
    follow(FileKey::BrokerUrls, file, reports, config::read_urls, |urls| connector.replace_urls(urls)).await;
}

/// Uses the ledger's new login when its file changes. An open connection stays.
pub(crate) async fn ledger_url(file: WatchedFile, url: SharedSecret, reports: Arc<WatchedFiles>) {
    let read = |path: &Path, text: &str| config::read_ledger_url(path, text, &url.get());
    follow(FileKey::LedgerUrl, file, reports, read, |new| url.replace(new)).await;
}

/// Uses new rules when their file changes, if they compile and their examples pass.
pub(crate) async fn rules(
    file: WatchedFile,
    events: config::Events,
    mapper: Arc<Mapper>,
    ownership: Arc<Ownership>,
    reports: Arc<WatchedFiles>,
) {
    let mut watched = Watched::new(FileKey::Rules, file, reports);
    loop {
        let text = watched.text().await;
        let (compiling, events) = (Arc::clone(&mapper), events.clone());
        // Compiling can take long, and a panic must not end the worker.
        let compiled = tokio::task::spawn_blocking(move || {
            config::read_rules(&events, &text).and_then(|events| compiling.compile(&events))
        });
        let used = match compiled.await {
            Ok(Ok(rules)) => {
                let identity = rules.identity();
                ownership.replace_identities(identity, || mapper.replace(rules)).await;
                Ok(Vec::new())
            }
            Ok(Err(problems)) => {
                // A file that only an example names can be corrected without a change of this one.
                watched.watch.try_again();
                Err(problems)
            }
            Err(_) => {
                let source = format!("file {}", watched.file.path().display());
                Err(Problems(vec![Problem::new("rules", source, "compiling or an example panicked: report this bug")]))
            }
        };
        watched.report(&used);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{pause, timeout};

    use super::*;
    use crate::config::{Config, Sources};
    use crate::observe::logs::captured::Captured;

    #[tokio::test]
    async fn warnings_about_a_changed_file_are_logged() {
        let path = std::env::temp_dir().join(format!("wtw-reload-{}", std::process::id()));
        std::fs::write(&path, "one").unwrap();
        let environment = vec![("WTW_CRM_TOKENS_FILE".into(), path.clone().into())];
        let config = Config::load(&Sources { environment, ..Sources::default() }, &[]).unwrap().config;
        std::fs::write(&path, "one,,#two").unwrap();
        pause();
        let captured = Captured::start();
        let following =
            follow(FileKey::CrmTokens, config.crm.tokens_file.unwrap(), Arc::default(), config::read_tokens, drop);
        assert!(timeout(Duration::from_secs(30), following).await.is_err());
        std::fs::remove_file(path).unwrap();
        let lines = captured.take();
        let warnings: Vec<_> = lines.iter().filter_map(|line| line["warning"].as_str()).collect();
        assert_eq!(warnings.len(), 2, "{lines:?}");
        assert!(warnings[0].contains("has a comma with nothing before it"), "{lines:?}");
        assert!(warnings[1].contains("entry 2 begins with #"), "{lines:?}");
    }
}
