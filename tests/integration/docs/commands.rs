//! The commands on the pages. Those of "getting started" must do what the page shows. All others must be commands that the
//! program accepts.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};
use wolkvox_task_worker::cli::Cli;

use super::{pages, read};
use crate::events::{python, succeeds};
use crate::support::WAIT_TIMEOUT;
use crate::support::broker::{Broker, Operated, unique};
use crate::support::rig::Rig;

const PROGRAM: &str = "wolkvox-task-worker";
/// Commands that change nothing: they are repeated until they print what the page shows, as a person repeats them.
const LOOKS: [&str; 5] = [
    "wolkvox-task-worker status",
    "wolkvox-task-worker check",
    "wolkvox-task-worker find",
    "wolkvox-task-worker dead-letters list",
    "curl -s http",
];
/// Ends the output of a command.
const MARK: &str = "--- end of the command, with the code";

/// One command of a page.
#[derive(Debug)]
struct Step {
    command: String,
    /// The output that the page shows below it.
    shown: Option<String>,
}

/// The commands of a page, without those that are marked as not run.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut parts = page.split("```").collect::<Vec<_>>().into_iter();
    let mut before = parts.next().unwrap_or_default();
    while let (Some(block), after) = (parts.next(), parts.next().unwrap_or_default()) {
        let (language, code) = block.split_once('\n').expect("a language and code");
        match language {
            "sh" if before.trim_end().ends_with("-->") => {
                assert!(before.contains("<!-- not run: "), "say why it is not run: {code}");
            }
            "sh" => steps.push(Step { command: code.trim_end().to_owned(), shown: None }),
            "text" | "json" if before.trim().is_empty() => {
                steps.last_mut().expect("a command").shown = Some(code.trim_end().to_owned());
            }
            _ => {}
        }
        before = after;
    }
    steps
}

/// Whether a command printed what a page shows. `…` stands for any text, and on a line of its own for any number of lines.
fn is_as_shown(shown: &[&str], printed: &[&str]) -> bool {
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((&"…", rest)), _) => (0..=printed.len()).any(|skipped| is_as_shown(rest, &printed[skipped..])),
        (Some((first, rest)), Some((line, others))) => is_line_as_shown(first, line) && is_as_shown(rest, others),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn is_line_as_shown(shown: &str, line: &str) -> bool {
    let parts: Vec<&str> = shown.split('…').collect();
    let [first, middle @ .., last] = &parts[..] else { return shown == line };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn ellipsis_in_expected_output_matches_any_text_and_lines() {
    for (shown, printed, is_same) in [
        ("a\nb", "a\nb", true),
        ("a\nb", "a", false),
        ("a\n…\nd", "a\nb\nc\nd", true),
        ("a\n…", "a", true),
        ("at …, done", "at 10:00, done", true),
        ("at …, done", "at 10:00, failed", false),
        ("…\nb", "a", false),
    ] {
        let lines = |text: &'static str| text.lines().collect::<Vec<_>>();
        assert_eq!(is_as_shown(&lines(shown), &lines(printed)), is_same, "{shown:?} {printed:?}");
    }
}

/// A shell in its own folder. Dropping it ends the shell and what it started, and deletes the folder.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    folder: PathBuf,
    /// Texts of the page, each with the text that replaces it in this test.
    replaced: Vec<(String, String)>,
}

impl Shell {
    fn start(vhost: &Vhost) -> Self {
        let folder = std::env::temp_dir().join(unique("wolkvox-task-worker-docs"));
        std::fs::create_dir(&folder).expect("a folder");
        let [sandbox, admin, console] = [(); 3].map(|()| free_address());
        let program = Path::new(env!("CARGO_BIN_EXE_wolkvox-task-worker")).parent().expect("a folder");
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", program.display());
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc"]).current_dir(&folder).process_group(0);
        command.env_clear().env("PATH", path).env("HOME", &folder).env("TMPDIR", &folder);
        // The page uses the default addresses, which may be in use here.
        command.env("WTW_BROKER_URLS", &vhost.url).env("WTW_ADMIN_LISTEN", &admin);
        command.env("WTW_CONSOLE_WORKERS", format!("http://{admin}")).env("WTW_CONSOLE_LISTEN", &console);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("bash");
        let input = child.stdin.take().expect("an input");
        let output = BufReader::new(child.stdout.take().expect("an output")).lines();
        let (_, authority) = vhost.url.rsplit_once('@').expect("a user");
        let replaced = [
            ("127.0.0.1:5672/%2f", authority.to_owned()),
            ("127.0.0.1:8089", sandbox),
            ("127.0.0.1:9464", admin),
            ("127.0.0.1:9465", console),
        ];
        let replaced = replaced.map(|(page, here)| (page.to_owned(), here)).to_vec();
        Self { child, input, output, folder, replaced }
    }

    /// Runs a command; its exit code, and what it printed, with the page's addresses.
    async fn run(&mut self, command: &str) -> (String, String) {
        let here = self.replaced.iter().fold(command.to_owned(), |text, (page, here)| text.replace(page, here));
        let script = format!("{{\n{here}\n}} </dev/null 2>&1\nprintf '\\n{MARK} %s\\n' \"$?\"\n");
        self.input.write_all(script.as_bytes()).await.expect("a shell that reads");
        let mut printed = Vec::new();
        loop {
            let line =
                timeout(WAIT_TIMEOUT, self.output.next_line()).await.unwrap_or_else(|_| panic!("no end of {command}"));
            let line = line.expect("text").unwrap_or_else(|| panic!("the shell ended in {command}"));
            if let Some(code) = line.strip_prefix(MARK) {
                let text = printed.join("\n");
                let page = self.replaced.iter().fold(text, |text, (page, here)| text.replace(here, page));
                return (code.trim().to_owned(), page.trim_end().to_owned());
            }
            printed.push(line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(group) = self.child.id() {
            let _ = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn free_address() -> String {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    free.expect("a free port").to_string()
}

/// A virtual host of its own: the page uses the default names of queues.
struct Vhost {
    broker: Operated,
    name: String,
    url: String,
}

impl Vhost {
    async fn new() -> Self {
        let broker = Broker::operated().await.expect("a broker");
        let name = unique("docs");
        broker.ctl(&format!("add_vhost {name}")).await.expect("a virtual host");
        broker.ctl(&format!("set_permissions --vhost {name} guest '.*' '.*' '.*'")).await.expect("permissions");
        let (server, _) = broker.url.rsplit_once('/').expect("a virtual host");
        let url = format!("{server}/{name}");
        Self { broker, name, url }
    }

    async fn delete(self) {
        self.broker.ctl(&format!("delete_vhost {}", self.name)).await.expect("deleted");
    }
}

#[tokio::test]
async fn getting_started_page_works_as_written() {
    let steps = steps(&read("docs/getting-started.md"));
    assert!(steps.len() > 15, "{steps:#?}");
    let vhost = Vhost::new().await;
    let mut shell = Shell::start(&vhost);
    for step in &steps {
        let shown = step.shown.clone().unwrap_or_default();
        let is_look = LOOKS.iter().any(|look| step.command.starts_with(look)) && !step.command.contains("-X");
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let (code, printed) = shell.run(&step.command).await;
            let is_failure = code != "0" && !shown.lines().any(|line| line.starts_with("error: ")) && !is_look;
            let lines = |text| str::lines(text).collect::<Vec<_>>();
            if !is_failure && is_as_shown(&lines(&shown), &lines(&printed)) {
                break;
            }
            let can_wait = is_look && Instant::now() < deadline;
            assert!(can_wait, "{}\nexit code {code}, printed:\n{printed}\n\nthe page shows:\n{shown}", step.command);
            sleep(Duration::from_millis(200)).await;
        }
    }
    drop(shell);
    vhost.delete().await;
}

#[tokio::test]
async fn readme_publisher_creates_a_task() {
    let rig = Rig::new("readme.publisher").await;
    let _worker = rig.worker(&[]).await;
    let readme = read("README.md");
    let program = readme.split("```python\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a program");
    assert!(program.lines().count() <= 14, "short enough for the README");
    let program = program.replace("wolkvox.tasks", &rig.queue);
    for _ in 0..2 {
        let mut python = Command::new(python().await);
        succeeds(python.arg("-c").arg(&program).env("AMQP_URL", rig.amqp.url()), WAIT_TIMEOUT).await;
    }
    rig.crm.created(1).await;
    assert_eq!(rig.crm.stats().await["created"], 1, "the second one has the same id");
}

/// The words of a shell's command up to a pipe, a redirection or a comment.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in command.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | '<' | '&' | '#' | ';' | ')') => {
                // The number of a stream belongs to the redirection.
                word = word.filter(|word| letter != '>' || word.parse::<u8>().is_err());
                break;
            }
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// Every command of the program in a page, as the words behind its name.
fn commands_of(page: &str) -> Vec<Vec<String>> {
    let known: Vec<String> = Cli::command().get_subcommands().map(|one| one.get_name().to_owned()).collect();
    let is_known = |word: &String| known.contains(word) || word == "--config";
    let joined = page.replace("\\\n", " ");
    let (mut commands, mut is_block) = (Vec::new(), false);
    for line in joined.lines() {
        if line.starts_with("```") {
            is_block = !is_block;
            continue;
        }
        let codes: Vec<&str> = if is_block { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for code in codes {
            let named = code.match_indices(PROGRAM).filter(|(at, _)| *at == 0 || code[..*at].ends_with(' '));
            let texts = named.map(|(at, name)| words(code[at + name.len()..].trim_start()));
            commands.extend(texts.filter(|words| words.first().is_some_and(is_known)));
            if !is_block && code.starts_with("dead-letters ") {
                commands.push(words(code));
            }
        }
    }
    commands
}

#[test]
fn commands_on_the_pages_are_accepted() {
    let mut count = 0;
    for page in pages() {
        // A table of commands names several in one word.
        let text = read(&page).replace("list\\|show\\|replay\\|discard\\|restore\\|export", "list");
        for command in commands_of(&text) {
            count += 1;
            let is_a_group =
                command.len() == 1 || command[0] == "config" && command.last().is_some_and(|last| last.contains('|'));
            if let Err(error) = Cli::try_parse_from([PROGRAM.to_owned()].into_iter().chain(command.clone())) {
                assert!(is_a_group, "{page}: {command:?}: {error}");
            }
        }
    }
    assert!(count > 80, "{count}");
}

#[test]
fn make_targets_on_the_pages_exist() {
    let makefile = read("Makefile");
    let targets: Vec<&str> = makefile.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    for page in pages() {
        let text = read(&page);
        let lines = text.split('`').skip(1).step_by(2).flat_map(str::lines);
        for target in lines.filter_map(|line| line.strip_prefix("make ")?.split(' ').next()) {
            assert!(targets.contains(&target), "{page}: make {target}");
        }
    }
}

#[test]
fn commands_on_the_pages_have_no_prompt() {
    for page in pages() {
        let text = read(&page);
        let prompt = text.lines().find(|line| line.starts_with("$ "));
        assert!(prompt.is_none() && !text.contains("```console"), "{page}: {prompt:?}");
    }
}
