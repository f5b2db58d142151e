//! Replacing rules while messages are mapped.

use super::*;
use crate::config::read_rules;

fn events(text: &str) -> Events {
    config(text).unwrap().events
}

#[test]
fn new_rules_replace_the_old_ones_when_their_examples_pass() {
    let old = rule("", "description = \"old\"");
    let mapper = mapper(&old);
    let described = || match map(&mapper, event("{}")) {
        Ok(Mapped::Send { body, .. }) => fields_of(&body)["description"].as_str().unwrap().to_owned(),
        other => panic!("{other:?}"),
    };
    let (digest, identity) = (mapper.digest(), mapper.identity());
    let new = rule("", "description = \"new\"");
    let wrong = format!("{new}\n[[rules.examples]]\nevent = '{{}}'\ntask = {{ description = \"other\" }}");
    let failed = mapper.compile(&events(&wrong)).map(|_| ()).unwrap_err();
    assert!(failed.to_string().contains("expected \"other\""));
    assert_eq!((described().as_str(), mapper.digest()), ("old", digest.clone()));
    let right = wrong.replace("other", "new");
    let compiled = mapper.compile(&events(&right)).unwrap();
    assert_eq!(described(), "old", "until they are replaced");
    mapper.replace(compiled);
    assert_eq!(described(), "new");
    assert_eq!(mapper.identity(), identity, "the same ids as before");
    assert_ne!(mapper.digest(), digest);
    mapper.replace(mapper.compile(&events(&rule("message_id = \"x-{{ body.n }}\"", ""))).unwrap());
    assert_ne!(mapper.identity(), identity, "other ids");
    assert_eq!(mapper.counts()[0].matched, 3, "counted on");
}

#[test]
fn rules_file_is_read_like_the_main_file() {
    let path = std::env::temp_dir().join(format!("wtw-rules-file-{}.toml", std::process::id()));
    let file = Temporary(path.clone());
    std::fs::write(&file.0, format!("[events]\nunmatched = \"skip\"\n{}", rule("", ""))).unwrap();
    let main = format!("[events]\nrules_file = {:?}\nholidays = [\"2027-01-01\"]", path.display().to_string());
    let loaded = config(&main).unwrap().events;
    assert_eq!((loaded.rules.len(), loaded.holidays.len()), (1, 1));
    assert_eq!(loaded.unmatched, crate::config::Unmatched::Skip);
    for (text, said) in [
        ("", "a rules file has at least one of [[rules]]"),
        ("[[rules]", "is not TOML: line 1"),
        ("[events]\nholidays = []\n[[rules]]\nname = \"r\"\naction = \"skip\"", "is given here and by"),
        ("[event]\n[[rules]]\nname = \"r\"\naction = \"skip\"", "did you mean events?"),
        ("[[rules]]\nname = \"r\"\naction = \"skip\"\n[[examples]]", "did you mean [[rules.examples]]?"),
        ("[[rules]]\nname = \"r\"\nacton = \"skip\"", "did you mean action?"),
    ] {
        let problems = read_rules(&loaded, text).unwrap_err().to_string();
        assert!(problems.contains(said), "{text}: {problems}");
    }
    let both = format!("{main}\n{}", rule("", ""));
    assert!(config(&both).unwrap_err().to_string().contains("one of the two is allowed"));
    std::fs::remove_file(&file.0).unwrap();
    assert!(config(&main).unwrap_err().to_string().contains("there is no such file"));
}
