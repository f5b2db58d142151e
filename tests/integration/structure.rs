//! The layout keeps its rules: files are short, and no modules import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support::files_below;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The most lines of a file.
const LINES: usize = 400;

fn read(path: &Path) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).expect("text")
}

#[test]
fn no_source_file_is_longer_than_400_lines() {
    let files = ["src", "deploy", "tests"].into_iter().flat_map(|folder| files_below(folder, "rs"));
    let long: Vec<String> = files
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > LINES)
        .map(|(lines, path)| format!("{}: {lines}", path.display()))
        .collect();
    assert!(long.is_empty(), "split them:\n{}", long.join("\n"));
}

/// The module that a file holds, as a path from the crate's root.
fn module(path: &Path, root: &str) -> Vec<String> {
    let path = path.strip_prefix(root).expect("below the root").with_extension("");
    let names = path.iter().map(|name| name.to_str().expect("text").to_owned());
    names.filter(|name| !["lib", "main"].contains(&name.as_str())).collect()
}

/// The paths of a `use` tree, without its names' new names.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some(open) = tree.find('{') else {
        paths.push(format!("{prefix}{}", tree.split(" as ").next().unwrap_or_default().trim()));
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = tree[open + 1..].trim_end().strip_suffix('}').expect("a closing brace");
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in inner.char_indices().chain([(inner.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[start..at].trim().is_empty() {
                    expand(&prefix, inner[start..at].trim(), paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The modules that a file imports, its own submodules and tests left out.
fn imports(own: &[String], text: &str, modules: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut paths = Vec::new();
    let statements = text.split(';').filter_map(|part| {
        part.rsplit_once("use ").filter(|_| {
            part.contains("\nuse ")
                || part.contains("pub use ")
                || part.contains("pub(crate) use ")
                || part.starts_with("use ")
        })
    });
    for (_, tree) in statements {
        expand("", tree, &mut paths);
    }
    let resolved = paths.iter().filter_map(|path| {
        let mut parts: Vec<String> = match path.split("::").next()? {
            "crate" => Vec::new(),
            "self" => own.to_vec(),
            "super" => {
                let ups = path.split("::").take_while(|part| *part == "super").count();
                own[..own.len().checked_sub(ups)?].to_vec()
            }
            _ => return None,
        };
        parts.extend(path.split("::").skip_while(|part| ["crate", "self", "super"].contains(part)).map(str::to_owned));
        while !parts.is_empty() && !modules.contains(&parts) {
            parts.pop();
        }
        (!parts.is_empty() && !parts.starts_with(own)).then_some(parts)
    });
    resolved.collect()
}

fn circle(graph: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Option<Vec<String>> {
    fn visit<'a>(
        at: &'a Vec<String>,
        graph: &'a BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
        way: &mut Vec<&'a Vec<String>>,
        done: &mut BTreeSet<&'a Vec<String>>,
    ) -> bool {
        if way.contains(&at) {
            way.push(at);
            return true;
        }
        if done.contains(at) {
            return false;
        }
        way.push(at);
        if graph.get(at).into_iter().flatten().any(|next| visit(next, graph, way, done)) {
            return true;
        }
        way.pop();
        done.insert(at);
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|start| {
        let mut way = Vec::new();
        visit(start, graph, &mut way, &mut done).then(|| way.iter().map(|module| module.join("::")).collect())
    })
}

#[test]
fn modules_have_no_import_cycle() {
    for root in ["src", "deploy/demo"] {
        let files: Vec<(Vec<String>, String)> = files_below(root, "rs")
            .into_iter()
            .filter(|path| !path.components().any(|part| part.as_os_str() == "tests") && !path.ends_with("tests.rs"))
            .map(|path| (module(&path, root), read(&path)))
            .filter(|(module, _)| !module.is_empty())
            .collect();
        assert!(files.len() > 5, "{root} has moved");
        let modules: BTreeSet<Vec<String>> = files.iter().map(|(module, _)| module.clone()).collect();
        let graph: BTreeMap<_, _> =
            files.iter().map(|(own, text)| (own.clone(), imports(own, text, &modules))).collect();
        assert!(graph.values().map(BTreeSet::len).sum::<usize>() > files.len(), "no imports found in {root}");
        assert_eq!(circle(&graph), None, "{root}");
    }
}

#[test]
fn cycle_of_three_modules_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let edges = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")];
    let graph = edges.iter().map(|(from, to)| (module(from), BTreeSet::from([module(to)]))).collect();
    assert_eq!(circle(&graph), Some(["a", "b", "c", "a"].map(str::to_owned).to_vec()));
}
