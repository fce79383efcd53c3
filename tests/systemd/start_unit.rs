//! `start_unit` as people meet it: what `check` and the service refuse, and the examples of packaging/doc/on-demand.md.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::Path,
};

use serde_json::Value;

use crate::{
    support::{Wire, eventually, sample, skip},
    tree::{As, Tree, attempt, shell, user_unit},
};

/// Units of which `good` alone can be started for a client and stopped again without a word; `kept` is enabled.
/// Another one, `other`, is an alias of `good`.
const UNITS: [(&str, &str); 6] = [
    ("good", ""),
    ("hidden", ""),
    ("manual", "RefuseManualStart=yes\n"),
    ("lasting", "RefuseManualStop=yes\n"),
    ("unneeded", "StopWhenUnneeded=yes\n"),
    ("kept", ""),
];

/// What check says of each unit, beside stop_when_idle.
const SAID: [&str; 6] = [
    "start_unit: missing.service does not exist",
    "start_unit: hidden.service is masked",
    "start_unit: manual.service has RefuseManualStart=yes",
    "start_unit: lasting.service has RefuseManualStop=yes",
    "start_unit: unneeded.service has StopWhenUnneeded=yes",
    "start_unit: other.service is an alias of good.service",
];

fn unit_text(lines: &str) -> String {
    format!(
        "[Unit]\n{lines}[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=default.target multi-user.target\n"
    )
}

/// A forward from port 2001 on for each unit.
fn forwards() -> String {
    let names = ["missing"].into_iter().chain(UNITS.map(|(name, _)| name)).chain(["other"]);
    let forward = |(index, name)| {
        format!(
            "[[forward]]\nlabel = \"{name}\"\nlisten = \"127.0.0.1:{}\"\ntarget = \"127.0.0.1:1\"\n\
             start_unit = \"{name}\"\nstop_when_idle = 60\n",
            2001 + index
        )
    };
    names.enumerate().map(forward).collect()
}

#[track_caller]
fn assert_says_once(text: &str, sentence: &str) {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" "); // lines are broken at a terminal's width
    assert_eq!(text.matches(sentence).count(), 1, "{sentence}\n{text}");
}

#[test]
fn check_and_the_service_refuse_units_that_cannot_be_used_and_serve_the_others() {
    let Some(tree) = tree!() else { return };
    tree.boot("system", As::Root, || {
        for (name, lines) in UNITS {
            fs::write(format!("/etc/systemd/system/{name}.service"), unit_text(lines)).expect("root's own tree");
        }
        shell("ln -s good.service /etc/systemd/system/other.service");
        shell("rm /etc/systemd/system/hidden.service; systemctl daemon-reload; systemctl mask hidden.service");
        shell("systemctl enable kept.service");
        fs::write("/etc/pfwd.toml", forwards()).expect("root's own tree");
        let (code, stdout, stderr) = attempt("COLUMNS=1000 pfwd check");
        assert_eq!(code, Some(78), "{stdout}\n{stderr}");
        SAID.iter().for_each(|sentence| assert_says_once(&stdout, sentence));
        assert_says_once(&stdout, "kept.service is needed by");
        assert!(!stdout.contains("good.service is") && !stdout.contains("good.service has"), "{stdout}");
        shell("systemctl enable --now pfwd.service");
        let (code, status, _) = attempt("COLUMNS=1000 pfwd status");
        assert_eq!(code, Some(1), "{status}");
        SAID.iter().for_each(|sentence| assert!(status.contains(sentence), "{sentence}\n{status}"));
        let listening = shell("ss -Hltn 'sport >= 2001 and sport <= 2010' | awk '{print $4}' | sort");
        assert_eq!(listening, "127.0.0.1:2002\n127.0.0.1:2007");
        // Names of sockets, too; where nothing stops the unit, RefuseManualStop= is no obstacle.
        for (name, options) in [("gone", "start_unit=missing"), ("lasting", "start_unit=lasting"), ("good", "start_unit=good")] {
            let text = format!("[Socket]\nListenStream=/run/{name}.sock\nSocketMode=0600\nFileDescriptorName=target=127.0.0.1+1,{options}\n");
            fs::write(format!("/etc/systemd/system/pfwd-{name}.socket"), text).expect("root's own tree");
        }
        shell("rm /etc/pfwd.toml; systemctl daemon-reload");
        let (code, stdout, stderr) = attempt("COLUMNS=1000 pfwd check");
        assert_eq!(code, Some(78), "{stdout}\n{stderr}");
        assert_says_once(&stdout, SAID[0]);
        assert!(stdout.contains("pfwd-gone.socket (/etc/systemd/system/pfwd-gone.socket:4)"), "{stdout}");
        assert!(!stdout.contains("lasting.service has"), "{stdout}");
        shell("systemctl start pfwd-gone.socket pfwd-lasting.socket pfwd-good.socket; systemctl restart pfwd.service");
        let (code, status, _) = attempt("COLUMNS=1000 pfwd status");
        assert!(code == Some(1) && status.contains(SAID[0]), "{status}");
        assert_eq!(status.matches("serving").count(), 2, "{status}");
        // Once there is such a unit, a reload serves the listener.
        fs::write("/etc/systemd/system/missing.service", unit_text("")).expect("root's own tree");
        shell("systemctl daemon-reload; systemctl reload pfwd.service");
        assert_eq!(attempt("pfwd status").0, Some(0));
    });
    tree.boot("user", As::Tester, || {
        UNITS.iter().for_each(|(name, lines)| user_unit(&format!("{name}.service"), &unit_text(lines)));
        shell("ln -s good.service ~/.config/systemd/user/other.service");
        shell("rm ~/.config/systemd/user/hidden.service; systemctl --user daemon-reload; systemctl --user mask hidden.service");
        shell("systemctl --user enable kept.service");
        fs::write(shell("echo ~/.config/qrexec-connect.toml"), forwards()).expect("one's own home");
        let (code, stdout, stderr) = attempt("COLUMNS=1000 qrexec-connect check");
        assert_eq!(code, Some(78), "{stdout}\n{stderr}");
        SAID.iter().for_each(|sentence| assert_says_once(&stdout, sentence));
        assert_says_once(&stdout, "kept.service is needed by default.target");
    });
}

#[test]
fn check_tells_a_unit_of_two_services_and_one_that_would_be_started_too_often() {
    let Some(tree) = tree!() else { return };
    tree.boot("two", As::Root, || {
        fs::write("/etc/systemd/system/ai.service", unit_text("")).expect("root's own tree");
        let forward = |port: u16, more: &str| {
            format!("[[forward]]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"127.0.0.1:1\"\nstart_unit = \"ai\"\n{more}")
        };
        fs::write("/etc/pfwd.toml", forward(2001, "stop_when_idle = 9.5\n")).expect("root's own tree");
        let (code, stdout, _) = attempt("COLUMNS=1000 pfwd check");
        assert_eq!(code, Some(0), "{stdout}");
        assert_says_once(&stdout, "stop_when_idle=9.5 allows more than 5 starts of ai.service in 10 s");
        // A forward of the other service's file, and a socket unit of it.
        let told = |other: &str| {
            for command in ["pfwd check", "qrexec-connect check --system"] {
                let (code, stdout, stderr) = attempt(&format!("COLUMNS=1000 {command}"));
                assert_eq!(code, Some(78), "{command}: {stdout}\n{stderr}");
                assert_says_once(&stdout, "ai.service is started by listeners of two services:");
                assert!(stdout.contains("/etc/pfwd.toml:1") && stdout.contains(other), "{stdout}");
            }
        };
        fs::write("/etc/qrexec-connect.toml", forward(2002, "")).expect("root's own tree");
        told("/etc/qrexec-connect.toml:1");
        let socket = "[Socket]\nListenStream=127.0.0.1:2003\nFileDescriptorName=target=127.0.0.1+1,start_unit=ai\n";
        fs::write("/etc/systemd/system/qrexec-connect-ai.socket", socket).expect("root's own tree");
        shell("rm /etc/qrexec-connect.toml; systemctl daemon-reload");
        told("qrexec-connect-ai.socket");
    });
}

const PAGE: &str = include_str!("../../packaging/doc/on-demand.md");

/// The files that a section of the page shows, each with its path, and the commands of the section.
fn section(title: &str) -> (Vec<(&'static str, &'static str)>, Vec<&'static str>) {
    let (_, section) = PAGE.split_once(&format!("\n## {title}\n")).expect("there is such a section");
    let section = section.split("\n## ").next().expect("its end");
    let (mut files, mut commands) = (Vec::new(), Vec::new());
    for block in section.split("\n```").skip(1).step_by(2) {
        let (language, text) = block.split_once('\n').expect("a language");
        match (language, text.split_once('\n')) {
            ("sh", _) => commands.extend(text.lines()),
            ("ini" | "js", Some((path, rest))) => {
                files.push((path.trim_start_matches("# ").trim_start_matches("// "), rest));
            }
            _ => panic!("{title}: a block of {language}"),
        }
    }
    (files, commands)
}

/// Writes the files of a section, after `edit`; the commands of the section.
fn install(title: &str, edit: impl Fn(&str) -> String) -> Vec<String> {
    let (files, commands) = section(title);
    for (path, text) in files {
        let path = path.replacen('~', &std::env::var("HOME").expect("with-systemd sets it"), 1);
        fs::create_dir_all(Path::new(&path).parent().expect("a file in a directory")).expect("ours");
        fs::write(&path, edit(text)).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    commands.into_iter().map(edit).collect()
}

/// Whether a tree of another release is booted, in which Debian's packages for these tests are not installed.
fn is_bare(tree: &Tree) -> bool {
    tree.is_outside() && std::env::var_os("SYSTEMD_ROOT").is_some()
}

/// The version of PostgreSQL; none, after a loud word, where it is not installed.
fn postgres() -> Option<String> {
    let version = newest_postgres();
    if version.is_none() {
        skip("PostgreSQL is missing (Debian: postgresql)");
    }
    version
}

fn newest_postgres() -> Option<String> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.filter(|dir| dir.path().join("bin/initdb").exists());
    versions.map(|dir| dir.file_name().to_string_lossy().into_owned()).max()
}

/// The page's time, which a test cannot wait for.
const SOON: (&str, &str) = ("stop_when_idle=600", "stop_when_idle=2");

#[test]
fn postgresql_of_debian_is_started_by_psql_and_stopped_when_it_has_gone() {
    let Some(tree) = tree!().filter(|tree| !is_bare(tree)) else { return };
    tree.boot("system", As::Root, || {
        let Some(version) = postgres() else { return };
        // Whatever the machine has done with its cluster.
        shell(&format!("rm -rf /etc/postgresql/{version}/main /var/lib/postgresql/{version}/main"));
        shell(&format!("pg_createcluster {version} main -- --auth-host=trust"));
        let commands = install("PostgreSQL of Debian", |text| text.replace("17", &version).replace(SOON.0, SOON.1));
        let [before @ .., psql] = &commands[..] else { panic!("no commands") };
        let check = attempt(&before.join("\n"));
        assert_eq!(check.0, Some(0), "{check:?}");
        assert!(check.1.contains("1 listener can be served"), "{check:?}");
        let unit = format!("postgresql@{version}-main.service");
        let state = || attempt(&format!("systemctl is-active {unit}")).1;
        assert_eq!(state(), "inactive");
        for _ in 0..2 {
            let answer = shell(&psql.replace("-U me", "-At -U postgres"));
            assert_eq!((answer.as_str(), state().as_str()), ("1", "active"));
            eventually("it is stopped", || state() == "inactive");
        }
        let said = shell("journalctl -q -o cat -t pfwd");
        assert_eq!(said.matches(&format!("{unit} is started for a connection")).count(), 2, "{said}");
        // The listener is in the way of the database itself, and the database is not in the way of the listener.
        let status = shell("COLUMNS=1000 pfwd status");
        assert!(
            status.contains(&format!("\n          {unit} inactive since ")) && status.contains("; last start took "),
            "{status}"
        );
    });
    tree.boot("user", As::Tester, || {
        let Some(version) = postgres() else { return };
        let commands = install("A database of a user", |text| text.replace("17", &version).replace(SOON.0, SOON.1));
        let [before @ .., psql] = &commands[..] else { panic!("no commands") };
        let said = shell(&before.join("\n"));
        assert!(said.contains("1 listener can be served"), "{said}");
        let state = || attempt("systemctl --user is-active db.service").1;
        assert_eq!(state(), "inactive");
        for _ in 0..2 {
            assert_eq!((shell(&psql.replace("-c", "-Atc")).as_str(), state().as_str()), ("1", "active"));
            eventually("it is stopped", || state() == "inactive");
        }
    });
}

#[test]
fn a_model_server_of_a_user_that_listens_late_is_waited_for_and_stopped() {
    let Some(tree) = tree!() else { return };
    tree.boot("user", As::Tester, || {
        let commands = install("A model server of a user", |text| text.replace(SOON.0, SOON.1));
        let server = "#!/bin/sh\n[ \"$*\" = \"--host 127.0.0.1 --port 8081 --model $HOME/models/model.gguf\" ] || exit 2\n\
                      sleep 1\nexec perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalAddr => \"127.0.0.1:8081\", \
                      Listen => 9, ReuseAddr => 1) or die; while ($c = $s->accept) { print $c \"ready\"; close $c }'\n";
        shell("mkdir -p ~/bin");
        fs::write(shell("echo ~/bin/llama-server"), server).expect("one's own home");
        let said = shell(&format!("chmod +x ~/bin/llama-server\n{}", commands.join("\n")));
        assert!(said.contains("1 listener can be served"), "{said}");
        let state = || attempt("systemctl --user is-active localai.service").1;
        let asked = || Wire::tcp(SocketAddr::from(([127, 0, 0, 1], 8080)));
        let (mut first, mut second) = (asked(), asked());
        eventually("the sessions say what they wait for", || {
            shell("qrexec-connect sessions").matches("waiting for unit").count() == 2
        });
        eventually("the unit is on its way", || {
            let status = shell("COLUMNS=1000 qrexec-connect status");
            status.contains("\n         localai.service acti") && status.contains("; 2 sessions wait")
        });
        let json = shell("qrexec-connect sessions --json");
        assert_eq!(json.matches("\"start_unit\":\"localai.service\"").count(), 2, "{json}");
        assert_eq!(json.matches("\"start_unit_state\":\"acti").count(), 2, "{json}");
        let json: Value = serde_json::from_str(&json).expect("JSON");
        for session in json["sessions"].as_array().expect("a list") {
            let unit = &session["start_unit_now"];
            assert!(unit["since"].is_u64() && unit["waiting"] == 2 && unit["ours"].is_boolean(), "{session}");
        }
        assert_eq!((first.read_to_end(), second.read_to_end()), (b"ready".to_vec(), b"ready".to_vec()));
        drop((first, second));
        eventually("its end is known", || {
            shell("COLUMNS=1000 qrexec-connect status").contains("active since ") // with the time of day
                && shell("COLUMNS=1000 qrexec-connect status").contains("; not used, stops at ")
        });
        let metrics = shell("qrexec-connect metrics");
        assert!(metrics.contains("qrexec_connect_start_unit_state{unit=\"localai.service\",state=\"active\"} 1"), "{metrics}");
        assert!(metrics.contains("qrexec_connect_start_unit_stop_seconds{unit=\"localai.service\"} "), "{metrics}");
        eventually("it is stopped", || state() == "inactive");
        assert_eq!(shell("journalctl --user -q -o cat -t qrexec-connect | grep -c 'is started for a connection'"), "1");
        // Each surface has all that is known of it then. Whether there is a memory controller is the machine's affair.
        let status: Value = serde_json::from_str(&shell("qrexec-connect status --json")).expect("JSON");
        let unit = &status["start_units"][0];
        assert_eq!((&unit["state"], &unit["waiting"], &unit["ours"]), (&"inactive".into(), &0.into(), &false.into()));
        assert!(["since", "last_start_ms", "median_start_ms"].iter().all(|name| unit[name].is_u64()), "{unit}");
        let metrics = shell("qrexec-connect metrics");
        for metric in ["changed_seconds", "sessions_waiting", "last_start_seconds", "median_start_seconds"] {
            assert!(metrics.contains(&format!("start_unit_{metric}{{unit=\"localai.service\"}} ")), "{metrics}");
        }
        let said = shell("journalctl --user -q -o cat -t qrexec-connect | grep 'localai.service is stopped'");
        assert_eq!(unit["memory_before_stop"].is_u64(), said.contains("; it had "), "{unit}: {said}");
        assert_eq!(metrics.contains("start_unit_memory_before_stop_bytes{"), said.contains("; it had "), "{metrics}");
        // A session that is connected tells of its unit, too.
        shell("sed -i 's/print $c .*close $c/push @all, $c/' ~/bin/llama-server");
        let _third = asked();
        eventually("it is connected", || {
            let sessions: Value = serde_json::from_str(&shell("qrexec-connect sessions --json")).expect("JSON");
            let Some(id) = sessions["sessions"][0]["id"].as_str() else { return false };
            let all = shell(&format!("COLUMNS=1000 qrexec-connect sessions {id}"));
            all.contains("on demand: localai.service active since ") && all.contains("; used by 1 session")
        });
    });
}

#[test]
fn a_system_service_with_a_user_needs_the_rule_of_the_page_and_no_more() {
    let Some(tree) = tree!().filter(|tree| !is_bare(tree)) else { return };
    tree.boot("polkit", As::Root, || {
        if !Path::new("/usr/lib/polkit-1/polkitd").exists() {
            return skip("polkitd is missing (Debian: polkitd)");
        }
        // with-systemd boots without a bus
        shell("rm /run/systemd/system/dbus.{service,socket}; systemctl daemon-reload");
        shell("systemctl start dbus.socket dbus.service polkit.service");
        let server = "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep infinity'\n";
        for unit in ["localai", "other"] {
            fs::write(format!("/etc/systemd/system/{unit}.service"), server).expect("root's own tree");
        }
        for half in ["qrexec-connect", "qrexec-connect-calls"] {
            shell(&format!(
                "mkdir -p /etc/systemd/system/{half}.service.d; sed 's/\\buser\\b/tester/' \
                 /usr/share/doc/qrexec-connect/examples/{half}.service.d/unprivileged.conf \
                 >/etc/systemd/system/{half}.service.d/unprivileged.conf"
            ));
        }
        for (port, unit) in [(8080, "localai"), (8082, "other")] {
            let text = format!(
                "[Socket]\nListenStream=127.0.0.1:{port}\n\
                 FileDescriptorName=target=127.0.0.1+9,start_unit={unit},stop_when_idle=2,retry_timeout=1\n"
            );
            fs::write(format!("/etc/systemd/system/qrexec-connect-{unit}.socket"), text).expect("root's own tree");
        }
        shell("systemctl daemon-reload; systemctl start qrexec-connect-localai.socket qrexec-connect-other.socket");
        let state = |unit: &str| attempt(&format!("systemctl is-active {unit}.service")).1;
        let said = |text: &str| {
            eventually(text, || shell("journalctl -q -o cat -t qrexec-connect").contains(text));
        };
        let dial_reset = |port: u16| Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port))).expect_reset();
        dial_reset(8080);
        assert_eq!(state("localai"), "inactive");
        said("cannot start localai.service: ");
        said("nteractive authentication required");
        install("A system service with User=", |text| text.replace("\"user\"", "\"tester\""));
        // polkitd looks at the directory of its rules (inotify); a failed start has a pause of 1 s.
        eventually("the rule is in force", || {
            dial_reset(8080); // nobody listens at the target
            state("localai") == "active"
        });
        eventually("it is stopped", || state("localai") == "inactive");
        said("localai.service is stopped after 2 s without a session");
        dial_reset(8082);
        assert_eq!(state("other"), "inactive");
        said("cannot start other.service: ");
        // A rule that allows the start alone.
        let rule = section("A system service with User=").0[0].1;
        let half = rule.replace("\"user\"", "\"tester\"").replace("localai", "other").replace("\"start\", \"stop\"", "\"start\"");
        fs::write("/etc/polkit-1/rules.d/60-half.rules", half).expect("root's own tree");
        eventually("the rule is in force", || {
            dial_reset(8082);
            state("other") == "active"
        });
        said("other.service is idle and not stopped: systemd refuses the stop: ");
        assert_eq!(state("other"), "active");
    });
}

/// The part `podman` of `tests/run --long`: no image can be fetched, so the container has a separate root with busybox
/// in it. The control groups here have no controllers, and nobody makes device nodes.
#[test]
fn a_container_of_podman_is_started_by_its_first_client_and_stopped_after_its_last() {
    if sample("containers of podman", 0, 1) == 0 {
        return;
    }
    let Some(tree) = tree!() else { return };
    let generator = Path::new("usr/lib/systemd/system-generators/podman-system-generator");
    if tree.is_outside()
        && !std::env::var_os("SYSTEMD_ROOT").is_some_and(|root| Path::new(&root).join(generator).exists())
    {
        return skip("the tree has no podman (tests/mk-root DIR trixie podman,crun,busybox-static)");
    }
    tree.boot("podman", As::Root, || {
        shell(
            "mkdir -p /srv/web/bin /srv/web/proc /srv/web/sys /srv/web/dev /srv/web/etc /srv/web/tmp /srv/web/run; \
             cp /bin/busybox /srv/web/bin; echo hello >/srv/web/index.html; mkdir -p /etc/containers",
        );
        let storage = "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\n\
                       graphroot = \"/var/lib/containers/storage\"\n";
        fs::write("/etc/containers/storage.conf", storage).expect("root's own tree");
        let commands = install("A container (Quadlet)", |text| {
            text.replace(
                "Image=docker.io/library/nginx:stable",
                "Rootfs=/srv/web\nExec=/bin/busybox httpd -f -p 8081 -h /\nPidsLimit=0\nVolume=/dev:/dev",
            )
            .replace("PublishPort=127.0.0.1:8081:80", "Network=host")
            .replace("stop_when_idle=600", "stop_when_idle=1")
        });
        assert_eq!(commands, [""; 0]);
        shell("systemctl daemon-reload; systemctl start pfwd-web.socket");
        let state = || attempt("systemctl show -P ActiveState web.service").1;
        assert_eq!(state(), "inactive", "nothing starts it before a client comes");
        for _ in 0..2 {
            let mut wire = Wire::tcp("127.0.0.1:8080".parse().expect("an address"));
            wire.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").expect("it waits");
            let mut answer = String::new();
            wire.read_to_string(&mut answer).expect("an answer");
            assert!(answer.ends_with("hello\n"), "{answer}");
            assert!(shell("podman ps --format {{.Names}}").contains("systemd-web"));
            drop(wire);
            eventually("it is stopped", || ["inactive", "failed"].contains(&state().as_str()));
            assert_eq!(shell("podman ps -a -q"), "");
        }
        let told = shell("journalctl -q -o cat -t pfwd");
        assert_eq!(told.matches("web.service is stopped after").count(), 2, "{told}");
    });
}

/// Without podman: what its generator makes of `web.container` is written by hand, as podman-systemd.unit(5) says, and
/// systemd reads it.
#[test]
fn the_units_of_the_container_example_are_understood_by_systemd_and_by_check() {
    let Some(tree) = tree!() else { return };
    tree.boot("container", As::Root, || {
        let (files, commands) = section("A container (Quadlet)");
        let [(container, text), (socket, _)] = files[..] else { panic!("two files") };
        assert_eq!((container, commands.len()), ("/etc/containers/systemd/web.container", 0));
        let own = text.split_once("[Service]\n").expect("lines that are systemd's own").1;
        install("A container (Quadlet)", str::to_owned);
        let made = format!(
            "[Unit]\nWants=network-online.target\nAfter=network-online.target\nRequiresMountsFor=%t/containers\n\
             [Service]\n{own}\nEnvironment=PODMAN_SYSTEMD_UNIT=%n\nKillMode=mixed\nDelegate=yes\nType=notify\n\
             NotifyAccess=all\nSyslogIdentifier=%N\nExecStart=/bin/sleep infinity\n"
        );
        fs::write("/etc/systemd/system/web.service", made).expect("root's own tree");
        let verified = shell(&format!("systemd-analyze --man=no verify {socket} /etc/systemd/system/web.service 2>&1"));
        assert_eq!(verified, "");
        shell("systemctl daemon-reload");
        let checked = shell("pfwd check pfwd-web.socket");
        assert!(checked.contains("127.0.0.1:8080 -> tcp 127.0.0.1:8081") && !checked.contains("warning"), "{checked}");
    });
}
