//! "Did you mean": the word of a list that somebody may have meant by another.

use strsim::osa_distance;

/// The candidate nearest to `word`, when it is near enough to be meant: at most one slip (a letter missing, added,
/// replaced or swapped with its neighbour) for every three letters. Case and `-` for `_` are no slips.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain: String = word.chars().take(64).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect();
    let allowed = (plain.chars().count() / 3).max(1);
    let slips = |candidate: &str| osa_distance(&plain, candidate);
    candidates.into_iter().map(|word| (slips(word), word)).filter(|(n, _)| *n <= allowed).min().map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slip_in_three_letters_is_forgiven_and_more_is_not() {
        let keys = ["target", "udp_target", "listen", "uds", "mode", "max_connections"];
        for (typed, meant) in [
            ("taget", Some("target")),
            ("taregt", Some("target")),
            ("max-connections", Some("max_connections")),
            ("Listen", Some("listen")),
            ("ud", Some("uds")),
            ("moed", Some("mode")),
            ("xyzzy", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, keys), meant, "{typed}");
        }
    }
}
