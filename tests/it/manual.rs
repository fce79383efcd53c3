//! The manual and the completions say what the programs do: what is made from the definitions is what is committed, and
//! what people wrote names every key, field and default that there is.

use std::{fs, io::Write as _, os::unix::fs::symlink, path::Path, process::Command};

use qrexec_connect::{
    cli::{EXIT_CODES, connect, dom0, lan, pfwd, remote},
    spec::{Config, KeyName, Options},
};

use crate::support::{Activation, FakeQrexec, bare, eventually, example, run};

fn packaging() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging"))
}

fn page(name: &str) -> String {
    // hyphens that are minus signs are of no interest here
    fs::read_to_string(packaging().join("man").join(name)).expect("a page").replace("\\-", "-")
}

#[test]
fn pages_and_completions_are_those_that_follow_from_the_definitions() {
    let made = tempfile::tempdir().expect("a directory");
    let mut generate = Command::new(example("generate"));
    generate.arg(made.path());
    let output = run(generate);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut compared = 0;
    for dir in ["man", "completions"] {
        let names = |root: &Path| -> Vec<_> {
            let entries = fs::read_dir(root.join(dir)).expect("a directory").flatten();
            let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().expect("plain")).collect();
            names.retain(|name| !name.ends_with(".in"));
            names.sort();
            names
        };
        assert_eq!(names(made.path()), names(packaging()), "files in packaging/{dir}");
        for name in names(packaging()) {
            let read = |root: &Path| fs::read_to_string(root.join(dir).join(&name)).expect("a file");
            let same = read(made.path()) == read(packaging());
            assert!(same, "packaging/{dir}/{name} is out of date: cargo run --example generate -- packaging");
            compared += 1;
        }
    }
    assert!(compared >= 19, "only {compared} files compared");
}

#[test]
fn every_key_is_in_the_manual() {
    let manual = page("pfwd.toml.5");
    for key in KeyName::ALL {
        let name = key.name();
        let headings = [format!(".B {name}\n"), format!(".BR {name} \""), format!("\" {name}\n")];
        assert!(headings.iter().any(|heading| manual.contains(heading)), "{name}");
    }
    for word in ["uds_dir", "log_level", "qubesdb_ports"] {
        assert!(manual.contains(&format!(".B {word}\n")), "{word}");
    }
}

/// A part of a page as the reader sees it.
fn plain(text: &str) -> String {
    text.replace("\\(aq", "'").replace("\\(ga", "`").replace("\\e", "\\")
}

#[test]
fn every_key_has_an_example_that_is_a_forward() {
    let (of_file, of_unit) = (page("pfwd.toml.5"), page("qrexec-connect.socket.5"));
    let (_, options) = of_unit.split_once("\n.SH OPTIONS\n").expect("options");
    let mut of_names = 0;
    for key in KeyName::ALL {
        let (line, beside) = (key.example(), key.beside_example());
        assert!(plain(&of_file).contains(&format!("\n.EX\n{line}\n.EE\n")), "no example: {line}");
        let text = format!("[[forward]]\n{beside}{line}\n");
        let (_, plan) = Config::gather(Some(("the example", &text)), [""; 0]).unwrap_or_else(|e| panic!("{text}{e}"));
        assert_eq!(plan.forwards.len(), 1, "{text}");
        // the same key in a list
        let item = |line: &str| line.replace(" = ", "=").replace('"', "");
        let items: Vec<String> = beside.lines().chain([line]).map(item).collect();
        let argument = items.join(",");
        Config::gather(None, [&argument]).unwrap_or_else(|e| panic!("{argument}: {e}"));
        let example = plain(options).contains(&format!("\n.EX\n{}\n.EE\n", item(line)));
        let heading = [format!("\n.B {}\n", key.name()), format!("\n.BR {} \"", key.name())];
        let listed = heading.iter().any(|heading| options.contains(heading));
        assert!(example || !listed, "no example of an option: {}", item(line));
        of_names += usize::from(example);
    }
    assert!(of_names >= 18, "only {of_names} options have examples");
    let defaults = of_file.split(".EX\n").skip(1).map(|rest| rest.split_once(".EE").expect("an end").0);
    let mut files = 0;
    for example in defaults.filter(|example| example.starts_with("[defaults]")) {
        Config::gather(Some(("pfwd.toml(5)", &plain(example))), [""; 0]).unwrap_or_else(|e| panic!("{example}{e}"));
        files += 1;
    }
    assert_eq!(files, 2);
}

#[test]
fn man_k_finds_every_page_by_a_name_and_a_description() {
    let pages = fs::read_dir(packaging().join("man")).expect("a folder").flatten().map(|entry| entry.path());
    let mut seen = 0;
    for path in pages.filter(|path| path.extension().is_some_and(|e| e != "in")) {
        let name = path.file_stem().expect("a name").to_str().expect("a plain name");
        let text = page(path.file_name().expect("a name").to_str().expect("a plain name"));
        let (_, line) = text.split_once("\n.SH NAME\n").expect("a name");
        let line = line.split("\n.SH ").next().expect("a first section").trim_end().replace('\n', " ");
        let (names, what) = line.split_once(" - ").unwrap_or_else(|| panic!("{name}: {line}"));
        assert!(names.split(", ").any(|known| known == name), "{name}: {line}");
        assert!(!what.is_empty() && !what.ends_with('.') && line.len() <= 110, "{name}: {line}");
        assert!(text.starts_with(".\\\"") && text.contains(&format!("\n.TH {} ", name.to_uppercase())), "{name}: .TH");
        seen += 1;
        // what the index of man-db is made of
        let mut lexgrog = Command::new("lexgrog");
        lexgrog.arg(&path);
        let Ok(output) = lexgrog.output() else { continue };
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        for known in names.split(", ") {
            assert!(found.contains(&format!("\"{known} - {what}\"")), "lexgrog of {name}: {found}");
        }
    }
    assert!(seen >= 8, "only {seen} pages");
}

#[test]
fn defaults_in_the_manual_and_the_pages_are_those_of_the_code() {
    let Options {
        max_connections,
        connect_timeout,
        setup_timeout,
        max_setups,
        idle_timeout,
        udp_idle_timeout,
        drain_timeout,
        keepalive,
        ..
    } = Options::default();
    assert_eq!(idle_timeout, None);
    let defaults = [
        ("max_connections", max_connections.to_string()),
        ("connect_timeout", connect_timeout.as_secs().to_string()),
        ("setup_timeout", setup_timeout.as_secs().to_string()),
        ("max_setups", max_setups.to_string()),
        ("max_calls", "32".to_owned()),
        ("idle_timeout", "off".to_owned()),
        ("drain_timeout", drain_timeout.as_secs().to_string()),
        ("keepalive", keepalive.to_string()),
    ];
    let options = include_str!("../../packaging/doc/qubes.md");
    for (key, value) in &defaults {
        assert!(options.contains(&format!("| `{key}` | {value} |")), "qubes.md: {key} is {value} by default");
    }
    let udp = ("udp_idle_timeout", udp_idle_timeout.as_secs().to_string());
    for (name, keys) in
        [("qrexec-connect.socket.5", defaults.to_vec()), ("pfwd.toml.5", [&defaults[..], &[udp]].concat())]
    {
        let page = page(name);
        for (key, value) in keys {
            let (_, text) = page.split_once(&format!(".B {key}\n")).unwrap_or_else(|| panic!("{name}: {key}"));
            let text = text.split(".TP").next().expect("there is a first");
            assert!(text.contains(&format!("({value})")), "{name}: {key} is {value} by default, not as in {text}");
        }
    }
}

#[test]
fn every_field_of_the_journal_is_in_the_manual() {
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/log/journal.rs")).expect("the source");
    let manual = page("qrexec-connect.journal.7");
    let (_, fields) = source.split_once("target: \"qrexec_connect\",").expect("the event that journald gets");
    let fields = fields.split_once("\"{}\"").expect("its message").0;
    let mut seen = 0;
    for field in fields.lines().filter_map(|line| Some(line.split_once(" = ")?.0.trim())) {
        let heading = [format!("\n.B {field}\n"), format!("\n.BR {field} \""), format!("\" {field}\n")];
        let there = heading.iter().any(|heading| manual.contains(heading));
        assert!(there, "{field} is not in qrexec-connect.journal(7)");
        assert!(manual.contains(&format!("\n{field}=")), "{field} has no example in qrexec-connect.journal(7)");
        seen += 1;
    }
    assert!(seen >= 14, "only {seen} fields seen");
}

/// The words of an enumeration in the source, as serde writes them: in lower case.
fn variants(source: &str, name: &str) -> Vec<String> {
    let (_, body) = source.split_once(&format!("enum {name} {{")).unwrap_or_else(|| panic!("no {name}"));
    let body = body.split_once("\n}").expect("it ends").0;
    let variant = |line: &str| {
        let word = line.trim().strip_suffix(',')?;
        word.chars().all(char::is_alphanumeric).then(|| word.to_lowercase())
    };
    body.lines().filter_map(variant).collect()
}

/// All text of the files of a folder of `src`.
fn source(folder: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
    let files = fs::read_dir(dir).expect("a folder").flatten().map(|entry| entry.path());
    files.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).expect("a source file")).collect()
}

#[test]
fn every_command_state_field_and_exit_code_is_in_the_manual_of_its_program() {
    fn commands(command: &clap::Command, manual: &str, seen: &mut usize) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            let heading = format!("\n.SS {}", sub.get_name());
            let ends = |rest: &str| rest.starts_with([' ', '\n']);
            assert!(manual.split(&heading).skip(1).any(ends), "{} is in no heading", sub.get_name());
            *seen += 1;
            commands(sub, manual, seen);
        }
    }
    let control = source("cli/control");
    let interface =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/control/org.qrexec-connect.Control.varlink"));
    let interface = interface.expect("the interface");
    for (name, command, most) in [("pfwd.1", pfwd::command(), 9), ("qrexec-connect.1", connect::command(), 12)] {
        let (manual, mut seen) = (page(name), 0);
        commands(&command, &manual, &mut seen);
        assert!(seen >= most, "{name}: only {seen} commands seen");
        for word in variants(&control, "RowState").iter().chain(&variants(&control, "TrialStep")) {
            let there = [format!(".B {word}\n"), format!(".BR {word} ,")].iter().any(|text| manual.contains(text));
            assert!(there, "{name}: the state or step {word}");
        }
        // types, fields, states, methods and errors of the interface, as they are
        for line in interface.lines() {
            assert!(manual.contains(&line.replace('\'', "\\(aq").replace('`', "\\(ga")), "{name}: {line}");
        }
        let help = command.clone().render_long_help().to_string();
        for (code, _) in EXIT_CODES {
            assert!(manual.contains(&format!("\n.B {code}\n")), "{name}: exit code {code}");
            assert!(help.contains(&format!("\n  {code:>2}  ")), "--help of {name}: exit code {code}");
        }
        for page in ["(1)", "(5)"] {
            assert!(help.contains(page), "--help of {name} names no manual");
        }
    }
    let help = pfwd::command().render_long_help().to_string();
    for key in KeyName::ALL {
        assert!(help.split_whitespace().any(|word| word == key.name()), "pfwd --help: {}", key.name());
    }
    let remote = page("qvm-remote-dom0.8");
    commands(&dom0::command(), &remote, &mut 0);
}

/// The lines of the examples of a page, without comments.
fn examples(page: &str) -> Vec<String> {
    let blocks = page.split("\n.EX\n").skip(1).map(|rest| rest.split_once("\n.EE").expect("an end").0);
    let lines = blocks.flat_map(|block| plain(block).lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| line.split(" # ").next().expect("a first part").trim().to_owned()).collect()
}

/// The words of a line as a shell makes them, for quotes of one kind.
fn shell_words(line: &str) -> Vec<String> {
    let parts = line.split(['"', '\'']).enumerate();
    parts
        .flat_map(|(at, part)| if at % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_and_option_has_an_example_that_the_program_understands() {
    fn options(command: &clap::Command, path: &str, all: &mut Vec<(String, String)>) {
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(clap::Arg::get_long);
        all.extend(shown.map(|long| (path.to_owned(), format!("--{long}"))));
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            all.push((path.to_owned(), sub.get_name().to_owned()));
            options(sub, sub.get_name(), all);
        }
    }
    for (file, command, least) in [
        ("pfwd.1", pfwd::command(), 20),
        ("qrexec-connect.1", connect::command(), 20),
        ("qvm-remote-dom0.8", dom0::command(), 20),
        ("qvm-forward.8", lan::command(), 8),
    ] {
        let program = command.get_name().to_owned();
        let lines: Vec<Vec<String>> = examples(&page(file))
            .iter()
            .filter(|line| line.starts_with(&format!("{program} ")) && !line.contains(" | ") && !line.ends_with('\\'))
            .map(|line| shell_words(line))
            .collect();
        assert!(lines.len() >= least, "{file}: {lines:?}");
        for words in &lines {
            let mut words = words.clone();
            words.iter_mut().filter(|word| *word == "ID").for_each(|word| *word = "0123456789ab".to_owned());
            let read = command.clone().try_get_matches_from(&words);
            assert!(read.is_ok(), "{file}: {words:?}: {}", read.expect_err("not understood"));
        }
        let mut all = Vec::new();
        options(&command, "", &mut all);
        // of options that several commands have, one example is enough
        for (path, word) in all.iter().filter(|(_, word)| !["--help", "--version"].contains(&word.as_str())) {
            let there = |words: &Vec<String>| words.iter().any(|w| w == word || w.starts_with(&format!("{word}=")));
            assert!(lines.iter().any(there), "{file}: no example has {path} {word}");
        }
    }
    let lines = examples(&page("qvm-remote.1"));
    for name in remote::OPTIONS.iter().map(|option| option.long).filter(|long| !["help", "version"].contains(long)) {
        let option = format!(" --{name} ");
        assert!(lines.iter().any(|line| line.contains(&option)), "qvm-remote.1: no example has{option}");
    }
    for verb in remote::VERBS {
        let command = format!("qvm-remote {}", verb.name);
        assert!(lines.iter().any(|line| line.starts_with(&command)), "qvm-remote.1: no example has {command}");
    }
}

#[test]
fn every_state_of_a_listener_is_in_an_example() {
    let states = variants(&source("cli/control"), "RowState");
    for file in ["pfwd.1", "qrexec-connect.1"] {
        let lines = examples(&page(file));
        for state in &states {
            let shown = if state == "refused" { "error" } else { state };
            assert!(lines.iter().any(|line| line.split_whitespace().any(|word| word == shown)), "{file}: {state}");
        }
    }
}

#[test]
fn each_manual_has_its_sections_and_refers_to_manuals_that_there_are() {
    let folder = fs::read_dir(packaging().join("man")).expect("a folder").flatten();
    let names = folder.map(|entry| entry.file_name().into_string().expect("a plain name"));
    let names: Vec<String> = names.filter(|name| !name.ends_with(".in")).collect();
    assert!(names.len() >= 8, "{names:?}");
    let (mut references, mut referred) = (0, Vec::new());
    for name in &names {
        let page = page(name);
        let (commands, all) = (["EXIT STATUS", "FILES", "EXAMPLES"], ["NAME", "DESCRIPTION", "SEE ALSO"]);
        let of_a_program = name.ends_with(".1") || name.ends_with(".8");
        for section in commands.iter().filter(|_| of_a_program).chain(&all) {
            assert!(page.contains(&format!("\n.SH {section}\n")), "{name} has no {section}");
        }
        assert!(page.contains("\n.EX\n"), "{name} has no example");
        for line in page.lines().filter_map(|line| line.strip_prefix(".BR ")) {
            let Some((called, rest)) = line.split_once(" (") else { continue };
            let ours = ["qrexec-connect", "pfwd", "qvm-"].iter().any(|program| called.starts_with(program));
            if ours && rest.starts_with(|c: char| c.is_ascii_digit()) {
                referred.push(format!("{called}.{}", &rest[..1]));
                assert!(names.contains(&format!("{called}.{}", &rest[..1])), "{name}: {line}: no such manual");
                references += 1;
            }
        }
    }
    assert!(references >= 20, "only {references} references");
    let lonely: Vec<_> = names.iter().filter(|name| !referred.contains(name)).collect();
    assert!(lonely.is_empty(), "no manual refers to {lonely:?}");
}

#[test]
fn each_example_in_the_manual_is_a_configuration() {
    let manual = page("pfwd.toml.5");
    let examples = manual.split(".EX\n").skip(1).map(|rest| rest.split_once(".EE").expect("an end").0);
    let mut forwards = Vec::new();
    for example in examples.filter(|example| example.contains("[[forward]]")) {
        let text = plain(example);
        let (_, plan) = Config::gather(Some(("pfwd.toml(5)", &text)), [""; 0]).expect("it has a meaning");
        assert_eq!(plan.forwards.len() + plan.waiting.len(), text.matches("[[forward]]").count());
        forwards.push(text.matches("[[forward]]").count());
    }
    forwards.sort_unstable();
    assert_eq!(forwards, [1, 5]);
}

/// What bash offers for a line, by the completion that is installed.
fn completed(home: &Path, line: &str) -> Vec<String> {
    let script = "source \"$1\"; COMP_WORDS=($2); [[ $2 != *' ' ]] || COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); \
        COMP_TYPE=9; word=${COMP_WORDS[COMP_CWORD]}; compopt() { :; }; \
        _clap_complete_qrexec_connect qrexec-connect \"$word\" ''; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--norc", "-c", script, "bash"]);
    bash.arg(packaging().join("completions/qrexec-connect.bash")).arg(line);
    let bin = home.join("bin");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    bare(&mut bash).env("PATH", path).env("HOME", home).env("XDG_RUNTIME_DIR", home.join("run"));
    let output = run(bash);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_shell_completes_commands_options_and_the_units_that_are_there() {
    let home = tempfile::tempdir().expect("a directory");
    for dir in ["bin", ".config/systemd/user"] {
        fs::create_dir_all(home.path().join(dir)).expect("ours");
    }
    symlink(env!("CARGO_BIN_EXE_qrexec-connect"), home.path().join("bin/qrexec-connect")).expect("ours");
    for unit in ["qrexec-connect-gitweb.socket", "qrexec-connect-mail.socket", "other.socket"] {
        let text = "[Socket]\nListenStream=127.0.0.1:1\nFileDescriptorName=@default a.B\n";
        fs::write(home.path().join(".config/systemd/user").join(unit), text).expect("ours");
    }
    assert_eq!(completed(home.path(), "qrexec-connect rem"), ["remove"]);
    assert_eq!(completed(home.path(), "qrexec-connect remove g"), ["gitweb"]);
    assert_eq!(completed(home.path(), "qrexec-connect check qrexec-connect-m"), ["qrexec-connect-mail.socket"]);
    let hidden = completed(home.path(), "qrexec-connect stand");
    assert!(!hidden.contains(&"stand-in".to_owned()), "{hidden:?}");
    assert!(completed(home.path(), "qrexec-connect serve --q").contains(&"--qrexec-client".to_owned()));
}

#[test]
fn a_shell_completes_the_sessions_and_listeners_of_the_running_service() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).with_control().tcp("work test.Echo").start().ready();
    let home = service.dir();
    fs::create_dir_all(home.join("bin")).expect("ours");
    symlink(env!("CARGO_BIN_EXE_qrexec-connect"), home.join("bin/qrexec-connect")).expect("ours");
    let none = completed(home, "qrexec-connect kill ");
    let is_id = |word: &String| word.len() == 36 && !word.contains(['.', ':']);
    assert!(!none.iter().any(is_id), "no session yet: {none:?}");
    let mut peer = service.connect(0);
    peer.write_all(b"hello").expect("connected");
    peer.expect(b"hello");
    let id =
        service.asking().ok(&["sessions", "--json"]).json()["sessions"][0]["id"].as_str().expect("text").to_owned();
    eventually("the session is offered", || completed(home, "qrexec-connect kill ").contains(&id));
    let listeners = completed(home, "qrexec-connect pause 127");
    assert_eq!(listeners, [format!("127.0.0.1:{}", service.port(0))]);
    service.stop();
}
