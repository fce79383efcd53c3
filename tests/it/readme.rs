//! Every command that a page shows is run by a test, or has a reason why not; every forward that something else becomes
//! is understood; every link leads somewhere, also where the pages are installed; the README stays short.

use std::{fs, path::Path, process::Command};

use crate::support::{run, skip};

const README: &str = include_str!("../../README.md");
const MIGRATING: &str = include_str!("../../packaging/doc/migrating.md");
const TROUBLESHOOTING: &str = include_str!("../../packaging/doc/troubleshooting.md");
const QVM_REMOTE: &str = include_str!("../../packaging/doc/qvm-remote.md");

/// A screen for each kind of user, and no more.
const README_LINES: usize = 220;

/// The pages of the repository beside those in packaging/doc, which are all of that folder.
const PAGES: &[&str] = &[
    "README.md",
    "src/README.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
    "packaging/CHANGELOG.md",
    "packaging/hardening.md",
    "packaging/qubes-rpc/README.md",
];

/// Who runs the commands of a page, or of one of its sections: the file of a test below tests, which reads the page,
/// and the name of the test.
const RUN_BY: &[(&str, &str, &str, &str)] = &[
    ("README.md", "The first socket", "systemd/readme.rs", "the_commands_for_the_first_socket_do_what_the_readme_says"),
    (
        "README.md",
        "What you may rely on",
        "systemd/readme.rs",
        "the_commands_for_the_first_socket_do_what_the_readme_says",
    ),
    ("README.md", "pfwd: forwards into network namespaces", "netns/walk.rs", "the_forwards_of_the_readme_are_served"),
    ("README.md", "qvm-remote: commands in dom0", "world/readme.rs", "whoever_follows_the_readme_with_the_installer"),
    ("packaging/doc/troubleshooting.md", "", "systemd/readme.rs", "the_commands_for_the_first_socket_do"),
    ("packaging/doc/pfwd.md", "", "netns/walk.rs", "the_page_is_followed_step_by_step"),
    ("packaging/doc/qvm-remote.md", "", "world/readme.rs", "whoever_follows_the_page_by_hand"),
    ("packaging/doc/crash.md", "", "systemd/crash.rs", "forwards_of_the_system_their_flows"),
    ("packaging/doc/on-demand.md", "PostgreSQL of Debian", "systemd/start_unit.rs", "postgresql_of_debian_is_started"),
    ("packaging/doc/on-demand.md", "A database of a user", "systemd/start_unit.rs", "postgresql_of_debian_is_started"),
    ("packaging/doc/on-demand.md", "A model server of a user", "systemd/start_unit.rs", "a_model_server"),
];

/// Commands that no test runs as they stand, and what is done instead.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo run --release --bin qrexec-connect -- demo", "it/demo.rs runs the demo, built for tests"),
    ("tests/run", "this is part of it"),
    ("make -C packaging deb", "tests/package runs it, with programs that are built already"),
    ("qvm-copy ", "there is no other qube here"),
    ("sudo apt install ~/QubesIncoming/", "tests/package does it in throwaway roots, by dpkg"),
    ("sudo poweroff", "there is no template here"),
    ("sudo apt install ./packaging/out/", "tests/package does it in throwaway roots, by dpkg"),
    ("cargo build --release", "tests/reproducible does it for one program"),
    ("sudo make -C packaging install", "the tests under systemd do it into their trees"),
    ("sudo systemctl daemon-reload &&", "booting those trees does it"),
    ("cargo build --examples", "cargo test does it"),
    ("cargo clippy", ".ci/run does it"),
    ("cargo fmt", ".ci/run does it, with --check"),
    ("cargo run --example generate -- packaging", "it/manual.rs runs it, into another directory"),
    ("cargo test --lib", "this is part of it"),
    ("cargo test --test it", "this is it"),
    ("cargo test --test netns", "tests/run does it"),
    ("cargo test --test systemd", "tests/run does it"),
    ("cargo test --test world", "tests/run does it"),
    ("LONG=true cargo test --test it", "tests/run --long does it"),
    ("tests/mk-root target/roots/trixie trixie", "tests/run does it"),
    ("SYSTEMD_ROOT=$PWD/target/roots/trixie cargo test --test systemd", "tests/run does it"),
    ("tests/fuzz/run", ".ci/run does it"),
    ("tests/features", ".ci/run does it"),
    ("tests/sanitize", ".ci/run does it"),
    ("tests/salt", "tests/run does it"),
    ("tests/package", "tests/run does it"),
    ("tests/reproducible", ".ci/run does it"),
    (".ci/run", "it runs this"),
];

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages: of each its path, and its text.
fn pages() -> Vec<(String, String)> {
    let docs = fs::read_dir(root().join("packaging/doc")).expect("a folder").flatten().map(|entry| entry.path());
    let docs = docs.filter(|path| path.extension().is_some_and(|e| e == "md"));
    let docs = docs.map(|path| path.strip_prefix(root()).expect("below it").to_str().expect("text").to_owned());
    let all = PAGES.iter().map(|page| (*page).to_owned()).chain(docs);
    all.map(|path| (fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{path}: {e}")), path))
        .map(|(text, path)| (path, text))
        .collect()
}

/// The sections of a page with the lines of their commands.
fn sections(page: &str) -> Vec<(&str, Vec<&str>)> {
    let sections = page.split("\n## ").map(|section| {
        let title = section.lines().next().expect("a title");
        let blocks = section.split("\n```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
        (title, blocks.flat_map(str::lines).filter(|line| !line.trim().is_empty()).collect())
    });
    sections.collect()
}

#[test]
fn the_readme_is_short() {
    let lines = README.lines().count();
    assert!(lines <= README_LINES, "{lines} lines: what is not for the first hour belongs into packaging/doc");
}

#[test]
fn every_command_is_run_by_a_test_or_says_why_not() {
    let (mut seen, mut used, mut runs) = (0, Vec::new(), Vec::new());
    for (page, text) in &pages() {
        for (title, lines) in sections(text).into_iter().filter(|(_, lines)| !lines.is_empty()) {
            seen += lines.len();
            let by = RUN_BY.iter().find(|(of, section, ..)| of == page && (section.is_empty() || *section == title));
            if let Some((.., file, name)) = by {
                let test =
                    fs::read_to_string(root().join("tests").join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
                assert!(test.contains(&format!("include_str!(\"../../{page}\")")), "tests/{file} does not read {page}");
                assert!(test.contains(&format!("fn {name}")), "tests/{file} has no {name}");
                runs.extend(by);
                continue;
            }
            for line in lines {
                let reason = NOT_RUN.iter().find(|(command, _)| line.starts_with(command));
                used.extend(reason);
                assert!(reason.is_some(), "{page}: {title}: no test runs `{line}`");
            }
        }
    }
    assert!(seen >= 80, "only {seen} commands seen");
    let unused: Vec<_> = NOT_RUN.iter().filter(|reason| !used.contains(reason)).collect();
    assert!(unused.is_empty(), "no longer in the pages: {unused:?}");
    let unused: Vec<_> = RUN_BY.iter().filter(|run| !runs.contains(run)).collect();
    assert!(unused.is_empty(), "no longer in the pages: {unused:?}");
}

/// Cells of the table in a text.
fn table(text: &'static str) -> Vec<Vec<&'static str>> {
    let rows = text.lines().filter(|line| line.starts_with('|'));
    rows.skip(2).map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The names of the tests of a suite.
fn tests_of(suite: &str) -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(suite);
    let files = fs::read_dir(dir).expect("a suite").flatten().map(|entry| entry.path());
    let texts = files.filter(|path| path.extension().is_some_and(|e| e == "rs")).map(fs::read_to_string);
    let tests = texts.map(|text| text.expect("text")).collect::<Vec<_>>().join("\n");
    let names = tests.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
    names.map(str::to_owned).collect()
}

#[test]
fn each_attack_names_the_one_test_that_shows_what_stops_it() {
    let (_, rows) = QVM_REMOTE.split_once("\n| attack |").expect("the table of attacks");
    let rows: Vec<&str> = rows.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    let (world, systemd) = (tests_of("world"), tests_of("systemd"));
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let named: Vec<&str> = cells[2].split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test is named: {row}");
        let tests = if cells[2].contains("(tests/systemd)") { &systemd } else { &world };
        for name in named {
            let begin = name.strip_suffix('…').unwrap_or(name);
            let found: Vec<_> = tests.iter().filter(|test| test.starts_with(begin)).collect();
            assert_eq!(found.len(), 1, "{name}: {found:?}");
        }
    }
}

/// A figure that the comparison repeats is one of the page with the measurements.
#[test]
fn every_figure_of_the_comparison_is_one_that_was_measured() {
    let measured = include_str!("../../packaging/doc/performance.md");
    let rows = include_str!("../../packaging/doc/compared.md").lines().filter(|line| line.contains("CPU"));
    let words = rows.flat_map(|row| row.split([' ', '|'])).map(|word| word.trim_end_matches([',', ';']));
    let is_figure = |word: &&str| word.len() > 2 && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    let figures: Vec<&str> = words.filter(is_figure).collect();
    assert!(figures.len() > 15, "{figures:?}");
    for figure in figures {
        let found = measured.split([' ', '|', '*']).any(|word| word == figure);
        assert!(found, "{figure} is not in performance.md");
    }
}

#[test]
fn what_something_else_becomes_is_understood() {
    let (mut forwards, mut names, mut adds) = (0, 0, 0);
    let dir = tempfile::tempdir().expect("a directory");
    for row in table(MIGRATING) {
        let becomes = row[1];
        for code in becomes.split('`').skip(1).step_by(2) {
            if let Some(arguments) = code.strip_prefix("pfwd ") {
                let mut pfwd = Command::new(env!("CARGO_BIN_EXE_pfwd"));
                pfwd.args(arguments.split(' ')).arg("--check").arg("--config").arg("/dev/null");
                let output = run(pfwd);
                assert!(output.status.success(), "{code}: {}", String::from_utf8_lossy(&output.stderr));
                forwards += 1;
            } else if let Some(arguments) = code.strip_prefix("qrexec-connect add ") {
                let line = format!("exec {} add {arguments} --dry-run", env!("CARGO_BIN_EXE_qrexec-connect"));
                let mut shell = Command::new("sh");
                shell.args(["-c", &line.replace(" --now", "")]);
                let output = run(shell);
                assert!(output.status.success(), "{code}: {}", String::from_utf8_lossy(&output.stderr));
                adds += 1;
            } else if code.strip_prefix("FileDescriptorName=").is_some_and(|name| !name.is_empty()) {
                let unit = dir.path().join("qrexec-connect-web.socket");
                fs::write(&unit, format!("[Socket]\nListenStream=127.0.0.1:18080\n{code}\n")).expect("ours");
                let mut check = Command::new(env!("CARGO_BIN_EXE_qrexec-connect"));
                check.arg("check").arg(&unit).env("SYSTEMD_UNIT_PATH", dir.path());
                let output = run(check);
                assert!(output.status.success(), "{code}: {}", String::from_utf8_lossy(&output.stdout));
                names += 1;
            }
        }
    }
    assert_eq!((forwards, names, adds), (4, 2, 1));
}

/// The parts of a message between what differs each time: `…`, numbers, paths, keys, `N`. A parenthesis begins another
/// part.
fn fixed_parts(message: &str) -> Vec<String> {
    let differs = |word: &&str| *word == "N" || word.contains(|c: char| c.is_ascii_digit() || ['/', '_'].contains(&c));
    let mut parts = Vec::new();
    for text in message.split(['…', '(']) {
        let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
        parts.extend(words.split(differs).map(|words| words.join(" ").trim_start_matches(": ").to_owned()));
    }
    parts.retain(|part| part.len() > 3);
    parts
}

/// The code below these folders, without this file: that of the programs, and that of tests. A text that goes on in the
/// next line behind a backslash is one text.
fn code(folders: &[&str]) -> (String, String) {
    let (mut programs, mut tests) = (String::new(), String::new());
    for path in folders.iter().flat_map(|folder| files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))) {
        if !path.ends_with(".rs") || path.ends_with(file!()) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let text: String = text.split("\\\n").map(str::trim_start).collect();
        let all_tests = path.ends_with("tests.rs") || !path.contains("/src/");
        let (program, test) =
            if all_tests { ("", &*text) } else { text.split_once("#[cfg(test)]").unwrap_or((&text, "")) };
        programs += program;
        tests += test;
    }
    (programs, tests)
}

fn frequent_messages() -> &'static str {
    let (_, section) = TROUBLESHOOTING.split_once("\n## Frequent messages\n").expect("there is such a section");
    section.split("\n## ").next().expect("its end")
}

#[test]
fn each_message_that_a_page_explains_is_one_of_the_programs_and_of_a_test() {
    const OF_SYSTEMD: &str = "The unit files have no installation config";
    let (source, tests) = code(&["src", "tests"]);
    let mut seen = 0;
    for row in table(frequent_messages()) {
        for message in row[0].split('`').skip(1).step_by(2).filter(|message| !message.contains("systemctl")) {
            for part in fixed_parts(message).iter().filter(|part| *part != OF_SYSTEMD) {
                assert!(source.contains(part.as_str()), "`{message}`: no program says `{part}`");
                let words = part.trim_end_matches([':', ';']);
                assert!(tests.contains(words), "`{message}`: no test sees `{words}`");
                seen += 1;
            }
        }
    }
    assert!(seen >= 17, "only {seen} parts of messages");
}

/// The files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let mut find = Command::new("find");
    find.arg(folder).args(["-name", "target", "-prune", "-o", "!", "-type", "d", "-print"]); // what cargo makes is not ours
    let output = run(find);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn pages_are_installed_with_what_they_link_to_and_an_uninstall_takes_away_what_an_install_has_put() {
    if Command::new("make").arg("--version").output().is_err() {
        return skip("make is missing");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (binaries, root) = (dir.path().join("binaries"), dir.path().join("root"));
    fs::create_dir(&binaries).expect("a new directory");
    for program in ["qrexec-connect", "pfwd", "qvm-remote", "qvm-remote-dom0", "qvm-forward"] {
        fs::write(binaries.join(program), "").expect("a new directory");
    }
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.args(["--silent", "-C"]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")).arg(target);
        make.arg(format!("DESTDIR={}", root.display())).arg(format!("BINARIES={}", binaries.display()));
        let output = run(make);
        assert!(output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stderr));
    };
    make("install");
    assert!(files(&root).len() > 40, "{:#?}", files(&root));
    // every page comes with a program that it is about, and its links hold there, too
    let installed = files(&root);
    for (page, _) in pages().iter().filter(|(page, _)| page.starts_with("packaging/doc/")) {
        let name = page.trim_start_matches("packaging/doc");
        let places: Vec<_> = installed.iter().filter(|file| file.ends_with(name)).collect();
        assert_eq!(places.len(), 2, "{page}: {places:?}");
        places.iter().for_each(|place| {
            follow_links(Path::new(place));
        });
    }
    make("uninstall");
    assert_eq!(files(&root), Vec::<String>::new());
}

#[test]
fn the_picture_is_the_one_that_the_script_draws() {
    let mut picture = Command::new("python3");
    if picture.arg("--version").output().is_err() {
        return skip("the picture is drawn by a script in Python, and python3 is missing");
    }
    let mut picture = Command::new("python3");
    picture.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/picture")).arg("--check");
    let output = run(picture);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_link_of_a_page_leads_to_a_file_or_a_section() {
    let seen: usize = pages().iter().map(|(path, _)| follow_links(&root().join(path))).sum();
    assert!(seen >= 30, "only {seen} links seen");
}

/// Each link of a page leads to a file, and to a section of it; how many there are.
fn follow_links(page: &Path) -> usize {
    let text = fs::read_to_string(page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
    let links: Vec<_> = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    let folder = page.parent().expect("a file in a directory");
    for link in links.iter().filter(|link| !link.starts_with("http")) {
        let (file, section) = link.split_once('#').map_or((*link, None), |(file, section)| (file, Some(section)));
        let file = if file.is_empty() { page.to_owned() } else { folder.join(file) };
        assert!(file.exists(), "{}: {link}: no such file", page.display());
        let Some(section) = section else { continue };
        let text = fs::read_to_string(&file).expect("a page");
        let found = text.lines().any(|line| anchor(line).as_deref() == Some(section));
        assert!(found, "{}: {link}: no such section", page.display());
    }
    links.len()
}

/// What a heading is called in links, as forges make it.
fn anchor(line: &str) -> Option<String> {
    let title = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let plain = |c: &char| c.is_alphanumeric() || *c == ' ' || *c == '-';
    Some(title.to_lowercase().chars().filter(plain).collect::<String>().replace(' ', "-"))
}

/// A start that fails is repeated for ever (StartLimitIntervalSec=0): so it must not come several times in a second.
#[test]
fn each_service_comes_back_once_a_second_as_the_pages_say() {
    let units = [
        include_str!("../../units/system/pfwd.service"),
        include_str!("../../units/system/qrexec-connect.service"),
        include_str!("../../units/user/qrexec-connect.service"),
    ];
    for unit in units {
        let lines: Vec<_> = unit.lines().filter(|line| line.starts_with("RestartSec=")).collect();
        assert_eq!(lines, ["RestartSec=1"]);
    }
    for page in [README, include_str!("../../packaging/doc/crash.md")] {
        assert!(page.contains("within about one and a half seconds"));
    }
}

#[test]
fn each_guarantee_of_a_unit_on_demand_names_a_test_that_there_is() {
    let tests = include_str!("../systemd/ondemand.rs");
    let page = include_str!("../../packaging/doc/on-demand.md");
    let (_, page) = page.split_once("Each sentence has its tests").expect("the page names tests");
    let (page, _) = page.split_once("\n## ").expect("the end of the section");
    let (_, head) = include_str!("../../src/ondemand/mod.rs").split_once("# Guarantees").expect("a head");
    for text in [page, head] {
        let lines: Vec<_> = text.lines().map(|line| line.trim_start_matches("//!").trim_start()).collect();
        let sentences = (1..=4).filter(|n| lines.iter().any(|line| line.starts_with(&format!("{n}. "))));
        assert_eq!(sentences.count(), 4, "{text}");
        // The names of tests are long.
        let named: Vec<_> = text.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() > 3).collect();
        assert!(named.len() >= 4, "{named:?}");
        for name in named {
            assert!(tests.contains(&format!("#[test]\nfn {name}()")), "{name}");
        }
    }
}
