//! What the help of both forwarders has in common.

use crate::report::Code;

/// The exit codes, with what each means.
pub const EXIT_CODES: [(u8, &str); 5] = [
    (0, "success"),
    (Code::Failure as u8, "runtime failure; status, try: something is not served or does not work"),
    (Code::Usage as u8, "usage error"),
    (Code::Permission as u8, "a permission is missing; the message says which"),
    (Code::Config as u8, "error in the configuration, a name or a unit"),
];

/// The exit codes for `--help`.
pub(super) fn exit_help() -> String {
    let lines = EXIT_CODES.map(|(code, meaning)| format!("\n  {code:>2}  {meaning}"));
    format!("Exit status:{}", lines.concat())
}

/// Words in lines of at most 78 columns.
pub(super) fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut lines = vec![String::from(" ")];
    for word in words {
        if lines.last().is_some_and(|line| line.len() + 1 + word.len() > 78) {
            lines.push(String::from(" "));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n")
}
