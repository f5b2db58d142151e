//! Records whether the last change of each watched file is in use, for metrics and the status page.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::sync::lock;

/// A configuration key that names a watched file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKey {
    /// `broker.urls_file`
    BrokerUrls,
    /// `crm.tokens_file`
    CrmTokens,
    /// `events.rules_file`
    Rules,
    /// `ledger.url_file`
    LedgerUrl,
}

impl FileKey {
    /// Every key, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::BrokerUrls, Self::CrmTokens, Self::Rules, Self::LedgerUrl];

    /// The key in the configuration, in metrics and in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BrokerUrls => "broker.urls_file",
            Self::CrmTokens => "crm.tokens_file",
            Self::Rules => "events.rules_file",
            Self::LedgerUrl => "ledger.url_file",
        }
    }
}

/// A watched file on the status page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchedFileStatus {
    /// The configuration key that names it.
    pub key: String,
    /// Its path.
    pub path: String,
    /// When the current content was taken into use; none if that was at the start.
    pub replaced_at: Option<String>,
    /// Why the file's new content is not in use; none when it is.
    pub problem: Option<String>,
}

/// The state of all watched files.
#[derive(Debug, Default)]
pub struct WatchedFiles {
    files: Mutex<BTreeMap<FileKey, WatchedFileStatus>>,
    reloads: Family<ReloadLabels, Counter>,
    successful: Family<FileLabels, Gauge>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReloadLabels {
    file: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FileLabels {
    file: &'static str,
}

impl WatchedFiles {
    /// Registers the metrics of every possible file.
    pub(super) fn register(&self, to: &mut Registry) {
        for key in FileKey::ALL {
            for is_used in [true, false] {
                self.counter(key, is_used);
            }
            self.set_successful(key, true);
        }
        to.register("config_reloads", "Times that a file changed, by whether it could be used", self.reloads.clone());
        to.register(
            "config_reload_successful",
            "1 while the worker uses the file's current content; 0 while that content cannot be used",
            self.successful.clone(),
        );
    }

    fn counter(&self, key: FileKey, is_used: bool) -> Counter {
        let outcome = if is_used { "success" } else { "failure" };
        self.reloads.get_or_create_owned(&ReloadLabels { file: key.as_str(), outcome })
    }

    fn set_successful(&self, key: FileKey, is_used: bool) {
        self.successful.get_or_create(&FileLabels { file: key.as_str() }).set(is_used.into());
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<FileKey, WatchedFileStatus>> {
        lock(&self.files)
    }

    /// Adds a watched file.
    pub fn watched(&self, key: FileKey, path: &Path) {
        let file = WatchedFileStatus {
            key: key.as_str().to_owned(),
            path: path.display().to_string(),
            ..WatchedFileStatus::default()
        };
        self.files().insert(key, file);
    }

    /// A file changed. It is in use since `at`, or cannot be used for this reason.
    pub fn changed(&self, key: FileKey, at: String, problem: Option<String>) {
        self.counter(key, problem.is_none()).inc();
        self.set_successful(key, problem.is_none());
        if let Some(file) = self.files().get_mut(&key) {
            if problem.is_none() {
                file.replaced_at = Some(at);
            }
            file.problem = problem;
        }
    }

    /// The files that are watched, in the order of the documentation.
    #[must_use]
    pub fn page(&self) -> Vec<WatchedFileStatus> {
        self.files().values().cloned().collect()
    }
}
