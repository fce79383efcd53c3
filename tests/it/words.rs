//! What a user reads is plain: no riddles in pages, help and messages; messages are short, their plurals right, and one
//! thing has one name.

use std::{fs, path::Path};

use crate::readme::{files, root};

/// The most characters of a message before its hint.
const MESSAGE: usize = 160;

/// Words that a reader who is no native speaker of English reads twice, each with the plainer ones.
const RIDDLES: &[(&str, &str)] = &[
    ("all the same", "still"),
    ("anew", "again"),
    ("are told", "get, see"),
    ("are wanted", "are needed; write …"),
    ("as such", "leave it out"),
    ("be told", "get, see"),
    ("begins so", "starts with this"),
    ("be had", "be used, be found"),
    ("brings another", "depends on another"),
    ("by itself", "name who does it"),
    ("by themselves", "name who does it"),
    ("came to nothing", "failed"),
    ("comes to nothing", "fails"),
    ("elsewhere or otherwise", "changed"),
    ("is told", "gets, sees"),
    ("is said", "the message says"),
    ("is tried again", "pfwd retries"),
    ("is wanted", "is needed; write …"),
    ("it said", "its message is"),
    ("left alone", "not touched"),
    ("likewise", "the same for …"),
    ("make no sense", "are wrong"),
    ("makes no sense", "is wrong"),
    ("mended", "corrected"),
    ("of its own", "its own, separate"),
    ("of one's own", "local"),
    ("that is none", "that is not valid"),
    ("the former", "name it"),
    ("the latter", "name it"),
    ("tried again", "retries"),
    ("was told", "got, saw"),
    ("what listens", "the listener"),
    ("where it is meant", "to allow it"),
    ("whence", "from where"),
];

#[test]
fn no_riddle_is_in_what_a_user_reads() {
    let folder = |folder: &str, ends: &[&str]| {
        let all = files(&root().join("packaging").join(folder)).into_iter();
        all.filter(|file| ends.iter().any(|end| file.ends_with(end))).collect::<Vec<_>>()
    };
    // a manual has the help of its program, options and commands
    let manuals = folder("man", &[".1", ".5", ".7", ".8"]);
    let texts = [folder("doc", &[".md"]), folder("catalog", &[".catalog"]), folder("monitoring", &[".yml"]), manuals];
    let texts = texts.into_iter().flatten().chain(["units", "dropins"].iter().flat_map(|dir| files(&root().join(dir))));
    let pages = ["README.md", "src/README.md", "packaging/CHANGELOG.md", "packaging/hardening.md"];
    let texts: Vec<_> = texts.chain(pages.map(|page| root().join(page).display().to_string())).collect();
    assert!(texts.len() >= 15, "{texts:?}");
    let mut texts: Vec<_> = texts.into_iter().map(|file| (fs::read_to_string(&file).expect("text"), file)).collect();
    texts.extend(literals().into_iter().map(|literal| (literal.text, literal.file)));
    let mut found = Vec::new();
    for (text, file) in texts {
        let text = text.to_lowercase();
        // a mark between two words parts them
        let marked = text.replace(|c: char| c.is_ascii_punctuation() && c != '\'', " | ");
        let text = format!(" {} ", marked.split_whitespace().collect::<Vec<_>>().join(" "));
        for (riddle, plainer) in RIDDLES.iter().filter(|(riddle, _)| text.contains(&format!(" {riddle} "))) {
            found.push(format!("{file}: \"{riddle}\": write: {plainer}"));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// A text in quotes of a program, with the code before it.
struct Literal {
    file: String,
    before: String,
    text: String,
}

/// The texts in quotes of the programs, without those of tests, comments, and what a panic says.
fn literals() -> Vec<Literal> {
    let mut all = Vec::new();
    let of_tests = ["/tests", "/captures.rs", "/fixture.rs", "/model.rs"];
    for path in files(&root().join("src")).into_iter().filter(|path| path.ends_with(".rs")) {
        if of_tests.iter().any(|part| path.contains(part)) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let text = text.split_once("#[cfg(test)]\nmod tests").map_or(&*text, |(program, _)| program);
        let file = Path::new(&path).strip_prefix(root()).expect("below it").display().to_string();
        let mut rest = text;
        let mut before = String::new();
        while let Some(c) = rest.chars().next() {
            if rest.starts_with("//") {
                rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            } else if let Some(raw) = rest.strip_prefix("r\"") {
                rest = raw.split_once('"').expect("it ends").1;
            } else if c == '"' {
                let (literal, end) = quoted(&rest[1..]);
                all.push(Literal { file: file.clone(), before: before.clone(), text: literal });
                rest = &rest[1 + end..];
                before.clear();
            } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
                rest = &rest[rest[1..].find("'").expect("it ends") + 2..];
            } else {
                before.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    all.retain(|literal| !literal.before.trim_end().ends_with("expect("));
    assert!(all.len() > 1500, "only {} texts seen", all.len());
    all
}

/// A text up to its closing quote, as the program has it, and where the code goes on.
fn quoted(rest: &str) -> (String, usize) {
    let (mut text, mut chars) = (String::new(), rest.char_indices().peekable());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, at + 1),
            '\\' => match chars.next().expect("something is escaped").1 {
                '\n' => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                'n' => text.push('\n'),
                other => text.push(other),
            },
            c => text.push(c),
        }
    }
    panic!("a text that does not end: {text}");
}

/// Arguments of messages, as long as they are on a usual machine; all others have 12 characters.
const ARGUMENTS: &[(&str, &str)] = &[
    ("addr", "192.168.31.201:2222"),
    ("at", "/run/user/1000/qdhcp/ssh.sock"),
    ("file", "/etc/pfwd.toml.d/web.toml"),
    ("flag", "--user "),
    ("hint", ""),
    ("id", "0b71b4f6-91ad-4724-8fb3-72fd52e33837"),
    ("listener", "127.0.0.1:1234"),
    ("more", ""),
    ("name", "qrexec-connect-gitweb.socket"),
    ("path", "/run/user/1000/qdhcp/ssh.sock"),
    ("program", "qrexec-connect"),
    ("service", "qubes.ConnectTCP+1234"),
    ("target", "192.168.31.201:2222"),
    ("to", "192.168.31.201:2222"),
    ("unit", "qrexec-connect-gitweb.socket"),
    ("vm", "work-web"),
];

/// The message that a template makes of these arguments.
fn filled(template: &str) -> String {
    let (mut text, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once('{') {
        text += before;
        if let Some(after) = after.strip_prefix('{') {
            (text, rest) = (text + "{", after);
            continue;
        }
        let (argument, after) = after.split_once('}').unwrap_or((after, ""));
        let name = argument.split_once(':').map_or(argument, |(name, _)| name);
        let known = ARGUMENTS.iter().find(|(argument, _)| *argument == name);
        text += known.map_or("xxxxxxxxxxxx", |(_, value)| value);
        rest = after;
    }
    text + rest
}

/// Texts that are no messages: scripts, and entries of logs that programs read.
fn is_message(literal: &Literal) -> bool {
    let record = literal.text.starts_with("rule=") || literal.file.ends_with("remote/v1.rs");
    let help = literal.before.trim_end().ends_with("about =") || literal.file.ends_with("usage.rs");
    literal.text.contains(' ') && !record && !help
}

#[test]
fn a_message_has_at_most_160_characters_before_its_hint() {
    let hints = ["hint(", "note(", "fix(", "let hint =", "HINT: &str =", "CAPABILITY: &str ="];
    let mut long = Vec::new();
    let mut seen = 0;
    for literal in literals().iter().filter(|literal| is_message(literal)) {
        let before = literal.before.trim_end().trim_end_matches("format!(").trim_end();
        if hints.iter().any(|hint| before.ends_with(hint)) {
            continue;
        }
        seen += 1;
        // what to do comes behind a semicolon, or in the next line
        for line in filled(&literal.text).lines().filter(|_| !literal.text.contains("\n\n")) {
            let what = line.split("; ").next().expect("there is a first");
            if what.chars().count() > MESSAGE {
                long.push(format!("{}: {} characters: {what}", literal.file, what.chars().count()));
            }
        }
    }
    assert!(long.is_empty() && seen > 1000, "{seen} messages, {long:#?}");
}

/// Nouns that a number may stand before.
const NOUNS: &[&str] = &[
    "bytes",
    "calls",
    "commands",
    "connections",
    "crashes",
    "datagrams",
    "descriptors",
    "entries",
    "errors",
    "events",
    "files",
    "forwards",
    "hops",
    "keys",
    "lines",
    "listeners",
    "messages",
    "namespaces",
    "ports",
    "processes",
    "qubes",
    "refusals",
    "requests",
    "rules",
    "sessions",
    "tokens",
    "units",
    "warnings",
];

/// Texts with a number that is never 1, each with the reason.
const PLURAL: &[(&str, &str)] = &[
    ("bytes, and {MAX_NAME} are the most", "longer than the most"),
    ("bytes, and qrexec would cut it off after", "longer than the most"),
    ("has at most {MAX_UNIX} bytes", "a constant"),
    ("at most {MAX_QUBE_NAME} bytes", "a constant"),
    ("at most {MAX_SERVICE} bytes", "a constant"),
    ("> {MAX_COMMAND} bytes", "a constant"),
    ("more than {MAX_PATH} bytes", "a constant"),
    ("more than {most} bytes", "a constant"),
    ("larger than {max} bytes", "a constant"),
    ("bytes, sha256 ", "a text that is cut because it is long"),
    ("a qube has at most {MOST} forwards", "a constant"),
    ("oversized ({n} bytes)", "longer than a frame"),
    ("the range {range} has {} ports", "more than the most"),
    ("{name} has {count} ports", "a range has two"),
    ("and on {n} more ports of the range", "1 is written out beside it"),
    ("the same holds for {n} more ports", "1 is written out beside it"),
    ("{n} more listeners of this forward", "1 is written out beside it"),
    ("{own} listeners", "1 is written out beside it"),
    ("{n} sessions were open", "1 is written out beside it"),
    ("{n} sessions could not go on", "1 is written out beside it"),
    ("{n} datagrams", "1 is written out beside it"),
    ("{} sessions have an id that begins", "ambiguous"),
    ("{} listeners of one forward", "more than the most"),
    ("all {} listeners work", "the demo has three"),
    ("{broken} of {} requests failed", "the demo has three"),
    ("may need {needed} descriptors", "more than the limit"),
    ("there are more than {} files", "a constant"),
    ("{MOST} forwards are declared already", "a constant"),
    ("the value has {} bytes", "more than the most"),
    ("{length} bytes of data", "more than the most"),
];

#[test]
fn one_of_something_is_not_called_many() {
    let mut found = Vec::new();
    let mut used = vec![false; PLURAL.len()];
    for Literal { file, text, .. } in literals() {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |word: &str| word.trim_start_matches(['(', '[']).starts_with('{') && word.ends_with('}');
        let plural = |word: &str| NOUNS.contains(&word.trim_end_matches(|c: char| !c.is_alphanumeric()));
        let after = |at: usize| words.get(at).is_some_and(|word| plural(word));
        let more = |at: usize| words.get(at) == Some(&"more") && after(at + 1);
        let counted = (0..words.len()).any(|at| number(words[at]) && (after(at + 1) || more(at + 1)));
        let either = text.contains("(s)") && !file.ends_with("remote/v1.rs"); // that is a script
        if !counted && !either {
            continue;
        }
        match PLURAL.iter().position(|(known, _)| text.contains(known)) {
            Some(at) => used[at] = true,
            None => found.push(format!("{file}: {text}: use log::counted")),
        }
    }
    let unused: Vec<_> = PLURAL.iter().zip(&used).filter(|(_, used)| !**used).map(|(known, _)| known.0).collect();
    assert!(found.is_empty() && unused.is_empty(), "{found:#?}, no longer there: {unused:?}");
}

/// What is wrong with a text is an error for a user; "fault" is a word of the code.
#[test]
fn what_is_wrong_has_one_name_in_messages() {
    let is_fault = |text: &str| {
        let placeholders = text.split('{').map(|part| part.split_once('}').map_or(part, |(_, rest)| rest));
        let words = placeholders.collect::<String>().to_lowercase();
        words.split(|c: char| !c.is_alphanumeric()).any(|word| matches!(word, "fault" | "faults" | "faulty"))
    };
    let found: Vec<_> = literals()
        .into_iter()
        .filter(|literal| literal.text.contains(' ') && is_fault(&literal.text))
        .map(|literal| format!("{}: {}", literal.file, literal.text))
        .collect();
    assert!(found.is_empty(), "write error: {found:#?}");
}
