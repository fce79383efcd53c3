//! What the owner of dom0 says and sees.

use crate::support::eventually;

#[test]
fn a_policy_decides_and_a_semicolon_leads_nowhere() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "allow qvm-ls *\nallow shell 'echo exact'\n");
    world.remote("work", &["--argv", "qvm-ls"]).expect(0, "NAME STATE\nwork Running\n");
    world.remote("work", &["--argv", "qvm-ls", "; touch /root/hacked"]).expect(0, "NAME STATE\nwork Running\n");
    world
        .remote("work", &["qvm-ls; touch /root/hacked"])
        .expect(126, "")
        .says("denied: no rule of its policy allows it");
    world.remote("work", &["qvm-ls"]).expect(126, "");
    world.remote("work", &["echo exact"]).expect(0, "exact\n");
    world.remote("work", &["--argv", "/bin/sh", "-c", "touch /root/hacked"]).expect(126, "");
    world.remote("work", &["--argv", "/home/user/qvm-ls"]).expect(126, "");
    world.dom0("ls /root/hacked 2>/dev/null").expect(2, "");
    world.policy("work", "allow qvm-ls *\nnonsense\n");
    world.remote("work", &["--argv", "qvm-ls"]).expect(126, "").says("the policy of this qube has an error");
    assert!(world.log().contains("work.policy:2: neither a rule"), "{}", world.log());
    world.dom0("rm /etc/qubes/remote.d/work.policy").expect(0, "");
    world.remote("work", &["--argv", "qvm-ls"]).expect(126, "").says("is missing, so nothing is allowed");
    assert!(world.log().contains("DENY vm=work"));
}

#[test]
fn environment_and_directory_are_dropped_unless_the_policy_names_them() {
    let world = world!("work");
    let _daemon = world.ready();
    let hostile = "export BASH_ENV=/home/user/evil PATH=/home/user:$PATH LD_PRELOAD= IFS=x LANG=de TZ=Mars; echo 'echo evil' >evil; ";
    world.shell("work", &format!("{hostile} qvm-remote 'env | sort | grep -vE \"^(_|QVM_REMOTE_ID|SHLVL|PWD)=\"; pwd'")).expect(
        0,
        "HOME=/root\nLANG=C.UTF-8\nLOGNAME=root\n\
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nQVM_REMOTE_VM=work\nSHELL=/bin/bash\nUSER=root\n/root\n",
    );
    world.policy("work", "allow shell * [env=TZ cwd=/tmp]\n");
    world.shell("work", &format!("{hostile} qvm-remote 'echo $TZ; pwd'")).expect(0, "Mars\n/tmp\n");
    world.policy("work", "allow shell * [user=nobody stdin=no timeout=1 max-output=1K]\n");
    world.remote("work", &["id -un; echo $HOME $USER"]).expect(0, "nobody\n/nonexistent nobody\n");
    world.shell("work", "echo x | qvm-remote -i cat").expect(126, "").says("no standard input");
    assert_eq!(world.remote("work", &["sleep 100"]).code, 124);
    let done = world.remote("work", &["yes"]);
    assert_eq!((done.code, done.out.len()), (125, 1024), "{}", done.err);
    world.policy("work", "force = echo \"forced: $QVM_REMOTE_ORIGINAL_COMMAND\"\nallow shell *\n");
    world.remote("work", &["rm -rf /"]).expect(0, "forced: rm -rf /\n");
}

#[test]
fn revoke_counts_at_once_and_with_kill_for_what_runs() {
    let world = world!("work", "dev");
    let _daemon = world.ready();
    let mut running = world.remote_start("work", &["echo up; sleep 4741"]);
    running.wait_for("up\n");
    world
        .dom0("qvm-remote-dom0 revoke --kill work")
        .expect(0, "Revoked VM 'work'.\nEnded 1 command, those that waited included.\n");
    assert_eq!(running.end().code, 130);
    world.remote("work", &["true"]).expect(126, "").says("this qube has no key in dom0 (any more)");
    world.remote("dev", &["echo untouched"]).expect(0, "untouched\n");
    // the last key: nobody is served, nothing is open
    let mut running = world.remote_start("dev", &["echo up; sleep 4742"]);
    running.wait_for("up\n");
    world.dom0("qvm-remote-dom0 revoke dev").expect(0, "Revoked VM 'dev'.\n");
    // what still runs ends although the key is gone already
    world
        .dom0("qvm-remote-dom0 revoke --kill dev")
        .expect(0, "VM 'dev' has no key.\nEnded 1 command, those that waited included.\n");
    assert_eq!(running.end().code, 130);
    world.remote("dev", &["true"]).expect(126, "").says("not authorized");
}

#[test]
fn keys_are_changed_without_a_gap() {
    let world = world!("work");
    let _daemon = world.ready();
    let old = world.remote("work", &["key", "show"]).text();
    let made = world.remote("work", &["key", "gen"]);
    made.says("authorize --keep-old work").says("The old key stays in use until dom0 has accepted this one.");
    let new = made.text();
    let run = |key: &str, keep: &str| world.dom0(&format!("qvm-remote-dom0 authorize {keep} work {key}")).code;
    let shown = || world.remote("work", &["key", "show"]).text();
    // the old one works on, also for who looks whether the new one is accepted
    world.remote("work", &["echo old"]).expect(0, "old\n");
    world.remote("work", &["ping"]).expect(0, "qvm-remote-dom0 is responding.\n");
    assert_eq!(shown(), old);
    // a request of the queue that the old key has signed
    world.policy("work", "max-running = 1\nallow shell *\n");
    let mut busy = world.remote_start("work", &["-i", "echo up; read x"]);
    busy.wait_for("up\n");
    let queued = world.remote_start("work", &["--queue", "echo queued"]);
    let running = world.home("work").join(".qvm-remote/queue/running");
    eventually("it waits in dom0", || running.read_dir().is_ok_and(|d| d.count() == 1));
    assert_eq!(run(new.trim(), "--keep-old"), 0);
    assert_eq!(world.dom0("qvm-remote-dom0 keys | wc -l").text(), "3\n", "one line for each key");
    assert!(world.dom0("qvm-remote-dom0 keys").text().contains("never"), "the new one was not used yet");
    busy.end();
    queued.end().expect(0, "queued\n");
    // accepted, it is taken into use
    world.remote("work", &["ping"]).expect(0, "qvm-remote-dom0 is responding.\n");
    assert_eq!(shown(), new);
    world.remote("work", &["echo new"]).expect(0, "new\n");
    eventually("its use is noted", || !world.dom0("qvm-remote-dom0 keys").text().contains("never"));
    world.remote("work", &["key", "import", old.trim()]);
    world.remote("work", &["echo old"]).expect(0, "old\n");
    assert_eq!(run(new.trim(), ""), 0);
    let retired = "it was signed with a key that was retired in dom0, 20";
    world.remote("work", &["true"]).expect(126, "").says(retired);
    world.remote("work", &["--queue", "true"]).expect(126, "").says(retired);
    // where nobody kept the old one, the first command takes the new one into use
    world.remote("work", &["key", "import", new.trim()]);
    let newer = world.remote("work", &["key", "gen"]).text();
    assert_eq!(run(newer.trim(), ""), 0);
    // also while another one runs that began with it, and of several at a time
    world.policy("work", "allow shell *\n");
    let mut long = world.remote_start("work", &["-i", "echo up; read x; echo newer"]);
    long.wait_for("up\n");
    for command in [(); 3].map(|()| world.remote_start("work", &["echo newer"])) {
        command.end().expect(0, "newer\n");
    }
    assert_eq!(shown(), newer);
    long.write(b"go on\n");
    long.end().expect(0, "up\nnewer\n");
    assert_eq!(shown(), newer);
    // and so does the queue
    let newest = world.remote("work", &["key", "gen"]).text();
    let again = world.remote("work", &["key", "gen"]);
    again.expect(1, "").says("a new key waits already").says("qvm-remote ping");
    assert_eq!(run(newest.trim(), ""), 0);
    world.remote("work", &["--queue", "echo newest"]).expect(0, "newest\n");
    assert_eq!(shown(), newest);
    // at a terminal it is asked first
    let asked =
        world.shell("work", "mkfifo typed; exec 8<>typed; echo n >&8; script -qec 'qvm-remote key gen' /dev/null <&8");
    assert!(
        asked.text().contains("this qube has a key; a new one takes its place")
            && asked.text().contains("No key was made."),
        "{asked:#?}"
    );
    world.shell("work", "ls .qvm-remote/auth.key.new").expect(2, "");
    // a file that cannot be read as a key is not replaced unasked
    world.shell("work", "echo damaged >.qvm-remote/auth.key").expect(0, "");
    world.remote("work", &["key", "gen"]).expect(1, "").says("auth.key cannot be read");
    world.shell("work", "cat .qvm-remote/auth.key").expect(0, "damaged\n");
}

#[test]
fn a_daemon_without_keys_or_beside_another_does_not_start() {
    let world = world!("work");
    world
        .dom0("qvm-remote-dom0")
        .expect(1, "")
        .says("no VMs configured. Set QVM_REMOTE_VMS in /etc/qubes/remote.conf or use --vm VM");
    world.dom0("qvm-remote-dom0 --vm work").expect(1, "").says("no VM that is listed has a key");
    world.dom0("qvm-remote-dom0 authorize ../x 00").expect(1, "");
    world.authorize();
    world.dom0("qvm-remote-dom0 --vm nosuch").expect(1, "").says("no VM that is listed has a key");
    world
        .dom0("cp /etc/qubes/remote.d/work.key /etc/qubes/remote.d/nosuch.key; qvm-remote-dom0 --vm nosuch")
        .expect(1, "")
        .says("VM 'nosuch' does not exist");
    let _daemon = world.daemon();
    world.dom0("qvm-remote-dom0 --once").expect(1, "").says("another qvm-remote-dom0 is running");
    world.remote("work", &["echo unharmed"]).expect(0, "unharmed\n");
}

#[test]
fn once_does_what_waits_and_a_dry_run_touches_nothing() {
    let world = world!("work");
    world.authorize();
    let waiting = world.remote_start("work", &["--queue", "touch /root/ran; echo done"]);
    let pending = world.home("work").join(".qvm-remote/queue/pending");
    eventually("a request", || pending.read_dir().is_ok_and(|d| d.count() == 2));
    let before =
        world.dom0("find /etc/qubes /var/log /var/lib /run /root -type f -printf '%p %s %T@\\n' | sort").text();
    let dry = world.dom0("qvm-remote-dom0 --once --dry-run");
    assert_eq!(dry.code, 0, "{dry:#?}");
    assert!(dry.err.contains("DRY vm=work") && dry.err.contains("decision=allow"), "{dry:#?}");
    let after = world.dom0("find /etc/qubes /var/log /var/lib /run /root -type f -printf '%p %s %T@\\n' | sort").text();
    assert_eq!(before, after);
    let answer = waiting.end();
    assert!(answer.text().starts_with("[dry-run] allow cmd=touch /root/ran"), "{answer:#?}");
    let waiting = world.remote_start("work", &["--queue", "touch /root/ran; echo done"]);
    eventually("a request", || pending.read_dir().is_ok_and(|d| d.count() == 2));
    assert_eq!(world.dom0("qvm-remote-dom0 --once").code, 0);
    waiting.end().expect(0, "done\n");
    world.dom0("ls /root/ran").expect(0, "/root/ran\n");
}

#[test]
fn the_service_is_enabled_only_behind_a_typed_yes() {
    let world = world!("work");
    world
        .dom0("echo no | qvm-remote-dom0 enable")
        .expect(1, "Aborted.\n")
        .says("Type 'yes' to accept this risk and enable:");
    world
        .dom0("echo yes | qvm-remote-dom0 enable")
        .expect(0, "Enabled and started. Disable with: qvm-remote-dom0 disable\n");
    world.dom0("qvm-remote-dom0 disable").expect(0, "Disabled and stopped.\n");
    world
        .dom0("qvm-remote-dom0 start --for 30min")
        .expect(0, "Started for 30min; then it is stopped. Another 'start --for' sets another time.\n");
    world.dom0("qvm-remote-dom0 start --for 30mim").expect(2, "").says("write a span of time");
    let calls = std::fs::read_to_string(world.path().join("systemctl")).expect("noted");
    let calls: String =
        calls.lines().filter(|line| !line.starts_with("show ")).map(|line| format!("{line}\n")).collect();
    assert_eq!(
        calls,
        "enable qvm-remote-dom0\nstart qvm-remote-dom0\ndisable qvm-remote-dom0\nstop qvm-remote-dom0\nstart qvm-remote-dom0\n"
    );
    std::fs::write(world.path().join("vms/work/netvm"), "sys-firewall\n").expect("written");
    let key = world.remote("work", &["key", "gen"]).text();
    let done = world.dom0(&format!("qvm-remote-dom0 authorize work {} --deny", key.trim()));
    assert!(done.text().contains("WARNING: 'work' is connected to the network (netvm: sys-firewall)"), "{done:#?}");
    assert!(!done.text().contains("allow shell *"), "{done:#?}");
}

#[test]
fn the_installer_takes_only_the_program_that_the_owner_named() {
    let world = world!("work");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/install-dom0.sh");
    std::fs::copy(source, world.home("work").join("install-dom0.sh")).expect("copied");
    std::fs::copy(env!("CARGO_BIN_EXE_qvm-remote-dom0"), world.home("work").join("program")).expect("copied");
    world.dom0("chown 1000:1000 $WORLD/vms/work/home/user/*").expect(0, "");
    // as the README prints it
    world.dom0("qvm-run --pass-io --no-gui work 'cat ~/install-dom0.sh' > /tmp/install-$$.sh && mv /tmp/install-$$.sh /root/install-dom0.sh").expect(0, "");
    let hash = world.dom0("sha256sum $WORLD/vms/work/home/user/program | cut -c1-64").text();
    let install = |words: &str| world.dom0(&format!("bash /root/install-dom0.sh {words} </dev/null"));
    install("work /home/user/program").expect(1, "").says("nothing is installed unseen");
    install(&format!("--sha256 {} work /home/user/program", hash.trim())).expect(1, "").says("no terminal to ask on");
    install(&format!("--yes --sha256 {} work /home/user/program", "0".repeat(64)))
        .expect(1, "")
        .says("nothing was installed");
    install(&format!("--yes --sha256 {} nosuch /home/user/program", hash.trim())).expect(1, "").says("does not exist");
    install(&format!("--yes --sha256 {} work '/home/user/x;id'", hash.trim())).expect(1, "").says("the path may hold");
    world.dom0("ls /usr/bin/qvm-remote-dom0 /etc/systemd/system/qvm-remote-dom0.service /etc/qubes/remote.conf 2>/dev/null").expect(2, "");
    // a qube that runs and has no key, and another one whose name begins alike in the list
    let install_work = || install(&format!("--yes --sha256 {} work /home/user/program", hash.trim()));
    install_work().expect(1, "").says("could not be read in work (it has no key; there: qvm-remote key gen)");
    world.remote("work", &["key", "gen"]);
    world
        .dom0("echo 'QVM_REMOTE_VMS=\"work-vm my-work\"' >/etc/qubes/remote.conf; chmod 600 /etc/qubes/remote.conf")
        .expect(0, "");
    let done = install_work();
    assert_eq!(done.code, 0, "{done:#?}");
    done.says("add work to QVM_REMOTE_VMS");
    assert!(
        done.text().contains("QVM_REMOTE_VMS=\"work-vm my-work work\"\n  systemctl reload qvm-remote-dom0"),
        "{done:#?}"
    );
    world.dom0("echo QVM_REMOTE_VMS=work >/etc/qubes/remote.conf").expect(0, "");
    let done = install_work();
    assert!(done.code == 0 && !done.err.contains("add work"), "{done:#?}");
    assert!(done.code == 0 && done.text().contains("Installed. In work: qvm-remote ping."), "{done:#?}");
    assert!(done.err.contains("WARNING"), "{done:#?}");
    world
        .dom0("stat -c %a /usr/bin/qvm-remote-dom0 /etc/systemd/system/qvm-remote-dom0.service /etc/qubes/remote.conf")
        .expect(0, "755\n644\n600\n");
    let unit = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/units/system/qvm-remote-dom0.service"))
        .expect("there");
    world.dom0("cat /etc/systemd/system/qvm-remote-dom0.service").expect(0, &unit);
    let unit =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/units/system/qvm-remote-dom0-commands.service"))
            .expect("there");
    world.dom0("cat /etc/systemd/system/qvm-remote-dom0-commands.service").expect(0, &unit);
    let _daemon = world.daemon();
    world.remote("work", &["hostname"]).expect(0, "dom0\n");
    // where a daemon runs, that is of the program before: it restarts when no command runs
    let calls = || std::fs::read_to_string(world.path().join("systemctl")).expect("noted");
    let starts = || calls().matches("start qvm-remote-dom0\n").count();
    let before = starts();
    std::fs::write(world.path().join("state"), "active\n").expect("written");
    let mut runs = world.remote_start("work", &["-i", "echo up; read x; echo end"]);
    runs.wait_for("up\n");
    let done = install_work();
    assert!(done.code == 0 && done.text().contains("when no command runs or waits"), "{done:#?}");
    assert!(starts() == before && !calls().contains("try-restart"), "{}", calls());
    runs.write(b"\n");
    runs.end().expect(0, "up\nend\n");
    eventually("the restart", || calls().contains(" try-restart -- qvm-remote-dom0.service\n"));
}

#[test]
fn the_list_of_qubes_is_read_again_when_it_is_asked_for() {
    let world = world!("work", "dev");
    world.authorize();
    let list = |names: &str| world.dom0(&format!("echo 'QVM_REMOTE_VMS=\"{names}\"' >/etc/qubes/remote.conf"));
    let reread = || world.dom0("kill -HUP $(qvm-remote-dom0 status --json | grep -oE '\"pid\":[0-9]+' | cut -d: -f2)");
    list("work");
    let daemon = world.dom0_start("qvm-remote-dom0");
    eventually("work", || world.remote("work", &["ping"]).code == 0);
    world.remote("dev", &["--connect-timeout", "1", "true"]).expect(255, "");
    list("work dev ../x nosuch");
    reread().expect(0, "");
    eventually("dev", || world.remote("dev", &["ping"]).code == 0);
    world.remote("work", &["echo untouched"]).expect(0, "untouched\n");
    // one that is taken off: what runs for it is ended and answered, another's goes on
    let mut off = world.remote_start("work", &["echo up; sleep 4742"]);
    let mut on = world.remote_start("dev", &["-i", "echo up; read x; echo $x"]);
    off.wait_for("up\n");
    on.wait_for("up\n");
    list("dev");
    reread().expect(0, "");
    assert_eq!(off.end().code, 130);
    eventually("no sleep left", || world.processes("sleep 4742") == 0);
    on.write(b"still\n");
    on.end().expect(0, "up\nstill\n");
    eventually("its channel is closed", || world.remote("work", &["--connect-timeout", "1", "true"]).code == 255);
    assert!(!world.dom0("qvm-remote-dom0 status --json").text().contains("\"work\""));
    // and put back
    list("dev work");
    reread().expect(0, "");
    eventually("work", || world.remote("work", &["ping"]).code == 0);
    drop(daemon);
}

#[test]
fn a_policy_of_the_owners_own_is_there_before_the_key() {
    let world = world!("work");
    let key = world.remote("work", &["key", "gen"]).text();
    let authorize = |words: &str| world.dom0(&format!("qvm-remote-dom0 authorize {words} work {}", key.trim()));
    world.dom0(
        "printf 'allow qvm-ls *\\npermit shell *\\nv1 = perhaps\\n' >/root/bad; printf 'allow qvm-ls *\\n' >/root/good",
    );
    let bad = authorize("--policy /root/bad");
    assert_eq!((bad.code, bad.text().as_str()), (78, ""), "{bad:#?}");
    bad.says("/root/bad:2: ").says("/root/bad:3: ");
    world.dom0("ls /etc/qubes/remote.d 2>/dev/null").expect(2, "");
    assert_eq!(authorize("--policy /root/good --deny").code, 2);
    assert_eq!(authorize("--policy /root/nosuch").code, 1);
    let good = authorize("--policy /root/good");
    assert!(good.text().contains("What it may do (/etc/qubes/remote.d/work.policy):\n  allow qvm-ls *\n"), "{good:#?}");
    assert!(!good.text().contains("WARNING"), "{good:#?}");
    world.dom0("echo QVM_REMOTE_VMS=work >/etc/qubes/remote.conf");
    let _daemon = world.daemon();
    world.remote("work", &["--argv", "qvm-ls"]).expect(0, "NAME STATE\nwork Running\n");
    world.remote("work", &["id"]).expect(126, "");
    // another key leaves the policy as the owner made it
    assert!(authorize("").text().contains("  allow qvm-ls *\n"));
}

#[test]
fn the_installer_takes_a_program_that_a_key_of_dom0_has_signed() {
    let world = world!("work");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/install-dom0.sh");
    std::fs::copy(env!("CARGO_BIN_EXE_qvm-remote-dom0"), world.home("work").join("program")).expect("copied");
    world.remote("work", &["key", "gen"]);
    // whoever builds signs, with a key of which dom0 has the public half; the other key is anybody's
    let made = world.dom0(
        "export GNUPGHOME=/root/gpg; mkdir -m 700 $GNUPGHOME; cd $WORLD/vms/work/home/user; \
         for who in builder other; do gpg -q --batch --passphrase '' --quick-gen-key $who ed25519 sign never; done && \
         gpg -q --export builder >/root/keyring.gpg && gpg -q --batch -u builder -o program.sig --detach-sign program && \
         gpg -q --batch -u other -o other.sig --detach-sign program && cp program other && chown 1000:1000 *; gpgconf --kill all",
    );
    assert_eq!(made.code, 0, "{made:#?}");
    let install = |words: &str| world.dom0(&format!("bash {source} --yes --signature {words} </dev/null"));
    let installed = || world.dom0("ls /usr/bin/qvm-remote-dom0 /etc/qubes/remote.conf 2>/dev/null").text();
    install("/root/nosuch.gpg work /home/user/program").expect(1, "").says("no such keyring");
    install("/root/keyring.gpg work /home/user/other")
        .expect(1, "")
        .says("its signature is not good: nothing was installed");
    assert_eq!(installed(), "");
    world.shell("work", "cp program changed; cp program.sig changed.sig; echo >>changed").expect(0, "");
    install("/root/keyring.gpg work /home/user/changed").expect(1, "").says("nothing was installed");
    world.shell("work", "cp program unsigned").expect(0, "");
    install("/root/keyring.gpg work /home/user/unsigned").expect(1, "").says("unsigned.sig could not be read");
    assert_eq!(installed(), "");
    let done = install("/root/keyring.gpg work /home/user/program");
    assert!(done.code == 0 && done.text().contains("Installed. In work: qvm-remote ping."), "{done:#?}");
    world.dom0("cmp /usr/bin/qvm-remote-dom0 $WORLD/vms/work/home/user/program").expect(0, "");
    let _daemon = world.daemon();
    world.remote("work", &["hostname"]).expect(0, "dom0\n");
}
