//! Compares the rules on disk, which the commands read, with the rules that the running workers use.

use super::CommandContext;
use crate::observe::watched_files::FileKey;
use crate::observe::workers::{WorkerStatus, Workers};
use crate::visible;

/// Warns if a running worker of the queue uses other rules than these ones from the disk. A replay gets the worker's rules.
/// Prints nothing without rules, and when no worker answers.
pub(super) async fn warn_if_outdated(context: &CommandContext, on_disk: Option<&str>) {
    let Some(on_disk) = on_disk else { return };
    let config = &context.dead_letters.config;
    let answers = Workers::new(config.console.workers.clone()).status().await;
    let warnings = answers
        .iter()
        .filter_map(|answer| warning(answer, &config.broker.queue, on_disk, config.events.rules_file.is_some()));
    for warning in warnings {
        eprintln!("warning: {}", visible::line(&warning));
    }
}

/// What to do before a replay, if this worker uses other rules.
fn warning(answer: &WorkerStatus, queue: &str, on_disk: &str, is_watched: bool) -> Option<String> {
    let page = answer.page.as_ref().ok().filter(|page| page.queue.as_deref() == Some(queue))?;
    let used = page.rules.as_ref().map(|rules| rules.digest.as_str());
    let file = page.files.iter().find(|file| file.key == FileKey::Rules.as_str());
    let next = match file.and_then(|file| file.problem.as_deref()) {
        Some(problem) => format!("It cannot use its rules file: {problem}"),
        None if is_watched => {
            "Wait about ten seconds for its log line \"the file changed, and is in use\", then replay.".to_owned()
        }
        None => "Restart the worker, then replay.".to_owned(),
    };
    let uses = used.map_or_else(|| "it has no rules".to_owned(), |used| format!("it uses {used}"));
    (used != Some(on_disk)).then(|| {
        format!(
            "the running worker at {} does not use these rules yet: {uses}, and the rules on disk are {on_disk}. {next}",
            answer.address
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{Page, RulesStatus};
    use crate::observe::watched_files::WatchedFileStatus;
    use crate::observe::workers::StatusError;

    fn answer(queue: &str, digest: Option<&str>) -> WorkerStatus {
        let rules = digest.map(|digest| RulesStatus { digest: digest.to_owned(), ..RulesStatus::default() });
        let page = Page { queue: Some(queue.to_owned()), rules, ..Page::default() };
        WorkerStatus { address: "127.0.0.1:9464".to_owned(), page: Ok(page) }
    }

    #[test]
    fn worker_with_other_rules_is_named_with_what_to_do() {
        let warning_for = |answer: &WorkerStatus, is_watched| warning(answer, "tasks", "b2", is_watched);
        for (digest, is_watched, uses, next) in [
            (Some("a1"), false, "it uses a1, and the rules on disk are b2.", "Restart the worker"),
            (Some("a1"), true, "it uses a1, and the rules on disk are b2.", "\"the file changed, and is in use\""),
            (None, false, "it has no rules, and the rules on disk are b2.", "Restart the worker"),
        ] {
            let warning = warning_for(&answer("tasks", digest), is_watched).unwrap();
            assert!(warning.contains(uses) && warning.contains(next), "{warning}");
        }
        let mut refusing = answer("tasks", Some("a1"));
        if let Ok(page) = &mut refusing.page {
            let (key, problem) = (FileKey::Rules.as_str().to_owned(), Some("is not TOML".to_owned()));
            page.files.push(WatchedFileStatus { key, problem, ..WatchedFileStatus::default() });
        }
        let warning = warning_for(&refusing, true).unwrap();
        assert!(warning.ends_with("It cannot use its rules file: is not TOML"), "{warning}");
        let why = StatusError { why: "connection refused".to_owned(), is_other: false };
        let unreachable = WorkerStatus { page: Err(why), ..answer("tasks", None) };
        for quiet in [answer("tasks", Some("b2")), answer("other", Some("a1")), unreachable] {
            assert_eq!(warning_for(&quiet, false), None, "{quiet:?}");
        }
    }
}
