//! Every crate that is compiled is one that `packaging/deny.toml` lets in: its licence, its source, its versions. That
//! file is cargo-deny's; this test reads the same lists where cargo-deny is not at hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

use crate::support::run;

/// Whether an SPDX expression of AND over OR (and the old `/`) can be met by these licences.
fn met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    expression.split(" AND ").all(|part| {
        let part = part.trim().trim_start_matches('(').trim_end_matches(')');
        part.split(" OR ").flat_map(|one| one.split('/')).any(|one| allowed.contains(one.trim()))
    })
}

fn strings(list: &toml::Value, key: Option<&str>) -> BTreeSet<String> {
    let items = list.as_array().expect("a list").iter();
    let text = |item: &toml::Value| key.map_or(Some(item.clone()), |key| item.get(key).cloned());
    items.map(|item| text(item).and_then(|t| t.as_str().map(str::to_owned)).expect("text")).collect()
}

#[test]
fn every_crate_has_a_licence_a_source_and_a_version_that_are_let_in() {
    let rules: toml::Value = toml::from_str(include_str!("../../packaging/deny.toml")).expect("TOML");
    let allowed = strings(&rules["licenses"]["allow"], None);
    let exceptions = rules["licenses"]["exceptions"].as_array().expect("a list");
    let twice = strings(&rules["bans"]["skip"], Some("crate"));
    let banned = strings(&rules["bans"]["deny"], Some("crate"));
    assert!(met("(MIT OR Apache-2.0) AND Unicode-3.0", &allowed) && met("Unlicense/MIT", &allowed));
    assert!(!met("GPL-3.0-only", &allowed) && !met("MIT AND GPL-2.0", &allowed) && !met("", &allowed));

    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--offline", "--locked", "--format-version=1", "--filter-platform"]);
    cargo.arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = run(cargo);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let compiled: BTreeSet<String> =
        all["resolve"]["nodes"].as_array().expect("nodes").iter().map(|node| text(node, "id")).collect();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut faults = Vec::new();
    for package in all["packages"].as_array().expect("packages") {
        let (name, version) = (text(package, "name"), text(package, "version"));
        if !compiled.contains(&text(package, "id")) || package["source"].is_null() {
            continue;
        }
        let licence = text(package, "license");
        let exception = exceptions.iter().find(|e| e["crate"].as_str() == Some(&name));
        if !exception.map_or(met(&licence, &allowed), |e| met(&licence, &strings(&e["allow"], None))) {
            faults.push(format!("{name}: its licence is {licence:?}"));
        }
        if !text(package, "source").starts_with("registry+") {
            faults.push(format!("{name}: it comes from {}", package["source"]));
        }
        if banned.contains(&name) && name != "rand" {
            faults.push(format!("{name}: banned"));
        }
        versions.entry(name).or_default().push(version);
    }
    assert!(versions.len() > 90, "only {} crates seen", versions.len());
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let known = |version: &String| twice.iter().any(|t| format!("{name}@{version}").starts_with(t.as_str()));
        if versions.iter().filter(|version| !known(version)).count() > 1 {
            faults.push(format!("{name}: {versions:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
