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
    /// Where the pattern names one program that is a link: the names behind the link, for rules that deny.
    targets: Vec<Vec<u8>>,
    literal: bool,
}

impl ProgramPattern {
    pub(super) fn new(word: &RuleWord) -> Self {
        Self { text: word.text.clone().into_bytes(), resolved: None, targets: Vec::new(), literal: word.quoted }
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

    /// From now on the pattern matches these paths too.
    pub(super) fn aim(&mut self, targets: Vec<Vec<u8>>) {
        self.targets = targets;
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
        self.paths().any(|pattern| self.fits(pattern, &name.path, reach))
    }

    /// Whether this path is one behind the link that the pattern names.
    pub(super) fn aims_at(&self, path: &[u8]) -> bool {
        self.targets.iter().any(|target| target == path)
    }

    /// Whether the pattern can match this absolute path, or a path beneath it. `search` are the directories in which
    /// bare names are looked for.
    pub(super) fn reaches(&self, at: &[u8], search: &[Vec<u8>], reach: Reach) -> bool {
        if self.any() {
            return true;
        }
        if !self.text.contains(&b'/') {
            let slash = at.iter().rposition(|b| *b == b'/').unwrap_or(0);
            return search.iter().any(|dir| *dir == at[..slash]) && self.fits(&self.text, &at[slash + 1..], reach);
        }
        self.paths().any(|pattern| {
            if self.literal {
                pattern.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            } else {
                path_begins(pattern, at, reach)
            }
        })
    }

    /// The pattern as written, and with its directory resolved.
    fn paths(&self) -> impl Iterator<Item = &Vec<u8>> {
        [Some(&self.text), self.resolved.as_ref()].into_iter().flatten()
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
                Token::One | Token::Any => text.push(b'?'),
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
    /// `?` of a rule that takes a right away: one byte.
    Any,
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

/// Whether a path matches.
fn path_glob(pattern: &[u8], path: &[u8]) -> bool {
    let mut matching = Matching::new(tokens(pattern));
    path.iter().for_each(|byte| matching.read(*byte));
    matching.whole()
}

/// Whether some path matches that is this one, or begins with this one and a `/`.
fn path_begins(pattern: &[u8], path: &[u8], reach: Reach) -> bool {
    let mut tokens = tokens(pattern);
    if reach == Reach::Everything {
        for token in &mut tokens {
            *token = match *token {
                Token::Star => Token::Stars,
                Token::One => Token::Any,
                other => other,
            };
        }
    }
    let mut matching = Matching::new(tokens);
    path.iter().for_each(|byte| matching.read(*byte));
    if matching.whole() {
        return true;
    }
    matching.read(b'/');
    matching.places.contains(&true) // every token matches something, so what is left of the pattern does
}

/// How much of a pattern matches what was read so far. All ways through the pattern are followed at once, so the time is
/// the product of both lengths and no more.
struct Matching {
    tokens: Vec<Token>,
    /// `places[i]`: what was read so far matches the first `i` tokens.
    places: Vec<bool>,
}

impl Matching {
    fn new(tokens: Vec<Token>) -> Self {
        let mut places = vec![false; tokens.len() + 1];
        places[0] = true;
        let mut matching = Self { tokens, places };
        matching.pass();
        matching
    }

    /// A star matches nothing, too.
    fn pass(&mut self) {
        for (i, token) in self.tokens.iter().enumerate() {
            if self.places[i] && matches!(token, Token::Star | Token::Stars) {
                self.places[i + 1] = true;
            }
        }
    }

    fn read(&mut self, byte: u8) {
        let mut next = vec![false; self.places.len()];
        for (i, token) in self.tokens.iter().enumerate().filter(|(i, _)| self.places[*i]) {
            match token {
                Token::Byte(b) => next[i + 1] |= *b == byte,
                Token::One => next[i + 1] |= byte != b'/',
                Token::Any => next[i + 1] = true,
                Token::Star => next[i] |= byte != b'/',
                Token::Stars => next[i] = true,
            }
        }
        self.places = next;
        self.pass();
    }

    /// Whether the whole pattern matches what was read.
    fn whole(&self) -> bool {
        self.places[self.tokens.len()]
    }
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
            Token::Any => !path.is_empty() && by_trying(rest, &path[1..]),
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
        fn a_pattern_reaches_every_directory_on_the_way_to_what_it_matches(
            pattern in "[ab/*?]{0,9}", path in "[ab/]{0,9}",
        ) {
            let matches = [(Reach::Component, path_glob as fn(&[u8], &[u8]) -> bool), (Reach::Everything, glob)];
            let slashes = path.match_indices('/').map(|(at, _)| at);
            for end in slashes.chain([path.len()]) {
                for (reach, matches) in matches {
                    if matches(pattern.as_bytes(), path.as_bytes()) {
                        prop_assert!(path_begins(pattern.as_bytes(), &path.as_bytes()[..end], reach), "{end} {reach:?}");
                    }
                }
            }
        }

        #[test]
        fn a_pattern_reaches_nothing_beside_its_own_way(fixed in "(/[ab]{1,2}){1,3}", at in "(/[ab]{1,2}){1,4}") {
            let pattern = format!("{fixed}/*");
            let beneath = at.strip_prefix(fixed.as_str()).is_some_and(|r| r.starts_with('/') && !r[1..].contains('/'));
            let above = fixed.strip_prefix(at.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            prop_assert_eq!(path_begins(pattern.as_bytes(), at.as_bytes(), Reach::Component), beneath || above);
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
