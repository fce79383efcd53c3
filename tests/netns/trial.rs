//! `pfwd try` through listeners and to targets inside network namespaces.

use std::{net::TcpListener, process::Command};

use serde_json::Value;

use crate::{
    sandbox::{echo_tcp, inside, netns, pfwd, run as shell},
    support::run,
};

/// What a trial says: its steps, and all of it.
fn tried(control: &std::path::Path, word: &str, code: i32) -> (Vec<String>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfwd"));
    command.args(["try", word, "--json", "--control"]).arg(control);
    let output = run(command);
    assert_eq!(output.status.code(), Some(code), "{word}: {output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let steps = report["steps"].as_array().expect("a list").iter();
    (steps.map(|step| step["step"].as_str().expect("a word").to_owned()).collect(), report)
}

#[test]
fn a_trial_enters_the_namespace_of_the_listener_and_the_service_that_of_the_target() {
    sandbox!();
    netns("front");
    netns("back");
    let listener = inside("back", || TcpListener::bind("127.0.0.1:7000").expect("free"));
    echo_tcp(listener, "hello");
    // nobody listens there in the test's own namespace, and nobody at the target's port in that of the listener
    let forwards = [
        "label=both,listen=127.0.0.1+4000,listen_namespace=front,namespace=back,target=127.0.0.1+7000",
        "label=back,listen=127.0.0.1+4001,namespace=back,target=127.0.0.1+7000",
        "label=nobody,listen=127.0.0.1+4002,listen_namespace=front,namespace=back,target=127.0.0.1+7001",
        "label=udp,udp_listen=127.0.0.1+4003,listen_namespace=front,namespace=back,udp_target=127.0.0.1+7000",
        "label=gone,listen=127.0.0.1+4004,namespace=later,target=127.0.0.1+7000",
    ];
    let arguments = forwards.iter().flat_map(|forward| ["--forward", *forward]);
    let service = pfwd().args(arguments).with_control().start().ready();
    let control = service.asking().socket();
    for (word, expected) in [
        ("both", &["socket", "service", "connected", "byte"][..]),
        ("127.0.0.1:4000 in front", &["socket", "service", "connected", "byte"]),
        ("back", &["socket", "service", "connected", "byte"]),
        ("udp", &["socket", "service", "connected"]),
    ] {
        let (steps, report) = tried(&control, word, 0);
        assert_eq!(steps, expected, "{report}");
    }
    let (_, report) = tried(&control, "both", 0);
    assert_eq!(
        (&report["listener"], &report["upstream"]),
        (&"127.0.0.1:4000 in front".into(), &"tcp 127.0.0.1:7000 in back".into())
    );
    let (steps, report) = tried(&control, "nobody", 1);
    assert_eq!(
        (steps, &report["failure"]["step"]),
        (vec!["socket".to_owned(), "service".to_owned()], &"connected".into())
    );
    assert!(report["failure"]["cause"].as_str().is_some_and(|cause| cause.contains("refused")), "{report}");
    let (_, report) = tried(&control, "gone", 1);
    assert!(
        report["failure"]["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("no network namespace at /run/netns/later")),
        "{report}"
    );
    // a listener whose namespace is gone
    shell("ip netns del front");
    service.process.stderr.wait_for("is closed: its namespace is gone");
    let (steps, report) = tried(&control, "both", 1);
    assert_eq!((steps, &report["failure"]["step"]), (Vec::<String>::new(), &"service".into()), "{report}");
    assert!(
        report["failure"]["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("no network namespace at /run/netns/front")),
        "{report}"
    );
    service.stop();
}
