//! Runs of datagrams while the service is restarted, killed and replaced by an earlier version. The listening socket is
//! the manager's: what a process has set on it (UDP_GRO) is there for the next one.

use std::net::UdpSocket;

use crate::{
    crash::{KILL, KILLED, crash},
    service::{
        assert_each_session_is_told_once, assert_no_complaints_but, assert_stops_clean, enable_now, main_pid, messages,
        restart, service_drop_in, settled,
    },
    support::{runs::RunTraffic, sample},
    tree::{As, user_unit},
    upgrade::{assert_runs, install, with_both_versions},
};

/// Traffic through port 2007 to a server at port 7007.
fn traffic(may_be_lost: bool) -> RunTraffic {
    user_unit(
        "qrexec-connect-udp.socket",
        "[Socket]\nListenDatagram=127.0.0.1:2007\nFileDescriptorName=target=127.0.0.1+7007\n",
    );
    enable_now(&["udp"]);
    let bound = |port: u16| UdpSocket::bind(("127.0.0.1", port)).expect("a free port");
    let (client, server) = (bound(0), bound(7007));
    client.connect("127.0.0.1:2007").expect("a socket");
    RunTraffic::start(client, server, may_be_lost)
}

#[test]
fn runs_of_datagrams_go_over_restarts_an_earlier_version_and_back_without_loss() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    tree.boot("datagrams", As::Tester, || {
        let traffic = traffic(false);
        traffic.wait_for(500);
        assert_runs(main_pid(), "earlier", "qrexec-connect");
        for version in ["present", "present", "earlier", "present", "earlier"] {
            install(version);
            restart();
            settled();
            assert_runs(main_pid(), version, "qrexec-connect");
            traffic.wait_for(2_000);
        }
        let n = traffic.stop();
        println!("{n} datagrams");
        assert_eq!(messages("handover-lost"), [""; 0]);
        assert_no_complaints_but(&[]);
        assert_stops_clean();
        assert_eq!(assert_each_session_is_told_once(), 1, "one flow");
    });
}

#[test]
fn runs_of_datagrams_go_on_whole_after_kills_in_full_traffic() {
    let Some(tree) = tree!() else { return };
    tree.boot("datagrams", As::Tester, || {
        service_drop_in("soon", "[Service]\nRestartSec=100ms\n");
        let traffic = traffic(true);
        for _ in 0..sample("kills in full traffic", 3, 20) {
            traffic.wait_for(2_000);
            crash(KILL);
        }
        traffic.wait_for(2_000);
        let n = traffic.stop();
        println!("{n} datagrams");
        assert_no_complaints_but(&KILLED);
        assert_stops_clean();
        assert_eq!(assert_each_session_is_told_once(), 1, "one flow");
    });
}
