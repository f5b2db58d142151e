//! `check`: finds what keeps a worker with this configuration from working.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::check::{self, Finding, Scope, Severity};
use crate::cli::{Error, FAILED, json, load_or_report, print};
use crate::config::Sources;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker check --config worker.toml
  wolkvox-task-worker check --offline --json | jq '.[] | select(.result == \"problem\")'";

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Check the configuration only, without the network
    #[arg(long)]
    offline: bool,
    /// Do not ask the CRM: each question about a token costs one call of its quota
    #[arg(long)]
    no_crm: bool,
    /// Print a JSON array instead of lines: check, result, message, advice
    #[arg(long)]
    json: bool,
}

/// Prints the findings. Exit code 1 when there is a problem.
///
/// # Errors
/// The configuration is invalid, or the command was interrupted.
pub async fn run(args: &Args, sources: &Sources, stop: &CancellationToken) -> Result<ExitCode, Error> {
    let loaded = match load_or_report(sources, &["crm.server", "crm.operation", "crm.tokens"]) {
        Ok(loaded) => loaded,
        Err(problems) => {
            if args.json {
                print(&json(&check::invalid(problems.iter()))?)?;
            }
            return Err(problems.into());
        }
    };
    let scope = Scope {
        checks_network: !args.offline,
        checks_crm: !args.offline && !args.no_crm,
        is_in_kubernetes: sources.environment.iter().any(|(name, _)| name == "KUBERNETES_SERVICE_HOST"),
    };
    if scope.checks_crm {
        let asked = match loaded.config.crm.tokens.len() {
            1 => "1 token, which costs one call of its quota".to_owned(),
            tokens => format!("{tokens} tokens, which costs one call of each one's quota"),
        };
        eprintln!("asking the CRM about {asked} (--no-crm leaves it out)");
    }
    let checking = stop.run_until_cancelled(check::run(&loaded, scope)).await;
    let findings = checking
        .ok_or_else(|| Error::failed("check was interrupted before it finished; it changed nothing. Run it again"))?;
    print(&if args.json { json(&findings)? } else { text(&findings) })?;
    let bad = count(&findings, Severity::Problem) > 0;
    Ok(if bad { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// The findings, the problems last: a terminal shows the end of a long text.
fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let line = |finding: &Finding| {
        let advice = finding.advice.as_ref().map_or_else(String::new, |advice| format!(" → {advice}"));
        format!("{:<7}  {:<width$}  {}{advice}", finding.result.as_str(), finding.check, finding.message)
    };
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.result);
    let mut lines: Vec<String> = sorted.into_iter().map(line).collect();
    let [ok, warnings, problems] =
        [Severity::Ok, Severity::Warning, Severity::Problem].map(|severity| count(findings, severity));
    lines.push(format!("ok: {ok}, warnings: {warnings}, problems: {problems}"));
    lines.join("\n")
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.result == severity).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: &'static str, result: Severity, message: &str) -> Finding {
        Finding { check, result, message: message.to_owned(), advice: None }
    }

    #[test]
    fn text_ends_with_the_problems_and_the_counts() {
        let findings = [
            finding("a", Severity::Problem, "1"),
            finding("b", Severity::Ok, "2"),
            finding("c", Severity::Warning, "3"),
            finding("d", Severity::Problem, "4"),
            finding("e", Severity::Ok, "5"),
        ];
        let lines = ["ok       b  2", "ok       e  5", "warning  c  3", "problem  a  1", "problem  d  4"];
        assert_eq!(text(&findings), format!("{}\nok: 2, warnings: 1, problems: 2", lines.join("\n")));
    }

    #[test]
    fn json_keeps_hidden_characters_of_a_value_escaped() {
        let value = "the queue a\u{202e}b\u{200b}";
        let printed = json(&[finding("broker.queue", Severity::Ok, value)]).unwrap();
        assert!(!printed.chars().any(|c| crate::visible::is_hidden(c) && c != '\n'), "{printed:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap()[0]["message"], value);
    }
}
