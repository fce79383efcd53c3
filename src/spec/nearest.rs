//! "Did you mean": the word of a list that somebody may have meant by another.

/// The candidate nearest to `word`, when it is near enough to be meant: at most one slip (a letter missing, added,
/// replaced or swapped with its neighbour) for every three letters. Case and `-` for `_` are no slips.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain: Vec<char> = word.chars().take(64).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect();
    let slips = |candidate: &str| distance(&plain, &candidate.chars().collect::<Vec<_>>());
    let allowed = (plain.len() / 3).max(1);
    candidates.into_iter().map(|word| (slips(word), word)).filter(|(n, _)| *n <= allowed).min().map(|(_, word)| word)
}

/// Optimal string alignment distance.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &left) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &right) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(left != right)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && left == b[j - 1] && a[i - 1] == right {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
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
