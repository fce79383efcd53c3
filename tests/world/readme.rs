//! The page about qvm-remote, and its section in the README, are true: the commands, as they are printed, lead from
//! nothing to a command in dom0; the policy is one; the tests that the table of threats names are there.

use std::{fs, path::Path};

use crate::{
    support::eventually,
    world::{Done, World},
};

const PAGE: &str = include_str!("../../packaging/doc/qvm-remote.md");
const README: &str = include_str!("../../README.md");

/// The section of the README.
fn section() -> &'static str {
    let (_, rest) = README.split_once("\n## qvm-remote: commands in dom0\n").expect("there is such a section");
    rest.split("\n## ").next().expect("its end")
}

/// The threats of the page.
fn threats() -> &'static str {
    PAGE.split_once("\n## Threats\n").expect("there is such a section").1
}

/// The blocks of commands of a text, in their order: of each, its lines.
fn blocks(text: &'static str, kind: &str) -> Vec<Vec<&'static str>> {
    let parts = text.split("\n```").skip(1).step_by(2);
    let of_kind = parts.filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n'));
    of_kind.map(|block| block.lines().filter(|line| !line.is_empty()).collect()).collect()
}

/// In dom0, whose /tmp is for once its own, at a terminal on which somebody types.
fn at_dom0s_terminal(world: &World, text: &str, typed: &str) -> Done {
    fs::write(world.path().join("typed.sh"), format!("set -e\n{text}\n")).expect("written");
    // the world itself may lie below /tmp; an input that never ends, for script(1) would pass that on as Ctrl-D
    let terminal = format!(
        "mount --bind $WORLD /mnt; mount -t tmpfs tmp /tmp; mkdir -p $WORLD; mount --bind /mnt $WORLD; \
         mkfifo /tmp/typed; exec 8<>/tmp/typed; [ -z '{typed}' ] || echo '{typed}' >&8; \
         exec script -qec 'bash $WORLD/typed.sh' /dev/null <&8 8<&-"
    );
    fs::write(world.path().join("terminal.sh"), terminal).expect("written");
    world.dom0("unshare -m bash $WORLD/terminal.sh")
}

/// The lines of the last block of commands do what is written behind them.
fn everything_in_the_qube_works(world: &World, vm: &str, lines: &[&str]) {
    world.dom0("mkdir -p /var/log/xen/console; echo booted >/var/log/xen/console/hypervisor.log").expect(0, "");
    world.shell(vm, "mkdir -p notes; echo note >notes/one").expect(0, "");
    world.dom0(&format!("echo 'allow get /var/log/xen' >>/etc/qubes/remote.d/{vm}.policy")).expect(0, "");
    for line in lines {
        let (command, comment) = line.split_once('#').unwrap_or((line, ""));
        if command.contains(" get ") {
            assert!(comment.contains("where a rule says so: allow get /var/log/xen"), "{line}");
        }
        let done = world.shell(vm, command);
        assert_eq!(done.code, 0, "{line}: {done:#?}");
        if let Some(said) = comment.split('"').nth(1) {
            assert_eq!(done.text().trim_end(), said, "{line}");
        }
    }
    // what they were for
    assert_eq!(fs::read_to_string(world.path().join("shutdown")).expect("asked"), "--wait work\n");
    assert_eq!(fs::read_to_string(world.path().join("prefs")).expect("asked"), "work memory 4096\n");
    world.shell(vm, "cat hypervisor.log").expect(0, "booted\n");
    world.dom0("cat /root/notes/one; test -d /root/.qvm-remote && echo unpacked").expect(0, "note\nunpacked\n");
}

#[test]
fn whoever_follows_the_readme_with_the_installer_reaches_dom0() {
    let world = world!("visyble");
    let [in_qube, in_dom0, _, again] = &blocks(PAGE, "sh")[..] else {
        panic!("other blocks: {:#?}", blocks(PAGE, "sh"))
    };
    assert_eq!((in_qube.len(), again.last().map(|l| l.contains("rsync"))), (1, Some(true)));
    // the README has the same, and the first lines of the last block
    assert_eq!(blocks(section(), "sh"), [in_qube.clone(), in_dom0.clone(), again[..2].to_vec()]);
    fs::write(world.path().join("starts"), "").expect("written");
    // what its template and its owner have put there
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/install-dom0.sh");
    fs::copy(sources, world.home("visyble").join("install-dom0.sh")).expect("copied");
    world.dom0("mkdir -p $WORLD/vms/visyble/bin").expect(0, "");
    fs::copy(env!("CARGO_BIN_EXE_qvm-remote-dom0"), world.path().join("vms/visyble/bin/qvm-remote-dom0"))
        .expect("copied");
    let template = "nsenter -t $(cat $WORLD/vms/visyble/pid) -m -- bash -c 'mount -t overlay o -o lowerdir=$0:/usr/bin /usr/bin' \
                    $WORLD/vms/visyble/bin";
    world.dom0(template).expect(0, "");
    let hash = world.dom0("sha256sum $WORLD/vms/visyble/bin/qvm-remote-dom0 | cut -c1-64").text();
    world.shell("visyble", in_qube[0]).says("Register in dom0:");
    // as it is printed, but for the place of the installer, which no package has put there, and the hash
    let text = in_dom0.join("\n");
    for own in ["/usr/share/doc/qvm-remote-dom0/examples/", "HASH"] {
        assert_eq!(text.matches(own).count(), 1, "{text}");
    }
    let text = text.replace("/usr/share/doc/qvm-remote-dom0/examples/", "/home/user/").replace("HASH", hash.trim());
    // the pager shows and goes on, as with -F
    let done = at_dom0s_terminal(&world, &format!("less() {{ cat \"$@\"; }}\n{text}"), "yes");
    assert_eq!(done.code, 0, "{}{}", done.text(), done.err);
    for said in ["It breaks the security model", "Type 'yes' to install", "Installed. In visyble: qvm-remote ping."] {
        assert!(done.text().contains(said), "{said}: {}", done.text());
    }
    eventually("an answer", || world.shell("visyble", again[0]).code == 0);
    everything_in_the_qube_works(&world, "visyble", again);
}

#[test]
fn whoever_follows_the_page_by_hand_reaches_dom0() {
    let world = world!("visyble");
    let [in_qube, pull, by_hand, again] = &blocks(PAGE, "sh")[..] else {
        panic!("other blocks: {:#?}", blocks(PAGE, "sh"))
    };
    fs::write(world.path().join("starts"), "").expect("written");
    // "where the program is in dom0 already", so is its unit
    world.dom0("mkdir -p /etc/systemd/system; qvm-remote-dom0 unit | sed s,/usr/bin/,/usr/local/sbin/, >/etc/systemd/system/qvm-remote-dom0.service").expect(0, "");
    let printed = world.shell("visyble", in_qube[0]);
    // the line to type, as it was printed
    let line =
        printed.err.lines().find_map(|l| l.trim().strip_prefix("qvm-remote-dom0 authorize visyble ")).expect("there");
    let text = format!("{}\n{}", pull[0], by_hand.join("\n"));
    assert_eq!(text.matches(" KEY ").count(), 1, "{text}");
    let done = at_dom0s_terminal(&world, &text.replace(" KEY ", &format!(" {line} ")), "");
    assert!(done.code == 0 && done.text().contains("  allow shell *"), "{}{}", done.text(), done.err);
    eventually("an answer", || world.shell("visyble", again[0]).code == 0);
    everything_in_the_qube_works(&world, "visyble", again);
    // the policy that is shown is one
    let [policy] = &blocks(PAGE, "")[..] else { panic!("one block without a language: {:#?}", blocks(PAGE, "")) };
    world.dom0(&format!("cat >/root/policy <<'X'\n{}\nX", policy.join("\n"))).expect(0, "");
    let done = world.dom0(&format!("qvm-remote-dom0 authorize --policy /root/policy visyble {line}"));
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    world.remote("visyble", &["xl info"]).expect(0, "xen_version            : 4.17.4\n");
    world.remote("visyble", &["xl list"]).expect(126, "");
}

#[test]
fn each_attack_in_the_table_of_threats_has_the_tests_that_it_names() {
    let sources = [
        ("approve", include_str!("approve.rs")),
        ("attacks", include_str!("attacks.rs")),
        ("clocks", include_str!("clocks.rs")),
        ("commands", include_str!("commands.rs")),
        ("control", include_str!("control.rs")),
        ("crashes", include_str!("crashes.rs")),
        ("daily", include_str!("daily.rs")),
        ("life", include_str!("life.rs")),
        ("load", include_str!("load.rs")),
        ("owner", include_str!("owner.rs")),
        ("policies", include_str!("policies.rs")),
        ("programs", include_str!("programs.rs")),
        ("v1", include_str!("v1.rs")),
        ("systemd", include_str!("../systemd/remote.rs")),
    ];
    let rows: Vec<Vec<&str>> = threats()
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| attack"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 10, "{rows:#?}");
    let mut named = 0;
    for row in &rows {
        let [attack, _, tests] = &row[..] else { panic!("three columns: {row:?}") };
        for name in tests.split('`').skip(1).step_by(2) {
            let found = match name.strip_suffix('…') {
                Some(start) => sources.iter().any(|(_, text)| text.contains(&format!("#[test]\nfn {start}"))),
                None => sources.iter().any(|(room, _)| *room == name),
            };
            assert!(found, "{attack}: no test {name}");
            named += 1;
        }
        // the page says which one nothing stops
        assert!(tests.contains('`') || attack.contains("a program of the same user"), "{attack} has no test");
    }
    assert!(named >= rows.len(), "{named} tests for {} attacks", rows.len());
}
