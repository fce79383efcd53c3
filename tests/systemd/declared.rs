//! Forwards that dom0 declares: keys of QubesDB become listeners and rules of the firewall, and go again.

use std::{fs, io::Write as _, net::SocketAddr, os::fd::AsFd as _, path::Path, thread};

use nix::sched::{CloneFlags, setns};

use crate::{
    qubesdb::QubesDb,
    support::{Wire, eventually, skip},
    tree::{As, attempt, shell},
};

const SERVICE: &str = "qrexec-connect-qubesdb.service";

/// The rules that matter here, as qubes-core-agent-linux loads them (network/qubes-ipv4.nft), and a rule of the user.
const RULES: &str = "
table ip qubes {
  chain input {
    type filter hook input priority filter; policy drop;
    jump custom-input
    ct state invalid counter drop
    ct state related,established accept
    iif lo accept
    counter
  }
  chain custom-input { }
}
add rule ip qubes custom-input tcp dport 22 accept comment \"mine\"
";

/// A network with one more machine on it: 10.9.0.2, in the namespace `lan`. We are 10.9.0.1.
fn lan() {
    shell(
        "ip netns add lan; ip link add uplink type veth peer name eth0 netns lan
         ip address add 10.9.0.1/24 dev uplink; ip link set uplink up
         ip netns exec lan sh -c 'ip address add 10.9.0.2/24 dev eth0; ip link set eth0 up; ip link set lo up'",
    );
}

/// A connection from the other machine.
#[track_caller]
fn from_lan(port: u16) -> Wire {
    let wire = thread::spawn(move || {
        let namespace = fs::File::open("/run/netns/lan").expect("the namespace");
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may");
        Wire::tcp(SocketAddr::from(([10, 9, 0, 1], port)))
    });
    wire.join().expect("a connection")
}

#[track_caller]
fn here(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Bytes still come back.
#[track_caller]
fn lives(session: &mut Wire) {
    session.write_all(b"hello").expect("the session lives");
    session.expect(b"hello");
}

fn file(port: u16) -> String {
    format!("/run/systemd/system/qrexec-connect-lan-{port}.socket")
}

fn is_active(port: u16) -> bool {
    attempt(&format!("systemctl is-active --quiet qrexec-connect-lan-{port}.socket")).0 == Some(0)
}

#[track_caller]
fn served(port: u16) {
    eventually(&format!("port {port} is served"), || is_active(port) && !in_motion());
}

#[track_caller]
fn gone(port: u16) {
    eventually(&format!("port {port} is gone"), || !Path::new(&file(port)).exists() && !is_active(port));
}

/// Whether systemd has work to do.
fn in_motion() -> bool {
    !shell("systemctl list-jobs --no-legend").is_empty()
}

/// The comments of the rules in the chain of the user.
fn rules() -> Vec<String> {
    let text = shell("nft list chain ip qubes custom-input");
    let comment = |line: &str| line.split_once("comment \"").map(|(_, rest)| rest.trim_end_matches('"').to_owned());
    text.lines().filter_map(comment).collect()
}

/// The rules of a port with their handles: a rule that is set again has another one.
fn with_handles(port: u16) -> String {
    attempt(&format!("nft -a list chain ip qubes custom-input | grep qrexec-connect-{port}")).1
}

fn main_pid() -> String {
    shell(&format!("systemctl show -p MainPID --value {SERVICE}"))
}

/// The messages of one kind.
fn told(id: &str) -> Vec<String> {
    let text = shell(&format!("journalctl -q -o cat MESSAGE_ID={id}"));
    text.lines().map(str::to_owned).collect()
}

fn refused() -> Vec<String> {
    told(qrexec_connect::log::Kind::DeclarationRefused.message_id())
}

fn failed() -> Vec<String> {
    told(qrexec_connect::log::Kind::DeclarationFailed.message_id())
}

/// Whether the firewall of this machine can be tried; the rules of Qubes are loaded then.
fn firewall() -> bool {
    if attempt("nft --version").0 != Some(0) {
        skip("there is no nft in this tree: no rule is looked at");
        return false;
    }
    fs::write("/run/rules.nft", RULES).expect("root's own tree");
    shell("nft -f /run/rules.nft");
    true
}

#[test]
fn what_dom0_declares_is_served_changes_and_goes_while_sessions_live() {
    let Some(tree) = tree!() else { return };
    tree.boot("declare", As::Root, || {
        lan();
        let nft = firewall();
        let rules_are = |ports: &[&str]| {
            let mut expected = vec!["mine".to_owned()];
            expected.extend(ports.iter().map(|port| format!("qrexec-connect-{port}")));
            eventually("the rules are those of the forwards", || !nft || rules() == expected);
        };
        // declared before the start
        let db = QubesDb::start(&[
            ("qrexec-connect-8443", "0.0.0.0:8443 work test.Echo allow_from=10.9.0.0/24"),
            ("other", "of somebody else"),
        ]);
        shell(&format!("systemctl start {SERVICE}"));
        served(8443);
        rules_are(&["8443"]);
        let mut session = from_lan(8443);
        lives(&mut session);
        // an unrelated one comes
        let since = || shell("systemctl show -p ActiveEnterTimestampMonotonic qrexec-connect-lan-8443.socket");
        let (before, rule) = (since(), with_handles(8443));
        db.set("qrexec-connect-9000", b"127.0.0.1:9000 work test.Args+1");
        served(9000);
        rules_are(&["8443"]);
        assert_eq!(here(9000).read_to_end(), b"work test.Args+1\n");
        assert_eq!(
            (since(), with_handles(8443)),
            (before.clone(), rule),
            "neither the other unit nor its rule changed"
        );
        lives(&mut session);
        // it changes
        db.set("qrexec-connect-9000", b"0.0.0.0:9000 work test.Args+2");
        eventually("the new value is served", || shell(&format!("cat {}", file(9000))).contains("Args+2"));
        rules_are(&["8443", "9000"]);
        served(9000);
        assert_eq!(from_lan(9000).read_to_end(), b"work test.Args+2\n");
        assert_eq!(since(), before, "the other unit was not touched");
        // both go; the session of one lives on
        db.remove("qrexec-connect-8443");
        gone(8443);
        rules_are(&["9000"]);
        lives(&mut session);
        db.remove("");
        gone(9000);
        rules_are(&[]);
        lives(&mut session);
        session.half_close();
        session.expect_end();
        // the daemon goes, and comes with another database
        drop(db);
        let db = QubesDb::start(&[("qrexec-connect-9001", "[::]:9001 work test.Args+3")]);
        served(9001);
        assert_eq!(from_lan(9001).read_to_end(), b"work test.Args+3\n");
        assert_eq!(refused(), [""; 0]);
        // a stop changes nothing; what is there is taken away on demand
        shell(&format!("systemctl stop {SERVICE}"));
        assert_eq!(from_lan(9001).read_to_end(), b"work test.Args+3\n");
        shell("qrexec-connect qubesdb --withdraw");
        gone(9001);
        rules_are(&[]);
        drop(db);
        let warnings = shell("journalctl -q -o cat -p warning -t systemd | grep qrexec-connect || true");
        assert_eq!(warnings, "");
    });
}

#[test]
fn a_hostile_value_does_nothing_but_a_message() {
    let Some(tree) = tree!() else { return };
    tree.boot("attack", As::Root, || {
        let nft = firewall();
        let big = [b"0.0.0.0:8009 work test.Echo ".as_slice(), &[b'a'; 3000]].concat();
        let values: &[(&str, &[u8])] = &[
            ("8001", b"0.0.0.0:8001 work test.Echo\n[Service]\nExecStart=/usr/bin/touch /run/pwned"),
            ("8002", b"0.0.0.0:8002 work test.Echo start_unit=pwned.service"),
            ("8003", b"0.0.0.0:8003 uds=/run/systemd/private"),
            ("8004", b"0.0.0.0:8004 target=127.0.0.1+22"),
            ("8005", b"0.0.0.0:8005 work test.Args+%n"),
            ("8006", b"/run/../etc/passwd work test.Echo"),
            ("8007", b"0.0.0.0:8007 \"work test.Echo"),
            ("8008", b"0.0.0.0:22 work test.Echo"),
            ("8009", &big),
            ("443", b"0.0.0.0:443 work test.Echo"),
            ("../../x", b"0.0.0.0:8010 work test.Echo"),
            ("08011", b"0.0.0.0:8011 work test.Echo"),
        ];
        fs::write("/etc/systemd/system/qrexec-connect-lan-8012.socket", "[Socket]\nListenStream=127.0.0.1:8012\n")
            .expect("root's own tree");
        let db = QubesDb::start(&[]);
        values.iter().for_each(|(port, value)| db.set(&format!("qrexec-connect-{port}"), value));
        db.set("qrexec-connect-8012", b"0.0.0.0:8012 work test.Echo");
        shell(&format!("systemctl start {SERVICE}"));
        db.set("qrexec-connect-8020", b"127.0.0.1:8020 work test.Args+1");
        served(8020);
        assert_eq!(here(8020).read_to_end(), b"work test.Args+1\n");
        eventually("each is told", || refused().len() == values.len());
        let all = refused().join("\n");
        assert!(!all.contains('\u{1b}') && all.lines().all(|line| line.starts_with("QubesDB /vm-config/")), "{all}");
        assert_eq!(shell("ls /run/systemd/system | grep lan"), "qrexec-connect-lan-8020.socket");
        assert!(!Path::new("/run/pwned").exists());
        assert_eq!(failed().len(), 1, "{:?}", failed());
        assert!(failed()[0].contains("/etc/systemd/system/qrexec-connect-lan-8012.socket"), "{:?}", failed());
        assert!(!nft || rules() == ["mine"]);
        // root of the template allows one of them
        fs::write("/etc/qrexec-connect.toml", "[defaults]\nqubesdb_ports = [443]\n").expect("root's own tree");
        db.set("qrexec-connect-8021", b"127.0.0.1:8021 work test.Args+1");
        served(443);
        eventually("its rule is there", || !nft || rules() == ["mine", "qrexec-connect-443"]);
        // a value that is wrong now takes the place of one that was right
        db.set("qrexec-connect-8020", b"127.0.0.1:8020 uds=/run/x");
        gone(8020);
        assert!(is_active(443) && is_active(8021));
    });
}

#[test]
fn a_service_that_is_killed_at_any_point_converges() {
    let Some(tree) = tree!() else { return };
    tree.boot("kill", As::Root, || {
        let db = QubesDb::start(&[]);
        shell(&format!("systemctl start {SERVICE}"));
        let port = |round: u16| 9100 + round;
        // What is waited for before the blow: nothing, the file, the listener; then the same while it goes.
        let points: [&dyn Fn(u16) -> bool; 3] = [&|_| true, &|port| Path::new(&file(port)).exists(), &is_active];
        for (round, point) in (0..).zip(points) {
            let at = port(round);
            db.set(&format!("qrexec-connect-{at}"), format!("127.0.0.1:{at} work test.Args+{at}").as_bytes());
            eventually("the point is reached", || point(at));
            shell(&format!("kill -KILL {}", main_pid()));
            served(at);
            assert_eq!(here(at).read_to_end(), format!("work test.Args+{at}\n").as_bytes());
        }
        for (round, point) in (0..).zip(points) {
            let at = port(round);
            db.remove(&format!("qrexec-connect-{at}"));
            eventually("the point is reached", || round == 0 || !point(at));
            eventually("there is a process", || main_pid() != "0");
            shell(&format!("kill -KILL {}", main_pid()));
            gone(at);
        }
        assert_eq!(attempt("ls /run/systemd/system | grep lan").1, "");
        assert_eq!(refused(), [""; 0]);
    });
}

#[test]
fn a_port_that_another_process_holds_gets_no_rule() {
    let Some(tree) = tree!() else { return };
    tree.boot("taken", As::Root, || {
        let nft = firewall();
        let taken = std::net::TcpListener::bind("0.0.0.0:9200").expect("a free port");
        let db = QubesDb::start(&[("qrexec-connect-9200", "0.0.0.0:9200 work test.Echo")]);
        shell(&format!("systemctl start {SERVICE}"));
        eventually("it is told", || failed().iter().any(|text| text.contains("qrexec-connect-lan-9200.socket")));
        assert!(!nft || rules() == ["mine"]);
        drop(taken);
        db.set("other", b"no matter");
        served(9200);
        eventually("its rule is there", || !nft || rules() == ["mine", "qrexec-connect-9200"]);
        let mut wire = here(9200);
        wire.write_all(b"x").expect("it is served");
        wire.expect(b"x");
    });
}
