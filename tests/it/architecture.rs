//! The house rules of `src`, held against the source itself: who may use whom, and what only some may do.
//!
//! [`ROOMS`] is the picture of the house. A change of the picture is a change of this table, in the same commit.
//! Paths are read from the text, in `use` lines and everywhere else, with comments and strings left out; `super` is
//! followed out of its room. How files import each other, within a room too: [`crate::imports`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    imports::{Token, Tree, tokens},
    support::run,
};

/// A room: `src/NAME.rs` and all of `src/NAME/`.
struct Room {
    name: &'static str,
    /// The rooms it may use, with a space between them.
    uses: &'static str,
    /// The crates it may use besides std; None: any but tokio.
    crates: Option<&'static [&'static str]>,
    tokio: bool,
    /// No sockets, files, clock, environment, processes or threads: text or bytes in, values out.
    pure: bool,
    may_exit: bool,
}

impl Room {
    fn uses(&self) -> impl Iterator<Item = &'static str> {
        self.uses.split_whitespace()
    }
}

const PLAIN: Room = Room { name: "", uses: "", crates: None, tokio: false, pure: false, may_exit: false };

/// From the programs down to what knows of nobody else.
const ROOMS: &[Room] = &[
    Room { name: "bin", uses: "cli", crates: Some(&[]), ..PLAIN },
    Room {
        name: "cli",
        uses: "service control handover declared systemd remote mux activation dial relay stream spec proto log report sys",
        tokio: true,
        may_exit: true,
        ..PLAIN
    },
    Room {
        name: "service",
        uses: "control handover listener session systemd activation dial relay stream crash spec log sys",
        tokio: true,
        ..PLAIN
    },
    Room {
        name: "control",
        uses: "listener session ondemand activation relay crash spec log sys",
        tokio: true,
        ..PLAIN
    },
    Room {
        name: "handover",
        uses: "listener session systemd activation dial relay stream crash spec log sys",
        tokio: true,
        ..PLAIN
    },
    Room { name: "listener", uses: "session activation dial relay stream crash spec log sys", tokio: true, ..PLAIN },
    Room { name: "session", uses: "ondemand dial relay stream crash spec proto log sys", tokio: true, ..PLAIN },
    Room { name: "remote", uses: "systemd proto log sys", tokio: true, ..PLAIN },
    Room { name: "declared", uses: "systemd spec proto log sys", ..PLAIN },
    Room { name: "mux", uses: "proto log sys", ..PLAIN },
    Room { name: "ondemand", uses: "systemd spec log sys", tokio: true, ..PLAIN },
    Room { name: "dial", uses: "stream spec proto log sys", tokio: true, ..PLAIN },
    Room {
        name: "relay",
        uses: "stream crash sys",
        crates: Some(&["tokio", "atomic_waker", "libc", "nix"]),
        tokio: true,
        ..PLAIN
    },
    Room { name: "activation", uses: "spec log sys", ..PLAIN },
    Room { name: "systemd", uses: "log sys", tokio: true, ..PLAIN },
    Room { name: "stream", uses: "sys", tokio: true, ..PLAIN },
    Room { name: "crash", uses: "sys", ..PLAIN },
    Room { name: "spec", crates: Some(&["serde", "toml", "annotate_snippets", "strsim"]), pure: true, ..PLAIN },
    Room { name: "proto", crates: Some(&["bytes", "serde", "hmac", "sha2", "subtle", "zeroize"]), pure: true, ..PLAIN },
    Room { name: "log", ..PLAIN },
    Room { name: "report", may_exit: true, ..PLAIN },
    Room { name: "sys", crates: Some(&["bytes", "libc", "nix", "socket2", "tokio", "tempfile"]), tokio: true, ..PLAIN },
];

/// What a pure room must not name: each is the beginning of a path.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os::fd",
    "std::os::unix::net",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
];

/// Nobody else may say `unsafe`.
const UNSAFE_ROOM: &str = "sys";

#[test]
fn every_file_keeps_the_rules_of_its_room() {
    let crates = dependencies();
    assert!(crates.contains("tokio") && crates.contains("sd_notify"), "Cargo.toml is read wrongly: {crates:?}");
    let faults: Vec<_> = house().iter().flat_map(|(path, text)| check(Path::new(path), text, &crates)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// A table that allows more than is done tells a reader nothing. Imports of tests count: they need the permission, too.
#[test]
fn every_allowed_import_is_used() {
    let mut used: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (path, text) in house() {
        let path = Path::new(&path);
        used.entry(module(path).remove(0)).or_default().extend(rooms_used(path, &text));
    }
    let missing: Vec<_> = ROOMS.iter().map(|room| room.name).filter(|name| !used.contains_key(*name)).collect();
    assert!(missing.is_empty(), "rooms of the table that src does not have: {missing:?}");
    let unused = |room: &Room| {
        let others = room.uses().filter(|other| !used[room.name].contains(other));
        others.map(|other| format!("{} -> {other}", room.name)).collect::<Vec<_>>()
    };
    let unused: Vec<_> = ROOMS.iter().flat_map(unused).collect();
    assert!(unused.is_empty(), "the table allows what no file does:\n{}", unused.join("\n"));
}

#[test]
fn what_a_file_uses_is_seen() {
    for (path, text, rooms) in [
        ("session/run.rs", "use crate::{dial::{self, tcp}, relay, session::Info};", "dial relay"),
        ("session/run.rs", "fn f() { super::super::log::emit(); } // crate::sys", "log"),
        ("session/mod.rs", "use super::stream::Stream; mod tests { use crate::spec::Call; }", "stream spec"),
        ("bin/pfwd.rs", "fn main() { qrexec_connect::cli::pfwd::main() }", "cli"),
        ("session/mod.rs", "use std::log; use self::dial; fn relay() {}", ""),
    ] {
        assert_eq!(rooms_used(Path::new(path), text), rooms.split_whitespace().collect(), "{path}: {text}");
    }
}

/// A file can be read with those that it imports, and without those that import it.
#[test]
fn no_file_is_in_a_circle() {
    let circles = tree().circles();
    let told: Vec<_> = circles.iter().map(ToString::to_string).collect();
    assert!(circles.is_empty(), "{} circles of imports:\n{}", circles.len(), told.join("\n"));
}

/// A face stands above its children, which it re-exports: a child imports the sibling that defines what it needs.
#[test]
fn no_child_imports_its_face() {
    let found = tree().faces_imported();
    let told: Vec<_> = found
        .iter()
        .map(|((from, to), names)| format!("{from} -> {to}: {}", names.iter().cloned().collect::<Vec<_>>().join(", ")))
        .collect();
    assert!(told.is_empty(), "children that import their face:\n{}", told.join("\n"));
}

/// `x/mod.rs`, and no `x.rs` beside `x/`. A file may have its tests in `x/tests.rs`.
#[test]
fn the_face_of_a_folder_is_in_it() {
    let house = house();
    let outside = faces_outside(house.keys().map(String::as_str));
    assert!(outside.is_empty(), "to be mod.rs in the folder of their name: {outside:?}");
}

#[test]
fn a_face_outside_its_folder_is_seen() {
    let outside = |paths: &[&str]| faces_outside(paths.iter().copied()).join(" ");
    assert_eq!(outside(&["spec/value.rs", "spec/value/word.rs", "spec/mod.rs", "lib.rs"]), "spec/value.rs");
    assert_eq!(outside(&["a.rs", "a/b.rs", "a/b/c.rs"]), "a.rs a/b.rs");
    assert_eq!(outside(&["policy.rs", "policy/tests.rs", "policies/mod.rs", "policies/one.rs"]), "");
    assert_eq!(outside(&["relay/tests.rs", "relay/tests/far.rs"]), "relay/tests.rs");
}

/// `src/README.md`, `lib.rs` and [`ROOMS`] tell the same.
#[test]
fn the_maps_of_the_house_are_the_table() {
    let table: Vec<_> = ROOMS.iter().map(|room| (room.name.to_owned(), room.uses.to_owned())).collect();
    assert_eq!(rooms_of(&read_src("README.md")), table);
    let library = read_src("lib.rs");
    let modules: BTreeSet<_> = library
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    let rooms: BTreeSet<_> = ROOMS.iter().map(|room| room.name).filter(|name| *name != "bin").collect();
    assert_eq!(modules, rooms);
    let unexplained: Vec<_> = rooms.iter().filter(|room| !library.contains(&format!("[`{room}`]"))).collect();
    assert!(unexplained.is_empty(), "not in the map of lib.rs: {unexplained:?}");
}

#[test]
fn every_file_that_the_map_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = read_src("README.md");
    let named = files_of(&map);
    assert!(named.len() >= 50, "only {} files named", named.len());
    let missing: Vec<_> =
        named.iter().filter(|file| !root.join("src").join(file).exists() && !root.join(file).exists()).collect();
    assert!(missing.is_empty(), "src/README.md names what is not there: {missing:#?}");
}

#[test]
fn what_the_map_says_is_read() {
    let map = "| room | what | it imports |\n|---|---|---|\n| `a` | one | b c |\n| `b` | `x.rs` | |\n\n| `d/e.rs` | f | g |\n";
    assert_eq!(rooms_of(map), [("a".to_owned(), "b c".to_owned()), ("b".to_owned(), String::new())]);
    assert_eq!(files_of(map), ["x.rs", "d/e.rs"]);
    assert_eq!(files_of("`a/b.rs`, `c/`, `d`, `systemctl restart`, `-calls`"), ["a/b.rs", "c/"]);
}

/// The rows of the table of rooms: each room with what it imports.
fn rooms_of(map: &str) -> Vec<(String, String)> {
    let (_, table) = map.split_once("| it imports |\n").expect("it has a table of rooms");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    cells.map(|cells| (cells[0].trim_matches('`').to_owned(), cells[2].to_owned())).collect()
}

/// What it names as code that looks like a file or a folder.
fn files_of(map: &str) -> Vec<&str> {
    let code = map.split("```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2));
    code.filter(|name| !name.contains(' ') && (name.ends_with(".rs") || name.ends_with('/'))).collect()
}

fn read_src(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file)).expect("it is there")
}

/// The files beside a folder of their name.
fn faces_outside<'a>(paths: impl Iterator<Item = &'a str> + Clone) -> Vec<&'a str> {
    let all = paths.clone();
    let beside = |path: &&str| {
        let folder = format!("{}/", path.trim_end_matches(".rs"));
        all.clone().filter_map(|other| other.strip_prefix(&folder)).any(|inside| inside != "tests.rs")
    };
    paths.filter(beside).collect()
}

/// All files of src: the path below it, and the text.
fn house() -> BTreeMap<String, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let name = |path: &Path| path.strip_prefix(&src).expect("below src").to_string_lossy().into_owned();
    let text = |path: &Path| fs::read_to_string(path).expect("a source file");
    let house: BTreeMap<_, _> = sources(&src).iter().map(|path| (name(path), text(path))).collect();
    // counted by somebody else, so that a walk that finds nothing does not pass
    let mut find = Command::new("find");
    find.arg(&src).args(["-name", "*.rs"]);
    let found = String::from_utf8_lossy(&run(find).stdout).lines().count();
    assert_eq!(house.len(), found, "files read");
    assert!(found >= 100, "only {found} files read");
    house
}

/// The imports of src.
fn tree() -> Tree {
    let house = house();
    let tree = Tree::read(house.iter().map(|(path, text)| (path.as_str(), text.as_str())));
    let arrows = tree.arrows().len();
    assert!(arrows >= 300, "only {arrows} imports read");
    tree
}

#[test]
fn each_rule_can_be_broken() {
    let crates = dependencies();
    let faults = |path: &str, text: &str| check(Path::new(path), text, &crates).join("; ");
    for (path, text, fault) in [
        ("relay/mod.rs", "use crate::spec::Call;", "relay must not use spec"),
        ("relay/mod.rs", "use crate::{stream::Stream, dial::{tcp, unix}};", "relay must not use dial"),
        ("relay.rs", "fn f() { crate::log::escape(b\"\"); }", "relay must not use log"),
        ("relay.rs", "use super::dial;", "relay must not use dial"),
        ("relay/stream.rs", "use super::super::service::Info;", "relay must not use service"),
        ("relay/stream.rs", "mod tests { use super::super::super::service; }", "relay must not use service"),
        ("relay/mod.rs", "use serde::Serialize;", "relay must not use the crate serde"),
        ("service/mod.rs", "use crate::cli;", "service must not use cli"),
        ("session/run.rs", "use super::super::listener::Posts;", "session must not use listener"),
        ("control/server.rs", "fn f() { crate::service::run() }", "control must not use service"),
        ("remote/dom0/mod.rs", "use crate::session;", "remote must not use session"),
        ("spec/mod.rs", "use tokio::time::Duration;", "spec must not use the crate tokio"),
        ("spec/mod.rs", "use std::{fs, fmt};", "spec is pure, so not std::fs"),
        ("spec/a/b.rs", "use std::{net::{IpAddr, TcpStream}};", "spec is pure, so not std::net::TcpStream"),
        ("proto/mod.rs", "fn f() { std::time::SystemTime::now(); }", "proto is pure, so not std::time::SystemTime"),
        ("activation.rs", "async fn f() { tokio::task::yield_now().await }", "activation must not use the crate tokio"),
        ("dial/tcp.rs", "fn f() { unsafe { g() } }", "unsafe belongs to sys"),
        ("dial/tcp.rs", "#![allow(unsafe_code)]", "unsafe belongs to sys"),
        ("service/mod.rs", "fn f() { std::process::exit(1) }", "only cli and report end the process"),
        ("service/mod.rs", "use std::process::{Command, exit};", "only cli and report end the process"),
        ("util.rs", "", "util is no room of the house"),
        ("bin/pfwd.rs", &"fn a() {}\n".repeat(16), "a program has at most 15 lines"),
        ("bin/pfwd.rs", "use qrexec_connect::dial::tcp;", "bin must not use dial"),
        ("lib.rs", "fn f() {}", "lib.rs has no logic"),
    ] {
        assert_eq!(faults(path, text), format!("src/{path}: {fault}"), "{text}");
    }
    for (path, text) in [
        ("relay/mod.rs", "use tokio::io; use crate::stream::{Gone, Stream}; use atomic_waker::AtomicWaker;"),
        (
            "relay/mod.rs",
            "// use crate::spec;\n/* crate::dial /* std */ */ const A: &str = \"crate::spec \\\" unsafe\";",
        ),
        (
            "relay/mod.rs",
            "const A: &str = r#\"crate::spec \" unsafe\"#; fn f<'a>(x: &'a str) { let c = '\"'; crate::stream::x(c) }",
        ),
        ("relay/stream.rs", "use super::Kind; mod tests { use super::*; use super::super::End; }"),
        ("session/run.rs", "use crate::{dial, relay::RelayEnd}; use super::super::stream::Stream;"),
        ("spec/mod.rs", "use std::{net::IpAddr, time::Duration, path::PathBuf}; use serde::Deserialize;"),
        ("spec/mod.rs", "#[cfg(test)] mod tests { use proptest::prelude::*; use super::*; }"),
        ("sys.rs", "#![allow(unsafe_code)] fn f() { unsafe { libc::close(3) }; }"),
        ("cli/mod.rs", "fn f() { std::process::exit(1) }"),
        ("bin/pfwd.rs", "fn main() -> std::process::ExitCode { qrexec_connect::cli::pfwd::main() }"),
        ("lib.rs", "//! fn of nothing\npub mod cli;"),
    ] {
        assert_eq!(faults(path, text), "", "{text}");
    }
}

/// What `text`, the file at `path` below src, does against the rules.
fn check(path: &Path, text: &str, crates: &BTreeSet<String>) -> Vec<String> {
    let parts = module(path);
    let tokens = tokens(text);
    let is = |wanted: &str| tokens.iter().any(|t| matches!(t, Token::Word(w) if w == wanted));
    let mut faults = BTreeSet::new();
    if parts == ["lib"] {
        if is("fn") || is("impl") {
            faults.insert("lib.rs has no logic".to_owned());
        }
    } else if let Some(room) = ROOMS.iter().find(|room| parts[0] == room.name) {
        if room.name == "bin" && text.lines().count() > 15 {
            faults.insert("a program has at most 15 lines".to_owned());
        }
        if room.name != UNSAFE_ROOM && (is("unsafe") || is("unsafe_code")) {
            faults.insert(format!("unsafe belongs to {UNSAFE_ROOM}"));
        }
        for path in paths(&tokens, parts.len()) {
            faults.extend(fault(room, &path, crates));
        }
    } else {
        faults.insert(format!("{} is no room of the house", parts[0]));
    }
    faults.into_iter().map(|fault| format!("src/{}: {fault}", path.display())).collect()
}

/// The module that the file at `path` below src is.
fn module(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.len() > 1 && parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The other rooms that the file at `path` with this text uses.
fn rooms_used(path: &Path, text: &str) -> BTreeSet<&'static str> {
    let module = module(path);
    let paths = paths(&tokens(text), module.len());
    let from_the_root = paths.iter().filter(|path| matches!(path[0].as_str(), "crate" | "qrexec_connect"));
    let names: Vec<_> = from_the_root.filter_map(|path| path.get(1)).collect();
    ROOMS.iter().map(|room| room.name).filter(|name| *name != module[0] && names.iter().any(|n| n == name)).collect()
}

/// What is wrong with `path` in `room`.
fn fault(room: &Room, path: &[String], crates: &BTreeSet<String>) -> Option<String> {
    let (first, second) = (path[0].as_str(), path.get(1).map(String::as_str));
    if let ("crate" | "qrexec_connect", Some(other)) = (first, second) {
        let known = ROOMS.iter().any(|r| r.name == other);
        let fine = !known || other == room.name || room.uses().any(|used| used == other);
        return (!fine).then(|| format!("{} must not use {other}", room.name));
    }
    if path.len() > 1 && crates.contains(first) {
        let fine = room.crates.is_none_or(|crates| crates.contains(&first)) && (first != "tokio" || room.tokio);
        return (!fine).then(|| format!("{} must not use the crate {first}", room.name));
    }
    let text = path.join("::");
    let impure = IMPURE.iter().find(|i| text == **i || text.starts_with(&format!("{i}::")));
    if let (true, Some(impure)) = (room.pure, impure) {
        return Some(format!("{} is pure, so not {impure}", room.name));
    }
    let ends = text.ends_with("process::exit") || text.ends_with("process::abort") || text.ends_with("libc::_exit");
    (ends && !room.may_exit).then(|| "only cli and report end the process".to_owned())
}

/// The names of `[dependencies]`, as paths have them.
fn dependencies() -> BTreeSet<String> {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("the manifest");
    let section = manifest.split("\n[").find_map(|s| s.strip_prefix("dependencies]")).expect("it has dependencies");
    let names = section.lines().filter_map(|line| line.split_once('='));
    names.map(|(name, _)| name.trim().replace('-', "_")).collect()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).expect("a directory").flatten().map(|e| e.path()).collect();
    entries.sort();
    let files = entries.into_iter().flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

/// All paths in the tokens of a file that is a module `depth` below the crate's root: groups expanded, `self` and
/// `super` left out when they stay within the room, else written as `crate`.
fn paths(tokens: &[Token], depth: usize) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut i = 0;
    // the inline modules that are open, by the depth of braces that they were opened at
    let (mut braces, mut inline) = (0, Vec::new());
    while i < tokens.len() {
        match &tokens[i] {
            Token::Word(word) if word == "mod" => {
                if let (Some(Token::Word(_)), Some(Token::Other('{'))) = (tokens.get(i + 1), tokens.get(i + 2)) {
                    inline.push(braces);
                }
                i += 2; // the name; the brace comes next
                continue;
            }
            Token::Word(_) if i == 0 || tokens[i - 1] != Token::Path => {
                let mut here = Vec::new();
                i = read_path(tokens, i, &[], &mut here);
                found.extend(here.into_iter().filter_map(|path| resolve(path, depth + inline.len())));
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
    found
}

/// Reads the path that begins with the word at `i`; where what follows it begins.
fn read_path(tokens: &[Token], mut i: usize, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    while let Some(Token::Word(word)) = tokens.get(i) {
        path.push(word.clone());
        i += 1;
        if tokens.get(i) != Some(&Token::Path) {
            break;
        }
        i += 1;
        if tokens.get(i) == Some(&Token::Other('{')) {
            i += 1;
            while let Some(token) = tokens.get(i) {
                match token {
                    Token::Word(_) => i = read_path(tokens, i, &path, found),
                    Token::Other('}') => return i + 1,
                    _ => i += 1,
                }
            }
        }
    }
    found.push(path);
    i
}

/// A path as seen from the crate's root, if it leads there; None, if it stays where it is.
fn resolve(path: Vec<String>, depth: usize) -> Option<Vec<String>> {
    let up = path.iter().take_while(|part| *part == "super").count();
    if path[0] == "self" || (up > 0 && up < depth) {
        return None;
    }
    if up == 0 {
        return Some(path);
    }
    Some([&["crate".to_owned()], &path[up..]].concat())
}

/// The table names no room twice, and none that nobody may enter and that does not exist.
#[test]
fn the_table_is_a_table() {
    let mut seen = BTreeMap::new();
    for room in ROOMS {
        assert!(seen.insert(room.name, ()).is_none(), "{} twice", room.name);
        for used in room.uses() {
            assert!(ROOMS.iter().any(|r| r.name == used), "{} uses {used}, which is no room", room.name);
        }
    }
    // no room uses one that, by whatever way, uses it
    for room in ROOMS {
        let mut reached: BTreeSet<&str> = room.uses().collect();
        for _ in ROOMS {
            let more = ROOMS.iter().filter(|r| reached.contains(r.name)).flat_map(Room::uses);
            reached.extend(more.collect::<Vec<_>>());
        }
        assert!(!reached.contains(room.name), "{} uses itself in the end", room.name);
    }
}

/// `control/api.rs` has the words of the Varlink interface, which nobody may rename. Code always writes them with
/// `api::` before.
const MAY_REPEAT: [&str; 1] = ["control/api.rs"];

#[test]
fn no_type_name_has_two_meanings() {
    let house = house();
    let files = house.iter().filter(|(path, _)| !path.contains("tests") && !MAY_REPEAT.contains(&path.as_str()));
    let mut seen: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (path, text) in files {
        for name in types(&tokens(text)) {
            seen.entry(name).or_default().push(path);
        }
    }
    assert!(seen.len() >= 300, "only {} types read", seen.len());
    seen.retain(|_, paths| paths.len() > 1);
    assert!(seen.is_empty(), "{} names stand for two things: {seen:#?}", seen.len());
}

#[test]
fn types_are_read_from_a_text() {
    let read = |text: &str| types(&tokens(text)).join(" ");
    assert_eq!(read("pub struct A { b: B } enum C<T> { D } pub(crate) trait E: F { type G; } type H = I;"), "A C E H");
    assert_eq!(read("impl A for B { type C = D; fn e() { struct F; } } mod g { struct H; } struct J(K);"), "J");
    assert_eq!(read("// struct A;\nmacro_rules! b { () => { struct C; } } struct D;"), "D");
}

/// The names of the structs, enums, traits and aliases that stand in no braces.
fn types(tokens: &[Token]) -> Vec<String> {
    let mut braces = 0;
    let mut names = Vec::new();
    for pair in tokens.windows(2) {
        match pair {
            [Token::Other('{'), _] => braces += 1,
            [Token::Other('}'), _] => braces -= 1,
            [Token::Word(what), Token::Word(name)]
                if braces == 0 && matches!(what.as_str(), "struct" | "enum" | "trait" | "type") =>
            {
                names.push(name.clone());
            }
            _ => {}
        }
    }
    names
}
