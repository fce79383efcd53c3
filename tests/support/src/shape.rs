//! What a JSON value consists of, as lines that two versions of a program can be compared by.

use std::collections::BTreeSet;

use serde_json::Value;

/// Puts `PATH: KIND` of everything in `value` into `found`; the members of an object whose keys are names of somebody
/// (`names`) have the path `.*`.
pub fn shape(value: &Value, at: &str, names: &[&str], found: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(all) => {
            all.iter().for_each(|one| shape(one, &format!("{at}[]"), names, found));
            "list"
        }
        Value::Object(fields) => {
            for (key, one) in fields {
                let key = if names.contains(&at) { "*" } else { key };
                shape(one, &format!("{at}.{key}"), names, found);
            }
            "object"
        }
    };
    found.insert(format!("{at}: {kind}"));
}

/// The lines of `promised` that `found` lacks.
pub fn gone<'a>(promised: &'a str, found: &BTreeSet<String>) -> Vec<&'a str> {
    promised.lines().filter(|line| !found.contains(*line)).collect()
}
