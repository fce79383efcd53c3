//! A reload that fails, in the journal: each fact once, whoever looks at the unit.

use std::{collections::BTreeMap, fs, net::TcpListener};

use serde_json::Value;

use crate::{
    faults::{GOOD, Managed, broken, echo_server},
    support::eventually,
    tree::{As, attempt, shell},
};

impl Managed {
    /// What the processes of the service have in the journal of one reload, which fails: one text for each entry.
    #[track_caller]
    fn entries_of_a_failing_reload(&self, expected: &str) -> Vec<String> {
        let journal = self.command("JOURNALCTL -q -u SERVICE -o json --all");
        let last = shell(&format!("{journal} -n 1"));
        let last: BTreeMap<String, Value> = serde_json::from_str(&last).expect("the service has written something");
        let cursor = last["__CURSOR"].as_str().expect("a text").to_owned();
        let (code, _, why) = attempt(&self.command("SYSTEMCTL reload SERVICE"));
        assert_ne!(code, Some(0), "{why}");
        // What ExecReload= printed is in the journal before what is printed after it.
        shell(&format!("echo 'after {cursor}' | systemd-cat -t later"));
        let entries = || {
            let lines = shell(&format!("{journal} --after-cursor='{cursor}'"));
            let entries = lines.lines().map(|line| serde_json::from_str(line).expect("journalctl writes JSON"));
            let ours = entries.filter(|entry: &BTreeMap<String, Value>| entry["SYSLOG_IDENTIFIER"] != "systemd");
            ours.map(|entry| entry["MESSAGE"].as_str().expect("a text").to_owned()).collect::<Vec<_>>()
        };
        eventually("the journal has it", || {
            let later = shell(&self.command("JOURNALCTL -q -t later -o cat"));
            later.contains(&cursor) && entries().iter().any(|text| text.contains(expected))
        });
        entries()
    }

    /// Each of these has one entry, and there is no other entry; for a new fault and for one that lasts.
    #[track_caller]
    fn assert_each_once(&self, expected: &[&str]) {
        for when in ["new", "lasting"] {
            let entries = self.entries_of_a_failing_reload(expected[0]);
            let each = expected.iter().all(|part| entries.iter().filter(|text| text.contains(part)).count() == 1);
            assert!(each && entries.len() == expected.len(), "{}, {when}: {expected:?} in {entries:#?}", self.program);
        }
    }

    fn failing_reloads_are_told_once(&self) {
        self.start();
        let program = self.program;
        // a fault of the file
        let (text, place) = broken().swap_remove(0);
        self.write(&text);
        self.assert_each_once(&[place]);
        // a listener that cannot be opened
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = holder.local_addr().expect("bound");
        let more = format!("\n[[forward]]\nlisten = \"{taken}\"\ntarget = \"127.0.0.1:7001\"\n");
        self.write(&format!("{GOOD}{more}"));
        let busy = format!("{taken} is not served: ");
        self.assert_each_once(&[&busy, "configuration reloaded: "]);
        let (code, _, why) = attempt(&self.command(&format!("{program} reload{}", self.scope())));
        assert!(code == Some(1) && why.contains(&busy), "who types it reads why: {why}");
        drop(holder);
        self.write(GOOD);
        // sockets whose names mean nothing, and one that is no listener
        let units = self.units();
        shell(&format!(
            "cd {units}
             printf '[Socket]\\nListenStream=127.0.0.1:2004\\nFileDescriptorName=nobody\\n' >{program}-nobody.socket
             printf '[Socket]\\nListenFIFO=%%t/fifo\\nFileDescriptorName=ssh\\n' >{program}-fifo.socket"
        ));
        self.order("daemon-reload; SYSTEMCTL start PROGRAM-nobody.socket PROGRAM-fifo.socket");
        self.settled();
        self.assert_each_once(&[
            "127.0.0.1:2004 (FileDescriptorName=nobody)",
            "ListenFIFO=",
            "configuration reloaded: ",
        ]);
        // A socket that is stopped has the service restarted.
        self.order("stop PROGRAM-nobody.socket PROGRAM-fifo.socket PROGRAM-ssh.socket");
        self.settled();
        self.order("stop SERVICE");
        fs::remove_file(&self.drop_in).expect("it is there");
    }

    /// The option by which the program finds this manager.
    fn scope(&self) -> &'static str {
        if self.program == "qrexec-connect" && self.systemctl == "systemctl" { " --system" } else { "" }
    }
}

#[test]
fn a_reload_that_fails_has_one_entry_in_the_journal_for_each_thing_that_is_not_served() {
    let Some(tree) = tree!() else { return };
    tree.boot("system", As::Root, || {
        echo_server();
        Managed::system().failing_reloads_are_told_once();
        Managed::connect_of_the_system().failing_reloads_are_told_once();
    });
    tree.boot("user", As::Tester, || {
        echo_server();
        Managed::user().failing_reloads_are_told_once();
    });
}
