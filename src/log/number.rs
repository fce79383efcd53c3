//! Numbers in sentences: `1 session`, `2 sessions`, `1 connection waits`.

use std::fmt::Display;

/// A number of things, each called `one`: `0 entries`, `1 entry`, `2 entries`.
pub fn counted<N: Display + PartialEq + From<u8>>(n: N, one: &str) -> String {
    if n == N::from(1) {
        return format!("{n} {one}");
    }
    match (one.strip_suffix("try"), one.ends_with("sh")) {
        (Some(stem), _) => format!("{n} {stem}tries"),
        (None, true) => format!("{n} {one}es"),
        (None, false) => format!("{n} {one}s"),
    }
}

/// The same with the verb `was` or `were` behind it.
pub fn counted_were<N: Display + PartialEq + From<u8>>(n: N, one: &str) -> String {
    let were = if n == N::from(1) { "was" } else { "were" };
    format!("{} {were}", counted(n, one))
}

/// The same with the verb `waits` or `wait` behind it.
pub fn counted_waiting<N: Display + PartialEq + From<u8>>(n: N, one: &str) -> String {
    let wait = if n == N::from(1) { "waits" } else { "wait" };
    format!("{} {wait}", counted(n, one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_all_others_are_plural() {
        assert_eq!([0, 1, 2].map(|n: usize| counted(n, "session")), ["0 sessions", "1 session", "2 sessions"]);
        assert_eq!([1, 5].map(|n: u64| counted(n, "entry")), ["1 entry", "5 entries"]);
        assert_eq!([1, 2].map(|n: u64| counted(n, "crash")), ["1 crash", "2 crashes"]);
        assert_eq!([1, 2].map(|n: u64| counted_were(n, "event")), ["1 event was", "2 events were"]);
        assert_eq!([1, 2].map(|n: usize| counted_waiting(n, "request")), ["1 request waits", "2 requests wait"]);
    }
}
