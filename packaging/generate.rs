//! Writes what follows from the definitions: the manual pages' options and entries, and the shells' completions.
//!
//!     cargo run --example generate -- packaging
//!
//! `packaging/man/*.in` are the pages as people write them; `@WORD@` in a separate line is filled in here. A test
//! compares what is committed with what this writes.

use std::{env, fs, path::Path};

use clap::{Arg, ArgAction, Command};
use clap_complete::{
    aot,
    env::{Bash, EnvCompleter, Fish, Zsh},
};
use qrexec_connect::{
    cli::{connect, dom0, lan, pfwd, remote},
    log::{Kind, Level},
    spec::KeyName,
};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let out = env::args_os().nth(1).expect("usage: generate DIRECTORY");
    let (man, completions) = (Path::new(&out).join("man"), Path::new(&out).join("completions"));
    for dir in [&man, &completions] {
        fs::create_dir_all(dir).expect("the directory can be made");
    }
    let mut pages = 0;
    for entry in fs::read_dir(root.join("man")).expect("packaging/man").flatten() {
        let name = entry.file_name().into_string().expect("plain names");
        let Some(page) = name.strip_suffix(".in") else { continue };
        let text = fs::read_to_string(entry.path()).expect("a page");
        fs::write(man.join(page), fill(page, &text, &root)).expect("a page can be written");
        pages += 1;
    }
    assert!(pages > 0, "no page in {}", root.display());

    // These two answer for themselves, so that what they serve can be completed as well.
    for name in ["qrexec-connect", "pfwd"] {
        let put = |shell: &dyn EnvCompleter, file: String| {
            let mut script = Vec::new();
            shell.write_registration("COMPLETE", name, name, name, &mut script).expect("memory");
            fs::write(completions.join(file), script).expect("a completion can be written");
        };
        put(&Bash, format!("{name}.bash"));
        put(&Zsh, format!("_{name}"));
        put(&Fish, format!("{name}.fish"));
    }
    // In dom0, and for what is dom0's, scripts that know the definitions.
    for (name, mut command) in
        [("qvm-remote-dom0", dom0::command()), ("qvm-remote", remote_command()), ("qvm-forward", lan::command())]
    {
        for (shell, file) in [
            (aot::Shell::Bash, format!("{name}.bash")),
            (aot::Shell::Zsh, format!("_{name}")),
            (aot::Shell::Fish, format!("{name}.fish")),
        ] {
            let mut script = Vec::new();
            aot::generate(shell, &mut command, name, &mut script);
            fs::write(completions.join(file), script).expect("a completion can be written");
        }
    }
}

fn fill(page: &str, text: &str, root: &Path) -> String {
    let command = match page {
        "qrexec-connect.1" => Some(connect::command()),
        "pfwd.1" => Some(pfwd::command()),
        "qvm-remote-dom0.8" => Some(dom0::command()),
        "qvm-forward.8" => Some(lan::command()),
        _ => None,
    };
    let command = || command.clone().unwrap_or_else(|| panic!("{page} has no options"));
    let parts = text.replace("@STATUS@\n", &fs::read_to_string(root.join("status.roff")).expect("a part of pages"));
    let mut filled = format!(".\\\" Made from {page}.in by packaging/generate.rs: edit that.\n");
    for line in parts.lines() {
        match line {
            "@INTERFACE@" => {
                let interface = root.join("../src/control/org.qrexec-connect.Control.varlink");
                let interface = fs::read_to_string(interface).expect("the description of the interface");
                filled.extend(interface.lines().map(|line| format!("{}\n", roff(line))));
            }
            "@OPTIONS@" => filled += &options(&command()),
            "@COMMANDS@" => filled += &commands(&command()),
            "@USAGE-OPTIONS@" => filled += &options(&remote_command()),
            "@EVENTS@" => filled += &events(root),
            "@EXAMPLE@" => {
                let example = fs::read_to_string(root.join("examples/pfwd.toml")).expect("the example");
                filled.extend(example.lines().map(|line| format!("{}\n", roff(line))));
            }
            line if line.starts_with("@EXAMPLE ") => filled += &example(line, page == "pfwd.toml.5"),
            line => {
                assert!(!line.starts_with('@'), "{page}: {line} is nothing that can be filled in");
                filled += &line.replace("@VERSION@", env!("CARGO_PKG_VERSION")).replace("@DATE@", &date(root));
                filled.push('\n');
            }
        }
    }
    wrap(&filled)
}

/// When this version was made: the day of its entry in Debian's changelog.
fn date(root: &Path) -> String {
    let log = fs::read_to_string(root.join("debian/changelog")).expect("debian/changelog");
    let trailer = log.lines().find(|line| line.starts_with(" -- ")).and_then(|line| line.split_once(", "));
    let words: Vec<&str> = trailer.expect("an entry ends with its date").1.split(' ').collect();
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|month| *month == words[1]).expect("a month") + 1;
    format!("{}-{month:02}-{:0>2}", words[2], words[0])
}

/// Lines of text, not those of macros and examples, of at most 80 bytes.
fn wrap(page: &str) -> String {
    let (mut text, mut example) = (String::new(), false);
    for line in page.lines() {
        example = (example || line == ".EX" || line == ".nf") && line != ".EE" && line != ".fi";
        let mut rest = line.trim_end();
        while rest.len() > 80 && !example && !rest.starts_with('.') {
            let Some(at) = rest[..=80].rfind(' ').filter(|at| *at > 0) else { break };
            text += &format!("{}\n", &rest[..at]);
            rest = rest[at..].trim_start();
            if rest.starts_with(['.', '\'']) {
                text += "\\&";
            }
        }
        text += &format!("{rest}\n");
    }
    text
}

/// Text as roff prints it.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// The options and arguments of a command, each as a paragraph.
fn options(command: &Command) -> String {
    let mut text = String::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        text += &format!(".TP\n{}\n{}", names(arg), sentences(&help));
        let default: Vec<String> = arg.get_default_values().iter().map(|v| roff(&v.to_string_lossy())).collect();
        let values: Vec<String> = arg.get_possible_values().iter().map(|v| roff(v.get_name())).collect();
        if arg.get_action().takes_values() && !default.is_empty() {
            text += &format!("Default:\n.BR {} .\n", default.join(","));
        }
        if arg.get_action().takes_values() && !values.is_empty() {
            text += &format!("One of:\n.BR {} .\n", values.join(" ,\\  "));
        }
    }
    text
}

/// How an argument is written.
fn names(arg: &Arg) -> String {
    let value = || {
        let names = arg.get_value_names().unwrap_or_default();
        let name = names.first().map_or_else(|| arg.get_id().as_str().to_uppercase(), ToString::to_string);
        format!("\\fI{}\\fR", roff(&name))
    };
    if arg.is_positional() {
        return value();
    }
    let short = arg.get_short().map(|c| format!("\\fB\\-{c}\\fR"));
    let long = arg.get_long().map(|long| format!("\\fB\\-\\-{}\\fR", roff(long)));
    let mut text = [short, long].into_iter().flatten().collect::<Vec<_>>().join(", ");
    if arg.get_action().takes_values() {
        text += &format!(" {}", value());
    }
    if matches!(arg.get_action(), ArgAction::Append) {
        text += " ...";
    }
    text
}

/// Help as sentences: it ends with a full stop, and each line is one of roff's.
fn sentences(help: &str) -> String {
    let mut text = String::new();
    let lines: Vec<&str> = help.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    for (i, line) in lines.iter().enumerate() {
        let stop = i + 1 == lines.len() && !line.ends_with(['.', ':', '!', '?']);
        text += &format!("{}{}\n", roff(line), if stop { "." } else { "" });
    }
    text
}

/// The commands with their options, each as a section of its own.
fn commands(command: &Command) -> String {
    let mut text = String::new();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        let words: Vec<String> = sub
            .get_positionals()
            .filter(|arg| !arg.is_hide_set())
            .map(|arg| {
                let many = matches!(arg.get_action(), ArgAction::Append);
                let word = names(arg) + if many { "..." } else { "" };
                if arg.is_required_set() { word } else { format!("[{word}]") }
            })
            .collect();
        text += &format!(".SS {} {}\n", roff(sub.get_name()), words.join(" "));
        let about = sub.get_long_about().or(sub.get_about()).map(ToString::to_string).unwrap_or_default();
        text += &sentences(&about);
        text += &options(sub);
        text += &commands(sub);
    }
    text
}

/// The example of a key, as `@EXAMPLE KEY@` asks for it: a line of a file, or an option of a name.
fn example(line: &str, of_file: bool) -> String {
    let name = line.trim_start_matches("@EXAMPLE ").trim_end_matches('@');
    let key = KeyName::named(name).unwrap_or_else(|| panic!("{name} is no key"));
    let text = if of_file { key.example().to_owned() } else { key.example().replace(" = ", "=").replace('"', "") };
    format!(".IP\n.EX\n{}\n.EE\n", roff(&text))
}

/// Every kind of event, with what the catalog calls it.
fn events(root: &Path) -> String {
    let catalog: String = ["catalog/qrexec-connect.catalog", "catalog/qvm-remote.catalog"]
        .map(|file| fs::read_to_string(root.join(file)).expect("a catalog"))
        .concat();
    let mut text = String::new();
    for kind in Kind::ALL {
        let entry = catalog.split("\n-- ").find_map(|entry| entry.strip_prefix(kind.message_id()));
        let entry = entry.unwrap_or_else(|| panic!("{} is not in the catalog", kind.name()));
        let subject = entry.lines().find_map(|line| line.strip_prefix("Subject: ")).expect("each entry has a subject");
        let level = match kind.level() {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
        };
        text +=
            &format!(".TP\n.BR {} \" ({level})\"\n{}.\n.br\n{}\n", roff(kind.name()), roff(subject), kind.message_id());
    }
    text
}

/// The options and verbs of `qvm-remote` as clap has them, which the program itself does without.
fn remote_command() -> Command {
    let plain = |name: &'static str| Command::new(name).disable_help_flag(true).disable_help_subcommand(true);
    let mut command = plain("qvm-remote").disable_version_flag(true);
    for option in remote::OPTIONS {
        let arg = Arg::new(option.long).long(option.long).help(option.help);
        let arg = match option.value {
            Some(value) => arg.value_name(value).action(ArgAction::Set),
            None => arg.action(ArgAction::SetTrue),
        };
        command = command.arg(option.short.into_iter().fold(arg, Arg::short));
    }
    remote::VERBS.iter().fold(command, |command, verb| {
        let verb = verb.words.iter().fold(plain(verb.name).about(verb.help), |all, word| all.subcommand(plain(word)));
        command.subcommand(verb)
    })
}
