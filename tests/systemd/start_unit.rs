//! `start_unit` before a client comes: what `check` says of the units, and what the service refuses.

use std::fs;

use crate::tree::{As, attempt, shell, user_unit};

/// Units of which `good` alone can be started for a client and stopped again without a word; `kept` is enabled.
const UNITS: [(&str, &str); 6] = [
    ("good", ""),
    ("hidden", ""),
    ("manual", "RefuseManualStart=yes\n"),
    ("lasting", "RefuseManualStop=yes\n"),
    ("unneeded", "StopWhenUnneeded=yes\n"),
    ("kept", ""),
];

/// What is said of each unit, beside stop_when_idle.
const SAID: [&str; 5] = [
    "start_unit: missing.service does not exist",
    "start_unit: hidden.service is masked",
    "start_unit: manual.service has RefuseManualStart=yes",
    "start_unit: lasting.service has RefuseManualStop=yes",
    "start_unit: unneeded.service has StopWhenUnneeded=yes",
];

fn unit_text(lines: &str) -> String {
    format!(
        "[Unit]\n{lines}[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=default.target multi-user.target\n"
    )
}

/// A forward from port 2001 on for each unit.
fn forwards() -> String {
    let names = ["missing"].into_iter().chain(UNITS.map(|(name, _)| name));
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
        assert_says_once(
            &stdout,
            "with a stop_when_idle of 9.5 s, ai.service can be started more than 5 times in 10 s",
        );
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
