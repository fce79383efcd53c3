use crate::spec::{Beside, Config, Label, LastTexts, SocketKind, Texts, load};

const FILE: &str = r#"
[defaults]
uds_dir = "/run/qdhcp"

[[forward]]
label = "end"
namespace = "old"
uds = "ssh.sock"
target = "192.168.31.201:22"
max_connections = 7

[[forward]]
listen = "0.0.0.0:2222"
uds = "/run/qdhcp/ssh.sock"

[[forward]]
udp_listen = "0.0.0.0:53"
udp_target = "10.0.0.5:53"
"#;

fn plan(arguments: &[&str]) -> Vec<String> {
    let (_, plan) = Config::gather(Some(("forward.toml", FILE)), arguments).unwrap();
    plan.forwards.iter().map(ToString::to_string).collect()
}

const END: &str = "end: unix /run/qdhcp/ssh.sock -> tcp 192.168.31.201:22 in old";
const PROXY: &str = "tcp 0.0.0.0:2222 -> unix /run/qdhcp/ssh.sock";
const DNS: &str = "udp 0.0.0.0:53 -> udp 10.0.0.5:53";

#[test]
fn the_first_examples_arguments_are_two_forwards() {
    let arguments = [
        "listen=0.0.0.0:2222,uds=/run/qdhcp/ssh.sock",
        "namespace=qdhcp-27a7...,uds=/run/qdhcp/ssh.sock,target=192.168.31.201:22",
    ];
    let (_, plan) = Config::gather(None, arguments).unwrap();
    let shown = "tcp 0.0.0.0:2222 -> unix /run/qdhcp/ssh.sock\n\
                 unix /run/qdhcp/ssh.sock -> tcp 192.168.31.201:22 in qdhcp-27a7...\n";
    assert_eq!(plan.to_string(), shown);
}

#[test]
fn an_argument_replaces_the_keys_it_gives_in_the_entry_it_is_about() {
    for (argument, expected) in [
        ("label=end,target=10.0.0.1:1", ["end: unix /run/qdhcp/ssh.sock -> tcp 10.0.0.1:1 in old", PROXY, DNS]),
        ("label=end,namespace=new", ["end: unix /run/qdhcp/ssh.sock -> tcp 192.168.31.201:22 in new", PROXY, DNS]),
        ("label=end,setns_path=/p", ["end: unix /run/qdhcp/ssh.sock -> tcp 192.168.31.201:22 in /p", PROXY, DNS]),
        ("listen=0.0.0.0+2222,uds=other", [END, "tcp 0.0.0.0:2222 -> unix /run/qdhcp/other", DNS]),
        ("udp_listen=0.0.0.0:53,udp_target=b:53", [END, PROXY, "udp 0.0.0.0:53 -> udp b:53"]),
        (
            "uds=/run/qdhcp/ssh.sock,target=10.0.0.3:1",
            ["end: unix /run/qdhcp/ssh.sock -> tcp 10.0.0.3:1 in old", PROXY, DNS],
        ),
        ("uds=ssh.sock,namespace=n", ["end: unix /run/qdhcp/ssh.sock -> tcp 192.168.31.201:22 in n", PROXY, DNS]),
    ] {
        assert_eq!(plan(&[argument]), expected, "{argument}");
    }
    let (_, fixed) = Config::gather(Some(("f", FILE)), ["uds=ssh.sock,max_connections=3"]).unwrap();
    assert_eq!(fixed.forwards[0].options.max_connections, 3);
}

#[test]
fn an_argument_about_no_entry_is_one_more_forward() {
    // It dials the UDS that an entry serves, so it is not that entry; and its listen is new.
    let more = plan(&["listen=0.0.0.0:3333,uds=/run/qdhcp/ssh.sock", "label=x,uds=y,target=a:1"]);
    assert_eq!(
        more,
        [END, PROXY, DNS, "tcp 0.0.0.0:3333 -> unix /run/qdhcp/ssh.sock", "x: unix /run/qdhcp/y -> tcp a:1"]
    );
    // The same address in another namespace is another listener.
    assert_eq!(plan(&["listen=0.0.0.0:2222,listen_namespace=n,target=a:1"]).len(), 4);
}

#[test]
fn what_only_one_forward_can_have_is_not_given_to_two() {
    for (arguments, what) in [
        (["uds=/a,target=b:1", "uds=/a,target=c:1"], "two forwards serve /a (the other is --forward #1)"),
        (["listen=[::]:1,target=b:1", "listen=[::]+1,uds=/b"], "two forwards listen on [::]:1"),
        (["udp_listen=[::]:1,udp_target=b:1", "udp_listen=[::]+1,udp_target=c:1"], "two forwards receive on [::]:1"),
        (
            ["listen=[::]:1-9,target=b:1", "listen=[::]+9,target=b:1"],
            "two forwards listen on [::]:9 (the other is --forward #1)",
        ),
        (
            ["listen=[::]:1-9,target=b:1", "listen=[::]+7-12,target=b:1"],
            "two forwards listen on [::]:7, and on 2 more ports of the range (the other is --forward #1)",
        ),
        (["label=a,uds=/a,target=b:1", "label=a,uds=/b,target=b:1"], "the label \"a\" is given to two forwards"),
    ] {
        let faults = Config::gather(None, arguments).unwrap_err().to_string();
        assert!(faults.starts_with("--forward #2: ") && faults.contains(what), "{faults}");
    }
    let fine = [
        ["listen=[::]:0,target=b:1", "listen=[::]:0,target=c:1"],
        ["listen=[::]:1,target=b:1", "listen=[::]:1,listen_namespace=x,target=c:1"],
        ["uds=/a,target=b:1", "listen=[::]:1,uds=/a"],
    ];
    fine.into_iter().for_each(|arguments| assert!(Config::gather(None, arguments).is_ok(), "{arguments:?}"));
    let file = "[[forward]]\nuds = \"/a\"\ntarget = \"b:1\"\n[[forward]]\nuds = \"/a\"\ntarget = \"c:1\"\n";
    let faults = Config::gather(Some(("f.toml", file)), [""; 0]).unwrap_err().to_string();
    assert_eq!(faults, "f.toml:5:1: two forwards serve /a (the other is f.toml:2)");
}

#[test]
fn a_labelled_forward_without_a_listening_side_waits_for_its_socket() {
    let text = "[[forward]]\nlabel = \"ssh\"\ntarget = \"a:1\"\n[[forward]]\nlabel = \"dns\"\nudp_target = \"a:53\"\n\
                [[forward]]\nlabel = \"agent\"\nqrexec = \"work svc\"\nallow_uid = 0\n\
                [[forward]]\nlabel = \"end\"\nuds = \"/a\"\ntarget = \"b:1\"\n";
    let (_, plan) = Config::gather(Some(("f", text)), [""; 0]).unwrap();
    assert_eq!(plan.waiting.iter().map(Label::as_str).collect::<Vec<_>>(), ["ssh", "dns", "agent"]);
    assert_eq!(plan.forwards.len(), 1);
    // With a socket of its name, the endpoint is the pipeline behind that socket and not one more forward.
    let beside = Beside { sockets: &[("end".to_owned(), SocketKind::Tcp)], ..Beside::NOTHING };
    let texts = Texts::of(Some(("f", text)), [""; 0]);
    assert!(load(&texts, &LastTexts::default(), &beside, 0).strict().unwrap().1.forwards.is_empty());
    let bare = "[[forward]]\nlabel = \"x\"\nnamespace = \"n\"\n";
    assert!(Config::gather(Some(("f", bare)), [""; 0]).unwrap_err().to_string().contains("needs a target"));
}
