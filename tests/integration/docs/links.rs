//! Every link and anchor leads somewhere, also in texts that are not pages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{ROOT, pages, read};

/// The page's lines outside of code blocks.
fn prose(page: &str) -> String {
    let mut is_code = false;
    let mut kept = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    assert!(!is_code, "a code block without an end");
    kept
}

/// The anchors of a page's headings, as GitHub and GitLab make them.
fn anchors(page: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let text = prose(page);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchors = headings.filter_map(|line| line.trim_start_matches('#').strip_prefix(' ')).map(|heading| {
        let kept = heading.trim().to_lowercase();
        let slug: String = kept
            .chars()
            .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
            .map(|letter| if letter == ' ' { '-' } else { letter })
            .collect();
        let count = seen.entry(slug.clone()).or_default();
        *count += 1;
        if *count == 1 { slug } else { format!("{slug}-{}", *count - 1) }
    });
    anchors.collect()
}

/// The targets of the page's links and pictures.
fn targets(page: &str) -> Vec<String> {
    let text = prose(page);
    // A bracket in quoted code is not a link.
    let outside = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let links = outside.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    links.map(|(target, _)| target.trim().to_owned()).collect()
}

/// `target` as seen from `page`, from the top of the repository.
fn resolved(page: &str, target: &str) -> PathBuf {
    let joined = Path::new(page).parent().expect("a folder").join(target);
    joined.components().fold(PathBuf::new(), |mut path, part| {
        if part == Component::ParentDir {
            assert!(path.pop(), "{page}: {target} leaves the repository");
        } else {
            path.push(part);
        }
        path
    })
}

/// What is wrong with a link of a page, if anything is.
fn problem(page: &str, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let file = if path.is_empty() { PathBuf::from(page) } else { resolved(page, path) };
    if !Path::new(ROOT).join(&file).exists() {
        return Some(format!("{page}: {target} leads to no file"));
    }
    let anchor = anchor?;
    let known = anchors(&read(file.to_str().expect("text")));
    (!known.iter().any(|one| one == anchor)).then(|| format!("{page}: {target} leads to no heading of {known:?}"))
}

#[test]
fn links_and_anchors_of_the_pages_exist() {
    let mut count = 0;
    let mut problems = Vec::new();
    for page in pages() {
        for target in targets(&read(&page)) {
            if ["https://", "http://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
                continue;
            }
            count += 1;
            problems.extend(problem(&page, &target));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(count > 100, "{count}");
}

/// Files of a folder with one of these extensions.
fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, extensions, found);
        } else if path.extension().and_then(|one| one.to_str()).is_some_and(|one| extensions.contains(&one)) {
            found.push(path);
        }
    }
}

/// Code, manifests, alerts and help texts name pages by their path from the top.
#[test]
fn pages_named_by_other_texts_exist() {
    let mut found = vec![Path::new(ROOT).join("Makefile")];
    let extensions = ["rs", "yaml", "json", "toml", "tpl", "txt", "sh", "service"];
    for folder in ["src", "deploy", "tests/integration"] {
        files(&Path::new(ROOT).join(folder), &extensions, &mut found);
    }
    let mut count = 0;
    for file in found {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let word = |letter: char| letter.is_ascii_alphanumeric() || "/-_.#".contains(letter);
        let words = text.split(|letter| !word(letter)).map(|word| word.trim_end_matches(['.', '#']));
        for named in words.filter(|word| word.starts_with("docs/") && word.contains(".md")) {
            count += 1;
            let problem = problem("README.md", named);
            assert!(problem.is_none(), "{}: {problem:?}", file.display());
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn readme_is_short_and_links_every_page() {
    let readme = read("README.md");
    let lines = readme.lines().count();
    assert!(lines <= 200, "{lines} lines; at most 200 are allowed: move details to docs");
    let linked: Vec<PathBuf> = targets(&readme)
        .iter()
        .filter_map(|target| target.split('#').next())
        .filter(|path| !path.contains("://"))
        .map(PathBuf::from)
        .collect();
    let missing: Vec<String> = pages().into_iter().filter(|page| page.starts_with("docs/")).collect();
    let missing: Vec<&String> = missing.iter().filter(|page| !linked.contains(&PathBuf::from(page))).collect();
    assert!(missing.is_empty(), "the README has no link to {missing:?}");
}
