//! Tests with a real browser: headless Chromium, driven through WebDriver. They take the pictures of `docs/console.md`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fantoccini::{Client, ClientBuilder, Locator};
use lapin::types::AMQPValue;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::Console;
use crate::dead_letters::dead_properties;
use crate::support::eventually;
use crate::support::rig::{Rig, Worker, settled, task, task_with};

/// The most memory of the console, in KiB.
const MAX_MEMORY_KIB: u64 = 128 << 10;
/// The longest time for a page about 100,000 messages, while other tests run and the program is not optimized.
const SLOWEST: Duration = Duration::from_secs(20);

/// A browser; it is closed when it is dropped.
struct Browser {
    client: Client,
    _driver: Child,
}

impl Browser {
    async fn start(dark: bool, width: u32) -> Self {
        let mut driver = Command::new("chromedriver");
        driver.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut driver = driver.spawn().expect("chromedriver: `deploy/setup.sh test` installs it");
        let mut lines = BufReader::new(driver.stdout.take().expect("stdout")).lines();
        let mut port = None;
        while let Some(line) = lines.next_line().await.expect("a line") {
            port = line.split_once("successfully on port ").map(|(_, port)| port.trim_end_matches('.').to_owned());
            if port.is_some() {
                break;
            }
        }
        let size = format!("--window-size={width},1000");
        let mut args = vec!["--headless", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", &size];
        if dark {
            args.push("--force-dark-mode");
        }
        let options = json!({ "args": args, "binary": "/usr/bin/chromium" });
        let mut capabilities = serde_json::Map::new();
        capabilities.insert("goog:chromeOptions".to_owned(), options);
        let builder = hyper_util::client::legacy::connect::HttpConnector::new();
        let client = ClientBuilder::new(builder)
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", port.expect("a port")))
            .await
            .expect("a session");
        Self { client, _driver: driver }
    }

    async fn goes(&self, url: &str) {
        self.client.goto(url).await.expect("a page");
    }

    /// Waits until the page contains a text, and reloads it meanwhile.
    async fn sees(&self, part: &str) -> String {
        eventually(&format!("the browser sees {part}"), || async {
            if let Some(text) = self.text().await.filter(|text| text.contains(part)) {
                return Some(text);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            self.client.refresh().await.ok()?;
            None
        })
        .await
    }

    /// The text of the page; `None` while a page that a click asked for is not there yet.
    async fn text(&self) -> Option<String> {
        self.client.find(Locator::Css("body")).await.ok()?.text().await.ok()
    }

    async fn finds(&self, locator: Locator<'_>) -> fantoccini::elements::Element {
        let wait = self.client.wait().at_most(Duration::from_secs(10));
        wait.for_element(locator).await.unwrap_or_else(|error| panic!("{locator:?}: {error}"))
    }

    async fn clicks(&self, xpath: &str) {
        let element = self.finds(Locator::XPath(xpath)).await;
        element.click().await.unwrap_or_else(|error| panic!("{xpath}: {error}"));
    }

    /// Takes a picture of the whole page for the documentation, if `UPDATE_DOCS` is set.
    async fn pictures(&self, name: &str) {
        let width = self.client.execute("return window.outerWidth", Vec::new()).await.expect("a width");
        let size = |number: u64| u32::try_from(number).expect("a size");
        let width = size(width.as_u64().expect("a number"));
        // A page is at least as high as its window.
        self.client.set_window_size(width, 400).await.expect("a size");
        let height = "return document.documentElement.scrollHeight + window.outerHeight - window.innerHeight";
        let height = self.client.execute(height, Vec::new()).await.expect("a height").as_u64().expect("a number");
        self.client.set_window_size(width, size(height.clamp(400, 1_700))).await.expect("a size");
        let picture = self.client.screenshot().await.expect("a picture");
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{name}");
        if crate::support::broker::variable("UPDATE_DOCS").is_some() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures");
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join(format!("{name}.png")), picture).expect("written");
        }
    }

    /// Checks what every page must have: no script, nothing from other servers, a heading, labels, and nothing wider than
    /// the window. On a phone no table is wider, either.
    async fn is_well_made(&self) {
        let script = "
            const bare = [...document.querySelectorAll('input:not([type=hidden]), select, textarea')].filter(e => !e.labels.length);
            const foreign = performance.getEntriesByType('resource').filter(e => !e.name.startsWith(location.origin));
            return [document.scripts.length, bare.length, foreign.length, document.querySelectorAll('h1').length,
                    [document.documentElement, ...(innerWidth <= 640 ? document.querySelectorAll('.wide') : [])]
                        .some(e => e.scrollWidth > e.clientWidth)];";
        let found = self.client.execute(script, Vec::new()).await.expect("an answer");
        let url = self.client.current_url().await.expect("an address");
        assert_eq!(found, json!([0, 0, 0, 1, false]), "scripts, bare fields, foreign parts, headings, too wide: {url}");
    }

    async fn ends(self) {
        self.client.close().await.expect("closed");
    }
}

fn rejected(id: &str, said: &str, at: &str, more: &[(&str, AMQPValue)]) -> lapin::BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let reason = format!("the CRM answered code 417: {said}");
    let history = json!([{ "at": at, "outcome": "rejected", "http_status": 200, "code": 417, "message": said, "duration_ms": 212 }]);
    let all = [
        ("x-wtw-crm-code", AMQPValue::LongLongInt(417)),
        ("x-wtw-crm-message", text(said)),
        ("x-wtw-failed-at", text(at)),
        ("x-wtw-attempts", AMQPValue::LongLongInt(1)),
        ("x-wtw-history", text(&history.to_string())),
    ];
    dead_properties(Some(id), "rejected", &reason, &[&all[..], more].concat())
}

/// An outage, a group of failed messages, one field edited, replayed, created.
#[tokio::test(flavor = "multi_thread")]
async fn operator_finds_a_failure_corrects_and_replays_it_in_a_browser() {
    let _turn = crate::support::heavy().await;
    let rig = Rig::new("console.browser").await;
    let worker = rig.worker(&[("WTW_GATE_PROBE_MAX", "1s"), ("WTW_GATE_PROBE_INITIAL", "1s")]).await;
    rig.declare_tool_queues().await;
    let console = Console::start(&rig, Some(&worker), &[]).await;
    let browser = Browser::start(false, 1280).await;

    browser.goes(&console.url).await;
    browser.sees("Working.").await;
    browser.sees("No dead letters.").await;
    browser.is_well_made().await;
    shows_an_outage(&rig, &worker, &browser).await;
    put_letters(&rig).await;
    mends_one(&rig, &console, &browser).await;
    replays_the_rest(&console, &browser).await;
    browser.ends().await;

    let message = console.message("visit-90").await;
    let action = console.count(&[("what", "discard"), ("print", message.trim_start_matches("/message/"))]).await;
    let edit = format!("{message}/edit");
    for (name, dark, width, path) in [("now-dark", true, 1280, "/"), ("failed-phone", false, 500, "/failed")] {
        let browser = Browser::start(dark, width).await;
        browser.goes(&format!("{}{path}", console.url)).await;
        browser.is_well_made().await;
        browser.pictures(name).await;
        let lists = ["/", "/failed?view=list", "/doubt", "/activity", "/configuration", "/find?id=visit-90"];
        for path in lists.into_iter().chain([message.as_str(), &edit, &action]) {
            browser.goes(&format!("{}{path}", console.url)).await;
            browser.is_well_made().await;
        }
        browser.ends().await;
    }
}

async fn shows_an_outage(rig: &Rig, worker: &Worker, browser: &Browser) {
    rig.publish_many("order", 30).await;
    worker.reaches(&settled("created"), 30.0).await;
    browser.sees("Created in the last hour: 30").await;
    rig.crm.faults(json!([{ "action": "status:503" }])).await;
    rig.publish_many("late", 12).await;
    let page = browser.sees("Not sending").await;
    assert!(page.contains("closed: outage") && page.contains("order-"), "{page}");
    browser.is_well_made().await;
    browser.pictures("now-outage").await;
    rig.crm.faults(json!([])).await;
    browser.sees("Working.").await;
    worker.reaches(&settled("created"), 42.0).await;
    // The worker asks for the counter when a token is in use.
    browser.sees("of 1,000,000 calls").await;
}

async fn put_letters(rig: &Rig) {
    let now = wolkvox_task_worker::clock::Clock::system().now();
    let at = |minutes: i64| format!("{:.3}", now - jiff::SignedDuration::from_mins(minutes));
    let owner = |id: &str| {
        task_with(id, json!({ "wolkvox_owner": "agent_7@demo", "description": "Call back about the invoice" }))
    };
    for (n, id) in ["invoice-1007", "invoice-1008", "invoice-1012"].iter().enumerate() {
        let minutes = i64::try_from(n).expect("small") * 7 + 3;
        rig.put_dead_letter(&owner(id), rejected(id, "THE OWNER agent_7@demo IS INACTIVE", &at(minutes), &[])).await;
    }
    let text = |text: &str| AMQPValue::LongString(text.into());
    let bad = task_with("visit-88", json!({ "completion_date": "2026-13-01 10:00:00" }));
    let reason = "completion_date: is \"2026-13-01 10:00:00\", not a date that exists";
    let more = [("x-wtw-failed-at", text(&at(25))), ("x-wtw-error-stage", text("map"))];
    rig.put_dead_letter(&bad, dead_properties(Some("visit-88"), "invalid_task", reason, &more)).await;
    let maybe = [("x-wtw-possibly-created", AMQPValue::Boolean(true)), ("x-wtw-failed-at", text(&at(61)))];
    rig.put_dead_letter(
        &task("visit-90"),
        dead_properties(Some("visit-90"), "unknown", "no answer within 20s", &maybe),
    )
    .await;
}

async fn mends_one(rig: &Rig, console: &Console, browser: &Browser) {
    browser.clicks("//nav/a[text()='Failed']").await;
    let page = browser.sees("code 417: THE OWNER N IS INACTIVE").await;
    assert!(page.contains("5 messages") && page.contains("1 in doubt"), "{page}");
    browser.is_well_made().await;
    browser.pictures("failed").await;
    browser.clicks("//li[.//h2[contains(., 'completion_date')]]//a[contains(., 'Show')]").await;
    browser.clicks("//a[text()='visit-88']").await;
    browser.sees("A replay fails again").await;
    let marked = browser.finds(Locator::Css("mark")).await.text().await.expect("text");
    assert!(marked.contains("2026-13-01"), "{marked}");
    browser.is_well_made().await;
    browser.pictures("message").await;
    browser.clicks("//a[contains(., 'Edit and replay')]").await;
    let field = browser.finds(Locator::Css("input[name='field.completion_date']")).await;
    field.clear().await.expect("cleared");
    field.send_keys("2026-12-01 10:00:00").await.expect("typed");
    browser.is_well_made().await;
    browser.pictures("edit").await;
    browser.clicks("//form[.//legend[text()='By field']]//button[@value='replay']").await;
    browser.sees("Replay 1 message?").await;
    browser.clicks("//button[@value='confirm']").await;
    rig.crm.created(43).await;
    browser.goes(&format!("{}/find?id=visit-88", console.url)).await;
    browser.sees("Its task was created").await;
    browser.is_well_made().await;
}

async fn replays_the_rest(console: &Console, browser: &Browser) {
    browser.goes(&format!("{}/failed?kind=rejected", console.url)).await;
    browser.sees("THE OWNER N IS INACTIVE").await;
    browser.clicks("//button[@value='replay']").await;
    browser.sees("Replay 3 messages?").await;
    browser.is_well_made().await;
    browser.pictures("replay").await;
    browser.clicks("//button[@value='confirm']").await;
    browser.sees("3 created").await;
    browser.goes(&format!("{}/activity", console.url)).await;
    browser.sees("3 replayed: 3 created").await;
    browser.sees("1 replayed: 1 created").await;
    browser.is_well_made().await;
    browser.pictures("activity").await;
    browser.goes(&format!("{}/doubt", console.url)).await;
    browser.sees("visit-90").await;
    browser.is_well_made().await;
    browser.goes(&format!("{}/configuration", console.url)).await;
    browser.clicks("//button[contains(., 'Check broker')]").await;
    browser.sees("broker.login").await;
    browser.is_well_made().await;
}

/// No message, one message, and very many.
#[tokio::test(flavor = "multi_thread")]
async fn zero_one_and_100_000_dead_letters_are_shown_in_bounded_memory() {
    let _turn = crate::support::heavy().await;
    let rig = Rig::new("console.many").await;
    rig.declare_topology().await;
    let console = Console::start(&rig, None, &[]).await;
    let browser = Browser::start(false, 1280).await;
    browser.goes(&format!("{}/failed", console.url)).await;
    browser.sees("No message has failed.").await;
    rig.put_dead_letter(&task("one"), dead_properties(Some("one"), "rejected", "no such record", &[])).await;
    browser.clicks("//button[contains(., 'Read the queue again')]").await;
    browser.sees("1 message").await;
    let dead_letters = (1..100_000).map(|n: u32| {
        let reason = format!("name: is \"customer {n}\", not allowed ({})", ["x", "y", "z"][n as usize % 3]);
        (task(&format!("task-{n}")), dead_properties(Some(&format!("m-{n}")), "invalid_task", &reason, &[]))
    });
    rig.amqp.flood(&rig.dead_letter_queue(), dead_letters).await;
    console.reads("/failed", "100,000 messages").await;
    browser.goes(&format!("{}/failed", console.url)).await;
    browser.sees("33,333").await;
    browser.is_well_made().await;
    for path in ["/failed?view=list", "/failed?view=list&page=1999", "/failed?text=body.name:task-77777", "/doubt", "/"]
    {
        let began = tokio::time::Instant::now();
        let page = console.get(path).await;
        assert!(page.status.is_success() && began.elapsed() < SLOWEST, "{path}: {:?}", began.elapsed());
    }
    let found = console.get("/failed?view=list&text=body.name:task-77777").await.text;
    assert!(found.contains("m-77777") && found.contains("1 of 100,000"), "{found}");
    console.reads("/failed", "100,000 messages").await;
    let peak = console.peak();
    assert!(peak > 1_000 && peak < MAX_MEMORY_KIB, "{peak} KiB");
    println!("the console took {peak} KiB at most");
    browser.ends().await;
    console.process.stop().await;
    // RabbitMQ needs time to return so many messages.
    let (dead, deadline) = (rig.dead_letter_queue(), tokio::time::Instant::now() + Duration::from_secs(300));
    while rig.amqp.count(&dead).await != Some(100_000) {
        assert!(tokio::time::Instant::now() < deadline, "not all of them are back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
