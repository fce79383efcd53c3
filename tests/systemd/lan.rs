//! Forwards that end by themselves, by a real timer, in the unit with its bounds, and at a boot.

use crate::{
    support::eventually,
    tree::{As, shell},
};

const POLICY: &str = "/etc/qubes/policy.d/30-qvm-forward.policy";

/// Stand-ins for dom0's tools: every qube exists, and features are files. The real tools ask qubesd over a socket, so the
/// unit has no right to write files; for the stand-in it gets one.
fn dom0() {
    shell(
        "mkdir -p /etc/qubes/policy.d /srv/features /etc/systemd/system/qvm-forward-expire.service.d
         printf '#!/bin/sh\\nexit 0\\n' >/usr/local/bin/qvm-check
         cat >/usr/local/bin/qvm-features <<'X'
#!/bin/sh
if [ $1 = --unset ]; then rm -f /srv/features/$2:$3; elif [ $# = 3 ]; then printf %s \"$3\" >/srv/features/$1:$2; fi
X
         chmod 755 /usr/local/bin/qvm-*
         printf '[Service]\\nReadWritePaths=/srv/features\\n' >/etc/systemd/system/qvm-forward-expire.service.d/x.conf
         systemctl daemon-reload",
    );
}

fn state() -> String {
    shell(&format!("ls /srv/features; grep -c '^qubes' {POLICY} 2>/dev/null || true"))
}

fn timer() -> String {
    shell("systemctl is-active qvm-forward-expire.timer || true")
}

#[test]
fn forwards_end_one_after_the_other_and_those_of_a_machine_that_was_off_at_its_boot() {
    let Some(tree) = tree!() else { return };
    tree.boot("timers", As::Root, || {
        dom0();
        // the first may be over before the second is added
        for (port, span) in [(5432, "1s"), (5433, "4s"), (5434, "1h")] {
            shell(&format!("qvm-forward add work {port} db:{port} --for {span}"));
        }
        // the second timer is made by the service that the first one started
        eventually("two have ended", || state() == "work:vm-config.qrexec-connect-5434\n1");
        let log = || shell("journalctl -q -o cat -t qvm-forward");
        eventually("the journal has both ends", || log().matches("because its time is over").count() == 2);
        eventually("the service has ended", || {
            shell("systemctl is-active qvm-forward-expire.service || true") == "inactive"
        });
        assert_eq!(shell("systemctl list-units --failed --no-legend --plain 'qvm-*'"), "");
        assert_eq!(timer(), "active", "it waits for the third");
        // the machine is switched off until the third is over
        shell(&format!("sed -i 's/until=.*/until=2026-01-01T00:00:00Z/' {POLICY}"));
    });
    tree.boot("after", As::Root, || {
        eventually("the third has ended", || state().is_empty());
        assert_eq!(shell("systemctl list-units --failed --no-legend --plain 'qvm-*'"), "");
    });
}
