//! Patterns of rules: one for a word, and one for a program. Pure.

use super::{program::ProgramName, words::RuleWord};

/// A pattern for one word: `*` is any bytes, `?` one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WordPattern {
    text: Vec<u8>,
    literal: bool,
}

impl WordPattern {
    pub(super) fn new(word: &RuleWord) -> Self {
        Self { text: word.text.clone().into_bytes(), literal: word.quoted }
    }

    pub(super) fn matches(&self, word: &[u8]) -> bool {
        if self.literal { word == self.text } else { glob(&self.text, word) }
    }
}

/// How far a star of a program's pattern reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// `*` and `?` stop at a `/`; `**` does not. For rules that give a right.
    Component,
    /// Every star passes a `/`. For rules that take a right away, which must not match less than they did.
    Everything,
}

/// A pattern for the program of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramPattern {
    /// As written.
    text: Vec<u8>,
    /// With the directory of the pattern resolved, where that is another one.
    resolved: Option<Vec<u8>>,
    literal: bool,
}

impl ProgramPattern {
    pub(super) fn new(word: &RuleWord) -> Self {
        Self { text: word.text.clone().into_bytes(), resolved: None, literal: word.quoted }
    }

    /// The part before the first wildcard, up to and without its last `/`: a directory that can be looked up.
    fn directory(&self) -> Option<&[u8]> {
        let wild = |b: &u8| !self.literal && matches!(b, b'*' | b'?');
        let fixed = &self.text[..self.text.iter().position(wild).unwrap_or(self.text.len())];
        let slash = fixed.iter().rposition(|b| *b == b'/')?;
        Some(&fixed[..slash])
    }

    /// Looks up the pattern's directory: from now on the pattern matches paths in that directory too.
    pub(super) fn resolve(&mut self, find: impl FnOnce(&[u8]) -> Option<Vec<u8>>) {
        let Some(directory) = self.directory().filter(|dir| !dir.is_empty()) else { return };
        let rest = &self.text[directory.len()..];
        self.resolved = find(directory)
            .map(|found| [found.strip_suffix(b"/").unwrap_or(&found), rest].concat())
            .filter(|path| *path != self.text);
    }

    /// The name of the one program that matches: a pattern without wildcards.
    pub(super) fn only_name(&self) -> Option<&[u8]> {
        (self.literal || !self.text.iter().any(|b| matches!(b, b'*' | b'?'))).then_some(self.text.as_slice())
    }

    /// Whether the pattern is `*` alone: any program.
    fn any(&self) -> bool {
        !self.literal && self.text == b"*"
    }

    pub(super) fn matches(&self, name: &ProgramName, reach: Reach) -> bool {
        if self.any() {
            return true;
        }
        if !self.text.contains(&b'/') {
            // a bare name: in any directory of PATH
            let last = name.path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
            return name.in_path && self.fits(&self.text, &name.path[last..], reach);
        }
        let patterns = [Some(&self.text), self.resolved.as_ref()];
        patterns.into_iter().flatten().any(|pattern| self.fits(pattern, &name.path, reach))
    }

    fn fits(&self, pattern: &[u8], path: &[u8], reach: Reach) -> bool {
        match reach {
            _ if self.literal => pattern == path,
            Reach::Component => path_glob(pattern, path),
            Reach::Everything => glob(pattern, path),
        }
    }

    /// Whether the pattern, in a rule that allows, matches less than it would if `*` and `?` matched `/`.
    pub(super) fn narrower(&self) -> bool {
        !self.literal
            && self.text.contains(&b'/')
            && tokens(&self.text).iter().any(|t| matches!(t, Token::Star | Token::One))
    }

    /// The pattern with `**` in the place of each `*`.
    pub(super) fn widened(&self) -> String {
        let mut text = Vec::new();
        for token in tokens(&self.text) {
            match token {
                Token::Star | Token::Stars => text.extend_from_slice(b"**"),
                Token::One => text.push(b'?'),
                Token::Byte(b) => text.push(b),
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// One step of a pattern for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`: one byte, no `/`.
    One,
    /// `*`: any bytes, no `/`.
    Star,
    /// `**`: any bytes.
    Stars,
}

fn tokens(pattern: &[u8]) -> Vec<Token> {
    let (mut tokens, mut at) = (Vec::with_capacity(pattern.len()), 0);
    while let Some(byte) = pattern.get(at) {
        let run = pattern[at..].iter().take_while(|b| **b == b'*').count();
        tokens.push(match byte {
            b'*' if run > 1 => Token::Stars,
            b'*' => Token::Star,
            b'?' => Token::One,
            b => Token::Byte(*b),
        });
        at += run.max(1);
    }
    tokens
}

/// Whether a path matches. All ways through the pattern are followed at once, so the time is the product of both
/// lengths and no more.
fn path_glob(pattern: &[u8], path: &[u8]) -> bool {
    let tokens = tokens(pattern);
    // places[i]: what was read so far matches the first i tokens
    let mut places = vec![false; tokens.len() + 1];
    places[0] = true;
    let pass = |places: &mut Vec<bool>| {
        for (i, token) in tokens.iter().enumerate() {
            if places[i] && matches!(token, Token::Star | Token::Stars) {
                places[i + 1] = true;
            }
        }
    };
    pass(&mut places);
    for byte in path {
        let mut next = vec![false; places.len()];
        for (i, token) in tokens.iter().enumerate().filter(|(i, _)| places[*i]) {
            match token {
                Token::Byte(b) => next[i + 1] |= b == byte,
                Token::One => next[i + 1] |= *byte != b'/',
                Token::Star => next[i] |= *byte != b'/',
                Token::Stars => next[i] = true,
            }
        }
        pass(&mut next);
        places = next;
    }
    places[tokens.len()]
}

/// Whether a text matches: `*` is any bytes, `?` one. Linear in `text` for each `*`: goes back only to the last one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut back) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(c) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    (p, t) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, tried in every way.
    fn by_trying(tokens: &[Token], path: &[u8]) -> bool {
        let Some((first, rest)) = tokens.split_first() else { return path.is_empty() };
        let ends = |fits: fn(u8) -> bool| {
            (0..=path.len()).take_while(|n| *n == 0 || fits(path[n - 1])).any(|n| by_trying(rest, &path[n..]))
        };
        match first {
            Token::Byte(b) => path.first() == Some(b) && by_trying(rest, &path[1..]),
            Token::One => path.first().is_some_and(|b| *b != b'/') && by_trying(rest, &path[1..]),
            Token::Star => ends(|b| b != b'/'),
            Token::Stars => ends(|_| true),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_without_wildcards_is_the_word_itself(word in "[a-z;$`|&]{1,12}", other in "[a-z;$`|&]{1,12}") {
            prop_assert_eq!(glob(word.as_bytes(), other.as_bytes()), word == other);
            prop_assert_eq!(path_glob(word.as_bytes(), other.as_bytes()), word == other);
        }

        #[test]
        fn a_star_is_any_bytes(a in "[a-z*]{0,6}", b in "[a-z]{0,6}", c in "[a-z]{0,6}") {
            let whole = format!("{c}{b}");
            prop_assert!(glob(b"*", a.as_bytes()));
            let (ends, begins) = (format!("*{b}"), format!("{c}*"));
            prop_assert!(glob(ends.as_bytes(), whole.as_bytes()));
            prop_assert!(glob(begins.as_bytes(), whole.as_bytes()));
        }

        #[test]
        fn a_path_matches_where_some_way_through_the_pattern_does(pattern in "[ab/*?]{0,9}", path in "[ab/]{0,9}") {
            let wanted = by_trying(&tokens(pattern.as_bytes()), path.as_bytes());
            prop_assert_eq!(path_glob(pattern.as_bytes(), path.as_bytes()), wanted);
        }

        #[test]
        fn what_a_path_pattern_allows_a_plain_one_matches_too(pattern in "[ab/*?]{0,9}", path in "[ab/]{0,9}") {
            if path_glob(pattern.as_bytes(), path.as_bytes()) {
                prop_assert!(glob(pattern.as_bytes(), path.as_bytes()));
            }
        }

        #[test]
        fn a_pattern_without_two_stars_keeps_the_depth_of_a_path(pattern in "/[ab*?]{1,3}(/[ab*?]{1,3}){0,3}", path in "(/[ab.]{0,3}){0,5}") {
            prop_assume!(!pattern.contains("**"));
            if path_glob(pattern.as_bytes(), path.as_bytes()) {
                let depth = |text: &str| text.bytes().filter(|b| *b == b'/').count();
                prop_assert_eq!(depth(&pattern), depth(&path));
            }
        }
    }
}
