//! Reduces the bill of materials to the packages that the program is built from.

use std::collections::BTreeSet;

use serde_json::Value;

/// Removes from a CycloneDX document the packages that the program's build does not use. `tree` has one `name@version` a line.
/// cargo-cyclonedx reads `cargo metadata`, which also resolves the features of tests and of other platforms. It lists packages
/// that are not in the program, and a scanner for vulnerabilities reports those in vain.
///
/// # Errors
/// When the document lacks a package of the tree.
pub(crate) fn exact(mut document: Value, tree: &str) -> Result<Value, String> {
    let mut missing: BTreeSet<&str> = tree.lines().collect();
    let own = document.pointer("/metadata/component").cloned().unwrap_or_default();
    let mut kept = BTreeSet::from([text(&own, "bom-ref")]);
    missing.remove(id(&own).as_str());
    let components = list(&mut document, "components")?;
    components.retain(|component| {
        let used = missing.remove(id(component).as_str());
        if used {
            kept.insert(text(component, "bom-ref"));
        }
        used
    });
    let dependencies = list(&mut document, "dependencies")?;
    dependencies.retain(|dependency| kept.contains(&text(dependency, "ref")));
    for on in dependencies.iter_mut().filter_map(|dependency| dependency.get_mut("dependsOn")?.as_array_mut()) {
        on.retain(|reference| reference.as_str().is_some_and(|reference| kept.contains(reference)));
    }
    match missing.into_iter().next() {
        None => Ok(document),
        Some(package) => Err(format!("{package} is built into the program and not in the bill of materials")),
    }
}

fn list<'a>(document: &'a mut Value, key: &str) -> Result<&'a mut Vec<Value>, String> {
    let list = document.get_mut(key).and_then(Value::as_array_mut);
    list.ok_or_else(|| format!("not a CycloneDX document: it has no {key}; give the output of cargo-cyclonedx"))
}

fn id(component: &Value) -> String {
    format!("{}@{}", text(component, "name"), text(component, "version"))
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}
