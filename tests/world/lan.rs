//! `qvm-forward` in dom0: the policy file, the features of qubes, end times.

use crate::world::{Done, World};

const POLICY: &str = "/etc/qubes/policy.d/30-qvm-forward.policy";

/// `qvm-forward` with these words, in a dom0 with a directory for its policy.
fn forward(world: &World, words: &str) -> Done {
    world.dom0(&format!("mkdir -p /etc/qubes/policy.d; exec qvm-forward {words}"))
}

/// The lines of the policy that decide.
fn rules(world: &World) -> String {
    world.dom0(&format!("grep -v '^#' {POLICY} 2>/dev/null | grep .")).text()
}

/// The features of a qube.
fn features(world: &World, qube: &str) -> String {
    world.dom0(&format!("cd \"$WORLD\"/features/{qube} 2>/dev/null && grep -H . * 2>/dev/null")).text()
}

/// What this world has noted of systemd-run.
fn timers(world: &World) -> String {
    world.dom0("cat \"$WORLD\"/systemd-run 2>/dev/null").text()
}

#[test]
fn a_forward_is_a_policy_line_and_a_feature_until_it_is_removed() {
    let world = world!("sys-net", "web");
    let added = forward(&world, "add sys-net 0.0.0.0:8443 web:443 --from 192.168.1.0/24");
    added.expect(
        0,
        "policy    30-qvm-forward.policy: qubes.ConnectTCP +443 sys-net @default allow target=web\n\
         qube      sys-net: listens on 0.0.0.0:8443 (feature vm-config.qrexec-connect-8443)\n\
         firewall  sys-net: its service accepts tcp dport 8443 in custom-input (Qubes OS 4.2 and later)\n",
    );
    assert_eq!(rules(&world), "qubes.ConnectTCP +443 sys-net @default allow target=web\n");
    let feature =
        "vm-config.qrexec-connect-8443:0.0.0.0:8443 @default qubes.ConnectTCP+443 allow_from=192.168.1.0/24\n";
    assert_eq!(features(&world, "sys-net"), feature);
    forward(&world, "check").expect(0, "0 errors found (checked: 1 forward)\n");
    let removed = forward(&world, "remove sys-net 8443");
    removed.expect(0, "removed: sys-net 0.0.0.0:8443 web:443 from=192.168.1.0/24\n");
    assert_eq!((rules(&world).as_str(), features(&world, "sys-net").as_str()), ("", ""));
    world.dom0(&format!("ls {POLICY} /run/qvm-forward/draft")).says("No such file");
    forward(&world, "remove sys-net 8443").expect(1, "").says("sys-net has no forward on port 8443");
}

#[test]
fn a_dry_run_prints_every_file_and_command_and_changes_nothing() {
    let world = world!("sys-net", "web");
    let shown = forward(&world, "add sys-net 8443 web:443 --dry-run --for 1h").text();
    for line in [
        "would write /etc/qubes/policy.d/30-qvm-forward.policy:",
        "qubes.ConnectTCP +443 sys-net @default allow target=web",
        "would run: qvm-features sys-net vm-config.qrexec-connect-8443 '127.0.0.1:8443 @default qubes.ConnectTCP+443'",
        "would run: systemd-run --quiet --collect --unit=qvm-forward-expire.service",
    ] {
        assert!(shown.contains(line), "no {line:?} in {shown}");
    }
    assert_eq!((rules(&world).as_str(), features(&world, "sys-net").as_str()), ("", ""));
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words());
    let before = (rules(&world), features(&world, "sys-net"));
    let shown = forward(&world, "remove sys-net 8443 --dry-run");
    assert!(
        shown.text().contains("would run: qvm-features --unset sys-net vm-config.qrexec-connect-8443"),
        "{shown:?}"
    );
    assert_eq!((rules(&world), features(&world, "sys-net")), before);
}

fn forward_words() -> String {
    "policy    30-qvm-forward.policy: qubes.ConnectTCP +443 sys-net @default allow target=web\n\
     qube      sys-net: listens on 127.0.0.1:8443 (feature vm-config.qrexec-connect-8443)\n"
        .to_owned()
}

#[test]
fn what_cannot_be_declared_changes_nothing() {
    let world = world!("sys-net", "web", "mail");
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words());
    let before = (rules(&world), features(&world, "sys-net"));
    let refused = [
        ("add sys-net 0.0.0.0:8443 mail:25", 1, "sys-net listens on port 8443 already, for web:443"),
        ("add sys-net 9443 web:443 --ask", 1, "are declared with 'allow' already"),
        ("add sys-net 9443 none:443", 1, "there is no qube named none"),
        ("add none 9443 web:443", 1, "there is no qube named none"),
        ("add web 9443 web:443", 2, "the qube that listens and the target are the same qube"),
        ("add dom0 9443 web:443", 2, "dom0 neither listens nor is reached"),
        ("add sys-net 9443 dom0:22", 2, "dom0 neither listens nor is reached"),
        ("add sys-net 9443 @dispvm:22", 2, "a qube's name is"),
        ("add sys-net localhost:9443 web:443", 2, "write ADDRESS:PORT with an IP address"),
        ("add sys-net 9443 web:443 --from 192.168.1.1/24", 2, "has bits set beyond the first 24"),
        ("add sys-net 9443 web:443 --for never", 2, "write 90min, 8h or 2days"),
        ("add sys-net 9443 $'web:443\\nx'", 2, "is not a port"),
    ];
    for (words, code, why) in refused {
        let done = forward(&world, words);
        assert!(done.code == code && done.err.contains(why), "{words}: wanted {code} and {why:?}: {done:#?}");
        assert_eq!((rules(&world), features(&world, "sys-net")), before, "{words}");
    }
}

#[test]
fn what_others_wrote_is_never_touched() {
    let world = world!("sys-net", "web");
    // another file, with a line that decides first
    let theirs = "qubes.ConnectTCP * sys-net @anyvm deny\n";
    world
        .dom0(&format!("mkdir -p /etc/qubes/policy.d; printf '{theirs}' >/etc/qubes/policy.d/20-x.policy"))
        .expect(0, "");
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words()).says(
        "another line may decide first: /etc/qubes/policy.d/20-x.policy:1: qubes.ConnectTCP * sys-net @anyvm deny",
    );
    let checked = forward(&world, "check");
    assert!(checked.code == 1 && checked.text().contains("another policy line may decide first"), "{checked:?}");
    forward(&world, "remove sys-net 8443").expect(0, "removed: sys-net 127.0.0.1:8443 web:443\n");
    world.dom0("cat /etc/qubes/policy.d/20-x.policy; rm /etc/qubes/policy.d/20-x.policy").expect(0, theirs);
    // our file, with a line of somebody
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words());
    world
        .dom0(&format!("echo 'qubes.Gpg * work @default allow target=vault' >>{POLICY}; cp {POLICY} /root/kept"))
        .expect(0, "");
    for words in ["add sys-net 9443 web:80", "remove sys-net 8443", "expire", "list", "check"] {
        forward(&world, words).expect(78, "").says("line 6 is not as qvm-forward writes it");
        world.dom0(&format!("cmp {POLICY} /root/kept")).expect(0, "");
    }
    world.dom0(&format!("sed -i '$d' {POLICY}")).expect(0, "");
    // a feature of somebody
    world.dom0("qvm-features sys-net vm-config.qrexec-connect-7000 theirs").expect(0, "");
    forward(&world, "add sys-net 7000 web:80").expect(1, "").says("and no declared forward set it");
    assert!(features(&world, "sys-net").contains("7000:theirs"));
    let checked = forward(&world, "check");
    let line = "to do: qvm-features --unset sys-net vm-config.qrexec-connect-7000";
    assert!(checked.code == 1 && checked.text().contains(line), "{checked:?}");
}

#[test]
fn a_second_target_of_the_same_call_has_a_line_of_its_own() {
    let world = world!("sys-net", "web", "mail");
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words());
    assert_eq!(forward(&world, "add sys-net 9443 mail:443 --ask").code, 0);
    assert_eq!(
        rules(&world),
        "qubes.ConnectTCP +443 sys-net @default allow target=web\n\
         qubes.ConnectTCP +443 sys-net mail ask default_target=mail\n"
    );
    assert!(features(&world, "sys-net").contains("9443:127.0.0.1:9443 mail qubes.ConnectTCP+443\n"));
}

#[test]
fn a_forward_that_could_not_be_set_is_taken_back_and_one_that_was_interrupted_is_added_again() {
    let world = world!("sys-net", "web");
    world.dom0("touch \"$WORLD\"/features-fail").expect(0, "");
    forward(&world, "add sys-net 8443 web:443").expect(1, "").says("the forward was not added");
    assert_eq!(rules(&world), "");
    world.dom0("rm \"$WORLD\"/features-fail").expect(0, "");
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words());
    // as if `add` had been killed between its two steps
    world.dom0("qvm-features --unset sys-net vm-config.qrexec-connect-8443").expect(0, "");
    let checked = forward(&world, "check");
    assert!(checked.code == 1 && checked.text().contains("is not set"), "{checked:?}");
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words());
    forward(&world, "check").expect(0, "0 errors found (checked: 1 forward)\n");
    // as if `remove` had been
    world.dom0(&format!("rm {POLICY}")).expect(0, "");
    let removed = forward(&world, "remove sys-net 8443");
    removed.expect(0, "unset: a feature of sys-net for port 8443, which no policy line belonged to\n");
    assert_eq!(features(&world, "sys-net"), "");
}

#[test]
fn a_forward_ends_by_itself_and_a_longer_time_replaces_the_first() {
    let world = world!("sys-net", "web");
    assert_eq!(forward(&world, "add sys-net 8443 web:443 --for 8h").code, 0);
    let until = |world: &World| world.dom0(&format!("sed -n 's/.* until=//p' {POLICY}")).text();
    let first = until(&world);
    assert!(timers(&world).contains(&format!("--on-calendar={}", first.trim().replace('T', " ").replace('Z', " UTC"))));
    assert_eq!(forward(&world, "add sys-net 8443 web:443 --for 2days").code, 0);
    assert!(until(&world) > first, "{first} {}", until(&world));
    forward(&world, "expire").expect(0, "");
    assert_eq!(rules(&world).lines().count(), 1, "it has time left");
    // its time is over
    let over = format!("sed -i 's/until=.*/until=2026-01-01T00:00:00Z/' {POLICY}");
    world.dom0(&over).expect(0, "");
    let checked = forward(&world, "check");
    assert!(checked.code == 1 && checked.text().contains("its time is over"), "{checked:?}");
    let done = forward(&world, "expire");
    done.expect(0, "removed, because its time is over: sys-net 127.0.0.1:8443 web:443 until=2026-01-01T00:00:00Z\n");
    assert_eq!((rules(&world).as_str(), features(&world, "sys-net").as_str()), ("", ""));
}

#[test]
fn a_qube_that_was_removed_shows_and_its_forward_can_be_removed() {
    let world = world!("sys-net", "web", "work");
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words());
    assert_eq!(forward(&world, "add work 5432 web:5432").code, 0);
    world.dom0("rm -r \"$WORLD\"/vms/work").expect(0, "");
    let checked = forward(&world, "check");
    assert!(checked.code == 1 && checked.text().contains("there is no qube named work any more"), "{checked:?}");
    assert!(forward(&world, "list").text().contains("no qube"));
    forward(&world, "remove work 5432").expect(0, "removed: work 127.0.0.1:5432 web:5432\n");
    assert_eq!(rules(&world).lines().count(), 1);
}

#[test]
fn list_shows_what_the_listening_qube_serves_and_believes_none_of_its_bytes() {
    let world = world!("sys-net", "web", "halted");
    forward(&world, "add sys-net 8443 web:443").expect(0, &forward_words());
    assert_eq!(forward(&world, "add halted 0.0.0.0:9443 web:443").code, 0);
    world.dom0("qvm-shutdown --wait halted || \"$WORLD\"/x; rm -f \"$WORLD\"/vms/halted/pid");
    let answer = |json: &str| {
        let program = format!("#!/bin/sh\nprintf '%s' '{json}'\n");
        std::fs::write(world.home("sys-net").join("qrexec-connect"), program).expect("written");
        // the qube's programs are found in its PATH
        world
            .dom0("nsenter -t $(cat \"$WORLD\"/vms/sys-net/pid) -m install -m 755 /home/user/qrexec-connect /mnt/bin/")
            .expect(0, "");
    };
    answer(r#"{"listeners":[{"address":"127.0.0.1:8443","state":"serving"}]}"#);
    assert_eq!(
        forward(&world, "list").text(),
        "QUBE     LISTENS         TARGET   POLICY  SERVICE  UNTIL\n\
         sys-net  127.0.0.1:8443  web:443  allow   serving\n\
         halted   0.0.0.0:9443    web:443  allow   halted\n"
    );
    answer(
        "{\"listeners\":[{\"address\":\"127.0.0.1:8443\",\"state\":\"\\u001b[2J\",\"reason\":\"\\u001b]0;x\\u0007\"}]}",
    );
    let listed = forward(&world, "list --json");
    assert!(listed.text().contains("\"service\": \"not served\"") && !listed.text().contains('\x1b'), "{listed:?}");
    assert!(
        listed.text().contains("\"rule\": \"qubes.ConnectTCP +443 sys-net @default allow target=web\""),
        "{listed:?}"
    );
    answer("no JSON");
    assert!(forward(&world, "list").text().contains("no answer"));
}
