//! Who imports whom among the files below `src`, and which files import each other in a circle.
//!
//! The text alone is read: no compiler, no expansion of macros. An *arrow* leads from the file that names something
//! to the file that defines it:
//! - A path is `crate::…`, `super::…`, `self::…`, or begins with a child module or with a name that a `use` brought.
//!   The longest part of it that is a file is where it leads. A `pub use` there is followed to the file that defines
//!   the name.
//! - `mod x;` and the re-export of a child's name (`pub use x::Y`, of any visibility) are no arrows of a face: they
//!   say what the room shows. A face whose code works with a child's name has an arrow to the child.
//! - A child that imports something through its face (`super::Y`) has an arrow to the face, and one to the file that
//!   defines `Y`.
//! - Tests are left out: what is behind `#[cfg(test)]`, inline or in a separate file.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Segments of a path, from the crate's root.
type Path = Vec<String>;

/// From file, to file: the names that tie them.
pub type Arrows = BTreeMap<(String, String), BTreeSet<String>>;

/// The files of a crate, read.
pub struct Tree {
    files: BTreeMap<String, File>,
    /// Module to file.
    modules: BTreeMap<Path, String>,
}

/// What the text of one file says.
#[derive(Default)]
struct File {
    module: Path,
    uses: Vec<Use>,
    /// The paths in its code, as they are written, with the depth of inline modules around them.
    paths: Vec<(Path, usize)>,
    /// Macros that its code calls by their plain name.
    calls: BTreeSet<String>,
    macros: BTreeSet<String>,
    items: BTreeSet<String>,
    children: BTreeSet<String>,
    /// Children that exist in tests only.
    test_children: BTreeSet<String>,
}

struct Use {
    path: Path,
    /// The depth of inline modules around it.
    inline: usize,
    /// The name it has here; `*` for all.
    name: String,
    /// Does another file see it?
    shown: bool,
}

impl Tree {
    /// Reads files: the path below `src`, and the text.
    pub fn read<'a>(sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Tree {
        let mut files = BTreeMap::new();
        for (path, text) in sources {
            let mut module: Path = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            if module.len() > 1 && module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
                module.pop();
            }
            files.insert(path.to_owned(), File::read(module, &tokens(text)));
        }
        // files of tests, and all below them
        let tests: Vec<Path> =
            files.values().flat_map(|file| file.test_children.iter().map(|c| file.below(c))).collect();
        files.retain(|_, file| !tests.iter().any(|test| file.module.starts_with(test)));
        let modules = files.iter().map(|(path, file)| (file.module.clone(), path.clone())).collect();
        Tree { files, modules }
    }

    /// All arrows.
    pub fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (from, file) in &self.files {
            let mut add = |path: &[String]| {
                for (to, name) in self.lead(file, path) {
                    if to != *from {
                        arrows.entry((from.clone(), to)).or_default().insert(name);
                    }
                }
            };
            for used in &file.uses {
                let Some(path) = self.absolute(file, &used.path, used.inline, 0) else { continue };
                let of_a_child = path.len() > file.module.len() && path.starts_with(&file.module);
                if !(used.shown && of_a_child) {
                    add(&path);
                }
            }
            for (path, inline) in &file.paths {
                if path.len() == 1 && file.children.contains(&path[0]) {
                    continue; // a variable of that name: a module is no value
                }
                if let Some(path) = self.absolute(file, path, *inline, 0) {
                    add(&path);
                }
            }
            for called in file.calls.difference(&file.macros) {
                // a macro is seen by all files below the one that defines it
                let above = (1..file.module.len()).rev().filter_map(|n| self.modules.get(&file.module[..n]));
                if let Some(to) = { above }.find(|path| self.files[*path].macros.contains(called)) {
                    arrows.entry((from.clone(), to.clone())).or_default().insert(format!("{called}!"));
                }
            }
        }
        arrows
    }

    /// Imports that lead from a file to the face of a folder that the file is in.
    pub fn faces_imported(&self) -> Arrows {
        let inside = |(from, to): &(String, String)| {
            let (from, to) = (&self.files[from].module, &self.files[to].module);
            !to.is_empty() && from.len() > to.len() && from.starts_with(to)
        };
        self.arrows().into_iter().filter(|(arrow, _)| inside(arrow)).collect()
    }

    /// The circles: sets of files of which each reaches each other one.
    pub fn circles(&self) -> Vec<Circle> {
        let arrows = self.arrows();
        let of_files = components(&self.files.keys().cloned().collect::<Vec<_>>(), &arrows);
        of_files.into_iter().filter(|files| files.len() > 1).map(|files| Circle::new(files, &arrows)).collect()
    }

    /// `path` from the crate's root, as `file` means it; None if it leads out of the crate.
    fn absolute(&self, file: &File, path: &[String], inline: usize, depth: usize) -> Option<Path> {
        let (first, rest) = path.split_first()?;
        let join = |base: &[String], rest: &[String]| Some([base, rest].concat());
        match first.as_str() {
            "crate" | "qrexec_connect" => Some(rest.to_vec()),
            "self" => join(&file.module, rest),
            "super" => {
                let up = path.iter().take_while(|part| *part == "super").count();
                let base = &file.module[..file.module.len().saturating_sub(up.saturating_sub(inline))];
                join(base, &path[up..])
            }
            child if file.children.contains(child) => join(&file.module, path),
            name => {
                // two names that are each other's do not compile, but can be written
                let base = (depth < 4).then(|| match file.uses.iter().find(|u| u.name == name && u.path != path) {
                    Some(used) => self.absolute(file, &used.path, used.inline, depth + 1),
                    None => self.by_star(file, name, depth + 1),
                });
                join(&base??, rest)
            }
        }
    }

    /// The files that a path of `from` leads to: the one that defines the name, and a face above `from` on the way;
    /// with the name that each of them has, or `self` for the file itself.
    fn lead(&self, from: &File, path: &[String]) -> Vec<(String, String)> {
        let mut path = path.to_vec();
        let mut found = Vec::new();
        for _ in 0..8 {
            let Some(n) = (0..=path.len()).rev().find(|n| self.modules.contains_key(&path[..*n])) else { break };
            let here = &self.modules[&path[..n]];
            let file = &self.files[here];
            let next =
                path.get(n).and_then(|name| self.shown(file, name)).map(|shown| [&shown, &path[n + 1..]].concat());
            if next.is_none() || from.module.starts_with(&file.module) && n > 0 {
                found.push((here.clone(), path.get(n).map_or("self", |name| name).to_owned()));
            }
            let Some(next) = next else { break };
            path = next;
        }
        found
    }

    /// Where a name of `file` comes from, if not from `file` itself.
    fn shown(&self, file: &File, name: &str) -> Option<Path> {
        if file.children.contains(name) {
            return None;
        }
        let named = file.uses.iter().filter(|used| used.name == name);
        if let Some(path) = { named }.find_map(|used| self.absolute(file, &used.path, used.inline, 0)) {
            return Some(path);
        }
        self.by_star(file, name, 0)
    }

    /// Where a name of `file` comes from by a `use x::*`: x must be a file that has the name.
    fn by_star(&self, file: &File, name: &str, depth: usize) -> Option<Path> {
        if file.items.contains(name) {
            return None;
        }
        let stars = file.uses.iter().filter(|used| used.name == "*");
        { stars }.filter_map(|used| self.absolute(file, &used.path, used.inline, depth)).find_map(|base| {
            let other = &self.files[self.modules.get(&base)?];
            let has = other.items.contains(name) || other.macros.contains(name);
            has.then(|| [base.as_slice(), &[name.to_owned()]].concat())
        })
    }
}

impl File {
    fn below(&self, child: &str) -> Path {
        [self.module.as_slice(), &[child.to_owned()]].concat()
    }

    fn read(module: Path, tokens: &[Token]) -> File {
        let mut file = File { module, ..File::default() };
        // the inline modules that are open, by the depth of braces that they were opened at
        let (mut braces, mut inline, mut i) = (0, Vec::new(), 0);
        let word = |i: usize| match tokens.get(i) {
            Some(Token::Word(word)) => Some(word.as_str()),
            _ => None,
        };
        let sign = |i: usize, c: char| tokens.get(i) == Some(&Token::Other(c));
        while i < tokens.len() {
            if sign(i, '#') && is_of_tests(&tokens[i + 1..]) {
                let end = after_item(tokens, i);
                let module = (i..end).find(|at| word(*at) == Some("mod")).filter(|at| sign(at + 2, ';'));
                file.test_children.extend(module.and_then(|at| word(at + 1)).map(str::to_owned));
                i = end;
                continue;
            }
            match &tokens[i] {
                Token::Word(w) if w == "mod" && word(i + 1).is_some() => {
                    if sign(i + 2, '{') {
                        inline.push(braces);
                    } else if inline.is_empty() {
                        file.children.extend(word(i + 1).map(str::to_owned));
                    }
                    i += 2;
                    continue;
                }
                Token::Word(w) if w == "pub" && sign(i + 1, '(') => {
                    i += 1 + matching(&tokens[i + 1..]);
                    continue;
                }
                Token::Word(w) if w == "use" && !sign(i + 1, '<') => {
                    let shown = is_shown(&tokens[..i]);
                    let mut all = Vec::new();
                    i = read_use(tokens, i + 1, &[], &mut all);
                    let ours = |(path, name): (Path, String)| Use { path, inline: inline.len(), name, shown };
                    file.uses.extend(all.into_iter().map(ours));
                    continue;
                }
                Token::Word(w) if w == "macro_rules" && sign(i + 1, '!') => {
                    file.macros.extend(word(i + 2).map(str::to_owned));
                    i += 3;
                    continue;
                }
                Token::Word(w) if ITEMS.contains(&w.as_str()) && word(i + 1).is_some() => {
                    // `const fn f`: the next word is looked at next
                    if let Some(name) = word(i + 1).filter(|name| !ITEMS.contains(name)) {
                        file.items.insert(name.to_owned());
                        i += 1;
                    }
                }
                Token::Word(_) if i == 0 || tokens[i - 1] != Token::Path => {
                    let (start, mut path) = (i, Vec::new());
                    while let Some(word) = word(i) {
                        path.push(word.to_owned());
                        i += 1;
                        if tokens.get(i) != Some(&Token::Path) {
                            break;
                        }
                        i += 1;
                    }
                    if path.len() == 1 && sign(i, '!') && !sign(i + 1, '=') {
                        file.calls.insert(path[0].clone());
                    }
                    // a field, a method or a binding is no name of a module
                    let member = start > 0 && sign(start - 1, '.') && !(start > 1 && sign(start - 2, '.'));
                    let binding = path.len() == 1 && (sign(i, ':') || start > 0 && word(start - 1) == Some("let"));
                    if !member && !binding {
                        file.paths.push((path, inline.len()));
                    }
                    continue;
                }
                Token::Other('{') => braces += 1,
                Token::Other('}') => {
                    braces -= 1;
                    if inline.last() == Some(&braces) {
                        inline.pop();
                    }
                }
                _ => {}
            }
            i += 1;
        }
        file
    }
}

/// What comes before the name of an item.
const ITEMS: &[&str] = &["fn", "struct", "enum", "union", "trait", "type", "const", "static"];

/// Does an attribute, read behind its `#`, keep what follows for tests?
fn is_of_tests(tokens: &[Token]) -> bool {
    let text: Vec<_> = tokens.iter().take(6).collect();
    let word = |i: usize, wanted: &str| matches!(text.get(i), Some(Token::Word(w)) if w == wanted);
    let test = word(3, "test") && text.get(4) == Some(&&Token::Other(')'));
    let all = word(3, "all") && word(5, "test");
    text.first() == Some(&&Token::Other('[')) && word(1, "cfg") && (test || all)
}

/// What comes behind the item whose first attribute begins at `i`.
fn after_item(tokens: &[Token], mut i: usize) -> usize {
    let mut depth = 0;
    let (mut list, mut began) = (false, false);
    while let Some(token) = tokens.get(i) {
        match token {
            // an attribute
            Token::Other('#') if depth == 0 => {
                i += 1 + matching(&tokens[i + 1..]);
                continue;
            }
            // the braces of these do not end them
            Token::Word(w) if !began && !matches!(w.as_str(), "pub" | "crate" | "super" | "in" | "self") => {
                list = matches!(w.as_str(), "use" | "const" | "static" | "type" | "let");
                began = true;
            }
            Token::Other('{' | '(' | '[') => depth += 1,
            Token::Other('}') if depth == 1 && !list => return i + 1,
            Token::Other('}' | ')' | ']') if depth == 0 => return i,
            Token::Other('}' | ')' | ']') => depth -= 1,
            Token::Other(';') if depth == 0 => return i + 1,
            _ => {}
        }
        i += 1;
    }
    i
}

/// How many tokens the group takes that begins `tokens`.
fn matching(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Token::Other('{' | '(' | '[') => depth += 1,
            Token::Other('}' | ')' | ']') => depth -= 1,
            _ => {}
        }
        if depth == 0 && *token != Token::Other('!') {
            return i + 1;
        }
    }
    tokens.len()
}

/// Does `pub`, with or without a place, end `tokens`?
fn is_shown(tokens: &[Token]) -> bool {
    let before = match tokens.last() {
        Some(Token::Other(')')) => tokens.iter().rposition(|token| *token == Token::Other('(')).unwrap_or(0),
        _ => tokens.len(),
    };
    matches!(tokens[..before].last(), Some(Token::Word(word)) if word == "pub")
}

/// Reads what a `use` names, from `i` to behind its `;`: each path and the name that it has here.
fn read_use(tokens: &[Token], mut i: usize, before: &[String], found: &mut Vec<(Path, String)>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(i) {
            Some(Token::Path) => {}
            Some(Token::Word(word)) if word == "as" => {
                if let Some(Token::Word(name)) = tokens.get(i + 1) {
                    found.push((path.clone(), name.clone()));
                }
                path.clear();
                i += 1;
            }
            // `a::{self}` is `a`
            Some(Token::Word(word)) if word == "self" && !path.is_empty() => {}
            Some(Token::Word(word)) => path.push(word.clone()),
            Some(Token::Other('*')) => {
                found.push((path.clone(), "*".to_owned()));
                path.clear();
            }
            Some(Token::Other('{')) => {
                i += 1;
                while !matches!(tokens.get(i), Some(Token::Other('}')) | None) {
                    i = read_use(tokens, i, &path, found);
                    i += usize::from(tokens.get(i) == Some(&Token::Other(',')));
                }
                path.clear();
            }
            end => {
                if let Some(name) = path.last().filter(|_| path.len() > before.len() || i > 0) {
                    found.push((path.clone(), name.clone()));
                }
                return i + usize::from(end == Some(&Token::Other(';')));
            }
        }
        i += 1;
    }
}

// ------------------------------------------------------------------------------------------------------ circles

/// Files of which each reaches each other one.
#[derive(Debug)]
pub struct Circle {
    pub files: Vec<String>,
    /// The arrows among them.
    pub arrows: Arrows,
    /// A shortest way round: each imports the next, the last the first.
    pub round: Vec<String>,
}

impl Circle {
    fn new(files: Vec<String>, all: &Arrows) -> Circle {
        let inside = all.iter().filter(|((from, to), _)| files.contains(from) && files.contains(to));
        let arrows: Arrows = inside.map(|(arrow, names)| (arrow.clone(), names.clone())).collect();
        let round = files.iter().filter_map(|file| way_back(file, &arrows)).min_by_key(Vec::len).unwrap_or_default();
        Circle { files, arrows, round }
    }
}

impl std::fmt::Display for Circle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |from: &str, to: &str| {
            let names = self.arrows.get(&(from.to_owned(), to.to_owned()));
            names.map(|names| names.iter().cloned().collect::<Vec<_>>().join(", ")).unwrap_or_default()
        };
        writeln!(f, "{} files import each other; the shortest way round:", self.files.len())?;
        for (i, from) in self.round.iter().enumerate() {
            let to = &self.round[(i + 1) % self.round.len()];
            writeln!(f, "    {from} -> {to}: {}", names(from, to))?;
        }
        let rest: Vec<_> = self.arrows.keys().collect();
        if rest.len() > self.round.len() {
            writeln!(f, "  all their arrows:")?;
            for (from, to) in rest {
                writeln!(f, "    {from} -> {to}: {}", names(from, to))?;
            }
        }
        Ok(())
    }
}

/// The shortest way from a file to itself.
fn way_back(start: &str, arrows: &Arrows) -> Option<Vec<String>> {
    let next = |from: &str| arrows.keys().filter(move |(f, _)| f == from).map(|(_, to)| to.clone()).collect::<Vec<_>>();
    let (mut seen, mut queue) = (BTreeSet::new(), VecDeque::from([vec![start.to_owned()]]));
    while let Some(way) = queue.pop_front() {
        for to in next(way.last()?) {
            if to == start {
                return Some(way);
            }
            if seen.insert(to.clone()) {
                queue.push_back([way.as_slice(), &[to]].concat());
            }
        }
    }
    None
}

/// The strongly connected components (Tarjan, SIAM J. Comput. 1 (1972) 146).
fn components(nodes: &[String], arrows: &Arrows) -> Vec<Vec<String>> {
    struct Walk<'a> {
        next: BTreeMap<&'a str, Vec<&'a str>>,
        index: BTreeMap<&'a str, usize>,
        low: BTreeMap<&'a str, usize>,
        stack: Vec<&'a str>,
        found: Vec<Vec<String>>,
    }
    impl<'a> Walk<'a> {
        fn visit(&mut self, node: &'a str) {
            let index = self.index.len();
            self.index.insert(node, index);
            self.low.insert(node, index);
            self.stack.push(node);
            for to in self.next.get(node).cloned().unwrap_or_default() {
                if !self.index.contains_key(to) {
                    self.visit(to);
                    self.low.insert(node, self.low[node].min(self.low[to]));
                } else if self.stack.contains(&to) {
                    self.low.insert(node, self.low[node].min(self.index[to]));
                }
            }
            if self.low[node] == index {
                let from = self.stack.iter().rposition(|other| *other == node).unwrap_or(0);
                let mut files: Vec<_> = self.stack.drain(from..).map(str::to_owned).collect();
                files.sort();
                self.found.push(files);
            }
        }
    }
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        next.entry(from).or_default().push(to);
    }
    let (index, low) = (BTreeMap::new(), BTreeMap::new());
    let mut walk = Walk { next, index, low, stack: Vec::new(), found: Vec::new() };
    for node in nodes {
        if !walk.index.contains_key(node.as_str()) {
            walk.visit(node);
        }
    }
    walk.found
}

// ------------------------------------------------------------------------------------------------- reading Rust

#[derive(Debug, PartialEq)]
pub enum Token {
    Word(String),
    /// `::`
    Path,
    Other(char),
}

/// The words and signs of Rust text, without comments, strings, characters and lifetimes.
pub fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => i += chars[i..].iter().take_while(|c| **c != '\n').count(),
            ('/', '*') => i = after_comment(&chars, i),
            ('"', _) => i = after_string(&chars, i),
            ('\'', '\\') => i += 3 + chars[i + 3..].iter().take_while(|c| **c != '\'').count(),
            ('\'', _) if at(i + 2) == '\'' => i += 2,
            // a lifetime, with its name
            ('\'', _) => i += chars[i + 1..].iter().take_while(|c| word(**c)).count(),
            (':', ':') => {
                tokens.push(Token::Path);
                i += 1;
            }
            (c, _) if word(c) => {
                let n = chars[i..].iter().take_while(|c| word(**c)).count();
                let name: String = chars[i..i + n].iter().collect();
                let hashes = chars[i + n..].iter().take_while(|c| **c == '#').count();
                i += n - 1;
                if matches!(name.as_str(), "r" | "br" | "cr") && at(i + 1 + hashes) == '"' {
                    i = after_raw_string(&chars, i + 1 + hashes, hashes);
                } else {
                    tokens.push(Token::Word(name));
                }
            }
            (c, _) if !c.is_whitespace() => tokens.push(Token::Other(c)),
            _ => {}
        }
        i += 1;
    }
    tokens
}

/// The last character of the comment that begins at `i`; they nest.
fn after_comment(chars: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i - 1;
        }
    }
    chars.len()
}

/// The closing quote of the string that begins at `i`.
fn after_string(chars: &[char], mut i: usize) -> usize {
    i += 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i
}

/// The last character of the raw string whose opening quote is at `i`.
fn after_raw_string(chars: &[char], mut i: usize, hashes: usize) -> usize {
    i += 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return i + hashes;
        }
        i += 1;
    }
    i
}

// -------------------------------------------------------------------------------------------------------- tests

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Tree {
        Tree::read(files.iter().copied())
    }

    fn arrows(files: &[(&str, &str)]) -> Vec<String> {
        let text = |((from, to), names): (&(String, String), &BTreeSet<String>)| {
            format!("{from} -> {to}: {}", names.iter().cloned().collect::<Vec<_>>().join(" "))
        };
        read(files).arrows().iter().map(text).collect()
    }

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        read(files).circles().iter().map(|circle| circle.files.join(" ")).collect()
    }

    #[test]
    fn each_kind_of_circle_is_found() {
        for (what, files, circle) in [
            ("two", &[("a.rs", "use crate::b::B;"), ("b.rs", "pub struct B; use crate::a::A;")][..], "a.rs b.rs"),
            (
                "three",
                &[
                    ("a/x.rs", "use crate::b::y::Y;"),
                    ("b/y.rs", "fn f() { crate::c::g() }"),
                    ("c.rs", "use super::a::x;"),
                    ("d.rs", "use crate::c;"),
                ],
                "a/x.rs b/y.rs c.rs",
            ),
            (
                "through a re-export",
                &[
                    ("a/mod.rs", "mod x; pub use x::X;"),
                    ("a/x.rs", "pub struct X; use crate::b::B;"),
                    ("b.rs", "use crate::a::X; pub struct B;"),
                ],
                "a/x.rs b.rs",
            ),
            (
                "through two re-exports, one of all names, one with another name",
                &[
                    ("a/mod.rs", "mod x; pub use self::x::*;"),
                    ("a/x/mod.rs", "mod y; pub(crate) use y::Y as X;"),
                    ("a/x/y.rs", "pub struct Y; use crate::b::B;"),
                    ("b.rs", "use crate::a::x::X; pub struct B;"),
                ],
                "a/x/y.rs b.rs",
            ),
            (
                "through super",
                &[("a/mod.rs", "mod x; mod y;"), ("a/x.rs", "use super::y::Y;"), ("a/y.rs", "use super::x::X;")],
                "a/x.rs a/y.rs",
            ),
            (
                "through super in an inline module",
                &[
                    ("a/mod.rs", "mod x; mod y;"),
                    ("a/x.rs", "mod z { use super::super::y; }"),
                    ("a/y.rs", "use super::x::X;"),
                ],
                "a/x.rs a/y.rs",
            ),
            (
                "a face that works with what its child defines, and the child with what the face defines",
                &[("a/mod.rs", "mod x; use x::X; pub struct A;"), ("a/x.rs", "use super::A; pub struct X;")],
                "a/mod.rs a/x.rs",
            ),
            (
                "a face that works with a name that it re-exports",
                &[
                    ("a/mod.rs", "mod x; pub use x::X; pub fn a() { X::new() }"),
                    ("a/x.rs", "use super::a; pub struct X;"),
                ],
                "a/mod.rs a/x.rs",
            ),
            (
                "a face that works with a name that a star re-exports",
                &[
                    ("a/mod.rs", "mod x; pub use x::*; pub fn a() { X::new() }"),
                    ("a/x.rs", "use super::a; pub struct X;"),
                ],
                "a/mod.rs a/x.rs",
            ),
            (
                "a face that calls into its child by a path",
                &[("a/mod.rs", "mod x; pub fn a() { x::run() }"), ("a/x.rs", "use crate::a;")],
                "a/mod.rs a/x.rs",
            ),
            (
                "siblings, one of them through the face",
                &[
                    ("a/mod.rs", "mod x; mod y; pub use y::Y;"),
                    ("a/x.rs", "use super::Y; pub struct X;"),
                    ("a/y.rs", "use super::x::X; pub struct Y;"),
                ],
                "a/x.rs a/y.rs",
            ),
            (
                "by a name that a use brought",
                &[("a.rs", "use crate::{self as root}; fn f() { root::b::g() }"), ("b.rs", "use crate::a::f;")],
                "a.rs b.rs",
            ),
            (
                "by a macro of the face",
                &[("a/mod.rs", "macro_rules! m { () => {} } mod x; use x::X;"), ("a/x.rs", "m!(); pub struct X;")],
                "a/mod.rs a/x.rs",
            ),
        ] {
            assert_eq!(circles(files), [circle], "{what}: {:#?}", arrows(files));
        }
    }

    #[test]
    fn two_circles_are_two() {
        let files = [
            ("a.rs", "use crate::b;"),
            ("b.rs", "use crate::{a, c};"),
            ("c.rs", "use crate::d;"),
            ("d.rs", "use crate::c;"),
        ];
        let mut found = circles(&files);
        found.sort();
        assert_eq!(found, ["a.rs b.rs", "c.rs d.rs"]);
    }

    #[test]
    fn where_there_is_no_circle_none_is_found() {
        for (what, files) in [
            ("a chain", &[("a.rs", "use crate::b;"), ("b.rs", "use crate::c;"), ("c.rs", "use std::a;")][..]),
            (
                "a diamond",
                &[("a.rs", "use crate::{b, c};"), ("b.rs", "use crate::d;"), ("c.rs", "use crate::d;"), ("d.rs", "")],
            ),
            (
                "a face that re-exports",
                &[
                    ("a/mod.rs", "mod x; pub mod y; pub use x::X; pub(crate) use self::y::{Y, Z};"),
                    ("a/x.rs", "use super::y::Y; pub struct X;"),
                    ("a/y.rs", "pub struct Y; pub struct Z;"),
                ],
            ),
            (
                "a face that works with its children",
                &[
                    ("a/mod.rs", "mod x; use x::X; pub fn a() { x::run() }"),
                    ("a/x.rs", "use crate::b; pub struct X;"),
                    ("b.rs", ""),
                ],
            ),
            (
                "tests that import what they test",
                &[
                    ("a/mod.rs", "mod x; use x::X; #[cfg(test)] mod tests;"),
                    ("a/tests.rs", "use super::*; mod more;"),
                    ("a/tests/more.rs", "use crate::a::A;"),
                    (
                        "a/x.rs",
                        "#[cfg(test)] use super::A; #[cfg(test)] mod tests { use super::super::A; } pub struct X;",
                    ),
                ],
            ),
            (
                "comments, strings, fields, methods and visibility",
                &[
                    ("a/mod.rs", "mod x; pub use x::open; fn f(s: S) { s.open(); let open = 1; S { open: 2 } }"),
                    ("a/x.rs", "// use super::A;\npub(super) fn open() { \"crate::a::A\" } pub(in crate::a) struct X;"),
                ],
            ),
            (
                "a lifetime called as an item",
                &[("a.rs", "use crate::b::B; fn f(x: &'static B) {}"), ("b.rs", "pub struct B;")],
            ),
        ] {
            assert_eq!(circles(files), <[String; 0]>::default(), "{what}: {:#?}", arrows(files));
        }
    }

    #[test]
    fn an_import_leads_to_the_file_that_defines_the_name() {
        let files = [
            ("a/mod.rs", "pub mod x; pub use x::{X, Y as Z}; pub struct A;"),
            ("a/x.rs", "pub struct X; pub struct Y;"),
            ("b.rs", "use crate::a::{self, A, X, Z, x::Y}; fn f() { a::A; a::x::X::new() }"),
        ];
        assert_eq!(arrows(&files), ["b.rs -> a/mod.rs: A self", "b.rs -> a/x.rs: X Y"]);
    }

    #[test]
    fn a_child_that_imports_its_face_is_seen_where_nothing_goes_round() {
        let files = [
            ("a/mod.rs", "mod x; mod y; pub use y::Y; pub struct A;"),
            ("a/x.rs", "use super::{A, Y};"),
            ("a/y.rs", "pub struct Y;"),
        ];
        assert_eq!(circles(&files), <[String; 0]>::default());
        let found = read(&files).faces_imported();
        let found: Vec<_> = found.into_iter().map(|((from, to), names)| (from, to, names.len())).collect();
        assert_eq!(found, [("a/x.rs".to_owned(), "a/mod.rs".to_owned(), 2)]);
        let fine =
            [("a/mod.rs", "mod x; mod y; pub use y::Y;"), ("a/x.rs", "use super::y::Y;"), ("a/y.rs", "pub struct Y;")];
        assert!(read(&fine).faces_imported().is_empty());
    }

    #[test]
    fn a_circle_is_told_with_the_names_that_tie_it() {
        let files =
            [("a.rs", "use crate::b::{B, C};"), ("b.rs", "use crate::c;"), ("c.rs", "use crate::{a::A, b::B};")];
        let told = read(&files).circles()[0].to_string();
        let expected = "3 files import each other; the shortest way round:\n    b.rs -> c.rs: self\n    c.rs -> b.rs: B\n  \
                        all their arrows:\n    a.rs -> b.rs: B, C\n    b.rs -> c.rs: self\n    c.rs -> a.rs: A\n    \
                        c.rs -> b.rs: B\n";
        assert_eq!(told, expected);
    }
}
