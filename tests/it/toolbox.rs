//! `tests/support` holds what the suites use, and nothing else. The compiler finds no dead code there, for to it every
//! public function of a crate is used.

use std::{collections::BTreeSet, fs, path::Path};

/// The sources of a folder below tests, one level deep.
fn sources(folder: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten();
    let rust = files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "rs"));
    rust.map(|path| fs::read_to_string(path).expect("text")).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[test]
fn every_tool_of_the_tests_is_used_by_a_suite_or_a_fake() {
    let users: String = ["it", "netns", "systemd", "world", "fakes"].map(sources).concat();
    let used: BTreeSet<&str> = words(&users).collect();
    let tools = sources("support/src");
    let tools = tools.split("pub fn ").skip(1).filter_map(|rest| words(rest).next());
    let tools: Vec<&str> = tools.collect();
    assert!(tools.len() > 80, "only {} tools seen", tools.len());
    let unused: Vec<_> = tools.iter().filter(|tool| !used.contains(*tool)).collect();
    assert!(unused.is_empty(), "nobody uses {unused:?}");
}
