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
    for warning in answers.iter().filter_map(|answer| warning(answer, &config.broker.queue, on_disk)) {
        eprintln!("warning: {}", visible::line(&warning));
    }
}

/// What to do before a replay, if this worker uses other rules.
fn warning(answer: &WorkerStatus, queue: &str, on_disk: &str) -> Option<String> {
    let page = answer.page.as_ref().ok().filter(|page| page.queue.as_deref() == Some(queue))?;
    let used = page.rules.as_ref().map(|rules| rules.digest.as_str());
    // The worker's own file counts: a rules file that the configuration names since its start is not watched.
    let file = page.files.iter().find(|file| file.key == FileKey::Rules.as_str());
    let next = match file.map(|file| file.problem.as_deref()) {
        Some(Some(problem)) => format!("It cannot use its rules file: {problem}"),
        Some(None) => {
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

    fn watching(digest: &str, problem: Option<&str>) -> WorkerStatus {
        let (key, problem) = (FileKey::Rules.as_str().to_owned(), problem.map(ToOwned::to_owned));
        let file = WatchedFileStatus { key, problem, ..WatchedFileStatus::default() };
        let WorkerStatus { address, page } = answer("tasks", Some(digest));
        WorkerStatus { address, page: page.map(|page| Page { files: vec![file], ..page }) }
    }

    #[test]
    fn worker_with_other_rules_is_named_with_what_to_do() {
        let warning_for = |answer: &WorkerStatus| warning(answer, "tasks", "b2");
        let refusing = watching("a1", Some("is not TOML"));
        for (answer, uses, next) in [
            (answer("tasks", Some("a1")), "it uses a1, and the rules on disk are b2.", "Restart the worker"),
            (watching("a1", None), "it uses a1, and the rules on disk are b2.", "\"the file changed, and is in use\""),
            (refusing, "it uses a1, and the rules on disk are b2.", "It cannot use its rules file: is not TOML"),
            (answer("tasks", None), "it has no rules, and the rules on disk are b2.", "Restart the worker"),
        ] {
            let warning = warning_for(&answer).unwrap();
            assert!(warning.contains(uses) && warning.contains(next), "{warning}");
        }
        let why = StatusError { why: "connection refused".to_owned(), is_other: false };
        let unreachable = WorkerStatus { page: Err(why), ..answer("tasks", None) };
        for quiet in [answer("tasks", Some("b2")), watching("b2", None), answer("other", Some("a1")), unreachable] {
            assert_eq!(warning_for(&quiet), None, "{quiet:?}");
        }
    }
}
