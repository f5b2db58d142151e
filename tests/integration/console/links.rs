//! Tests that the filter of *Failed* survives its links and forms.

use super::Console;
use crate::dead_letters::dead_properties;
use crate::support::rig::{Rig, task};

/// The address of a link, as a browser follows it.
fn link(page: &str, text: &str) -> String {
    let (before, _) = page.split_once(&format!(">{text}</a>")).unwrap_or_else(|| panic!("no link {text}: {page}"));
    let (_, rest) = before.rsplit_once("href=\"").expect("a link");
    rest.split('"').next().expect("an end").replace("&amp;", "&")
}

/// The fields that a form sends, apart from the visible ones that are empty.
fn fields(form: &str) -> Vec<(String, String)> {
    let attribute = |tag: &str, name: &str| {
        let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
        Some(rest.split('"').next()?.replace("&amp;", "&").replace("&#38;", "&"))
    };
    let inputs = form.split("<input").skip(1).filter_map(|rest| rest.split('>').next());
    let inputs = inputs.filter_map(|tag| Some((attribute(tag, "name")?, attribute(tag, "value").unwrap_or_default())));
    let kinds = form.split("<option selected>").skip(1).filter_map(|rest| rest.split('<').next());
    let kinds = kinds.map(|kind| ("kind".to_owned(), kind.to_owned()));
    inputs.chain(kinds).filter(|(name, value)| !value.is_empty() && name != "again").collect()
}

#[tokio::test]
async fn filter_survives_the_links_of_an_action_and_the_form() {
    let rig = Rig::new("console.links").await;
    rig.declare_topology().await;
    for n in 0..60 {
        let kind = ["rejected", "invalid_task"][n % 2];
        rig.put_dead_letter(&task("x"), dead_properties(Some(&format!("m-{n}")), kind, "no", &[])).await;
    }
    rig.put_dead_letter(&task("x"), dead_properties(Some("other"), "expired", "no", &[])).await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "61 messages").await;
    let query = "kind=rejected&kind=invalid_task&id=m-1&id=m-2";
    let action = console.count(&[("what", "discard"), ("query", query)]).await;
    let back = link(&console.get(&action).await.text, "Back, do nothing");
    let list = console.get(&back).await.text;
    assert!(list.contains("Failed: 2 of 61 messages"), "{back}: {list}");
    // The form keeps what it has no field for.
    let page = console.get(&format!("/failed?{query}&view=list")).await.text;
    let (_, form) = page.split_once("<form method=\"get\"").expect("a form");
    let (form, _) = form.split_once("</form>").expect("an end");
    let sent = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields(form)).finish();
    let again = console.get(&format!("/failed?{sent}")).await.text;
    assert!(again.contains("Failed: 2 of 61 messages") && again.contains("Show by cause"), "{sent}: {again}");
    // So does the form that reads the queue again.
    let page = console.get("/failed?kind=rejected&kind=invalid_task&view=list&page=1").await.text;
    let (_, form) = page.split_once("failed/read\"").expect("a form");
    let (form, _) = form.split_once("</form>").expect("an end");
    let fields = fields(form);
    let (_, query) = fields.iter().find(|(name, _)| name == "query").expect("a query");
    let read = console.post("/failed/read", &[("query", query.as_str())]).await;
    let page = console.get(&read.location).await.text;
    assert!(page.contains("Failed: 60 of 61 messages") && page.contains(">Newer<"), "{}: {page}", read.location);
    assert!(!page.contains(">Older<"), "{page}");
    console.post(&action, &[("do", "confirm"), ("reason", "a test")]).await;
    let done = console.shows(&action, "Discard: done").await;
    assert_eq!(link(&done, "To the failed messages"), back);
    // The action about one message leads back to it.
    let message = console.message("other").await;
    let action = console.count(&[("what", "discard"), ("print", message.trim_start_matches("/message/"))]).await;
    assert_eq!(link(&console.get(&action).await.text, "Back, do nothing"), message);
}
