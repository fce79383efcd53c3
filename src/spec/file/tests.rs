use super::*;
use crate::spec::{Config, Plan};

fn faults(text: &str) -> Vec<String> {
    let FileText { mut faults, forwards, .. } = FileText::read("f", text, false);
    faults.extend(forwards.into_iter().flat_map(|(_, faults)| faults));
    faults.sort_by_key(|fault| (fault.line(), fault.column()));
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn the_first_example_means_what_it_says() {
    let text = r#"
[defaults]
log_level = "info"
mode = 384            # octal 0o600 for the UDS
owner = "root:root"
uds_dir = "/run/qdhcp"

[[forward]]
namespace = "qdhcp-27a7..."
uds = "/run/qdhcp/ssh.sock"
target = "192.168.31.201:22"

[[forward]]
listen = "0.0.0.0:2222"
uds = "ssh.sock"
"#;
    let plan = Config::gather(Some(("forward.toml", text)), [""; 0]).unwrap().1;
    assert_eq!(
        plan.to_string(),
        "unix /run/qdhcp/ssh.sock -> tcp 192.168.31.201:22 in qdhcp-27a7...\n\
         tcp 0.0.0.0:2222 -> unix /run/qdhcp/ssh.sock\n"
    );
    assert_eq!(plan.log_level, Some(LogLevel::Info));
}

#[test]
fn values_may_be_numbers_booleans_texts_and_arrays() {
    let text = r#"
[[forward]]
label = "x"
uds = '/run/a.sock'
target = "a:1"
mode = "0660"
owner = 0
backlog = 16
connect_timeout_secs = 2.5
idle_timeout = "5min"
keepalive = false
max_connections = 1_000
allow_uid = ["adm", 1000]
buffer_size = "64K"
on_remove = "drain"
"#;
    let (config, _) = Config::gather(Some(("f", text)), [""; 0]).unwrap();
    let keys = config.labelled("x").unwrap().keys();
    let items = "label=x,uds=/run/a.sock,target=a+1,mode=0660,owner=0,backlog=16,connect_timeout=2.5,\
                 idle_timeout=300,max_connections=1000,keepalive=false,on_remove=drain,allow_uid=adm,allow_uid=1000,buffer_size=65536";
    assert_eq!(keys.items().join(","), items);
}

#[test]
fn every_fault_has_its_line_and_column_and_what_to_write() {
    let text = r#"
listen = 3
[defaults]
mode = 600
target = "x"
uds_dir = "x"
log_level = "inf"
mod = 1
[[forward]]
listen = "0.0.0.0:2222"
upsteam = "x"
uds_dir = "/x"
[[forward]]
target = "10.0.0.5:99999"
allow_from = ["10.0.0.0/8", "10.1.1.1/8", 3]
allow_uid = []
keepalive = []
max_setups = 1979-05-27
backlog = 99999999999999999999
label = "a\u0000"
[[forward]]
qrexec = "work qubes/x+22"
mode = 0o1777
source = "\u00e9"
[forwards]
[extra]
"#;
    let expected = [
        "f:2:1: listen is in no table (put it under [[forward]])",
        "f:4:8: mode: 600 is a decimal number, not a file mode (write: mode = \"0600\")",
        "f:5:1: target cannot be a default: it makes one forward what it is (it belongs in a [[forward]])",
        "f:6:12: uds_dir: expected an absolute path (such as /run/pfwd)",
        "f:7:14: log_level: \"inf\" is not one of error, warn, info, debug, trace (write: log_level = \"info\")",
        "f:8:1: unknown key \"mod\" (did you mean \"mode\"?)",
        "f:11:1: unknown key \"upsteam\" (did you mean \"target\"?)",
        "f:12:1: uds_dir is for all forwards together (it belongs in [defaults])",
        "f:14:20: target: \"99999\" is not a port (a number from 1 to 65535)",
        "f:15:30: allow_from: 10.1.1.1/8 has bits set beyond the first 8 (write: allow_from = \"10.0.0.0/8\")",
        "f:15:43: allow_from: expected an address or a network such as 10.0.0.0/8, in quotes",
        "f:16:13: allow_uid: the array is empty (leave the key out to allow all)",
        "f:17:13: keepalive: it takes one value, not an array (write a [[forward]] for each)",
        "f:18:14: max_setups: expected a text, a number or a boolean",
        "f:19:11: backlog: the number is too large",
        "f:20:9: label: a value cannot hold a NUL",
        "f:22:21: qrexec: a service cannot hold \"/\": qrexec would turn it into _ and call another service (letters, digits, \"+\", \"-\", \".\" and \"_\")",
        "f:23:8: mode: 1023 is not a mode (from \"0000\" to \"0777\")",
        "f:24:10: source: \"é\" is not an IP address (without a port, such as 10.0.0.1)",
        "f:25:2: unknown table \"forwards\" (did you mean [[forward]]?)",
        "f:26:2: unknown key \"extra\" (there are [defaults] and [[forward]])",
    ];
    assert_eq!(faults(text), expected);
}

#[test]
fn syntax_errors_come_with_the_other_faults() {
    let found = faults("[defaults]\nmode = 0600\n[[forward]]\nlisten = \"0.0.0.0:1\nupsteam = 3\n");
    assert!(found[0].starts_with("f:2:8:") && found[0].contains("(write: mode = \"0600\")"), "{found:?}");
    assert!(found.iter().any(|fault| fault.starts_with("f:4:")), "{found:?}");
    assert!(found.iter().any(|fault| fault.contains("upsteam")), "{found:?}");
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(faults("[forward]\nlisten = \"a\"\n").len(), 2);
    assert_eq!(faults("forward = 1\ndefaults = 2\n").len(), 2);
    assert_eq!(faults("forward = [1]\n").len(), 1);
    assert_eq!(faults("x").len(), 1);
}

#[test]
fn what_a_syntax_error_hides_is_not_called_missing() {
    let text = "[[forward]]\nlisten = \"0.0.0.0:1\"\ntarget = a:1\n[[forward]]\nuds = \"/a\"\n";
    let faults = Config::gather(Some(("f", text)), [""; 0]).unwrap_err();
    assert!(faults.0.iter().all(|fault| fault.line() == 3), "{faults}");
}

#[test]
fn a_thousand_forwards_are_read_and_planned() {
    let entry = |n| format!("[[forward]]\nlabel = \"f{n}\"\nlisten = \"127.0.0.1:{n}\"\ntarget = \"10.0.0.5:{n}\"\n");
    let text: String = (1..=1000).map(entry).collect();
    assert_eq!(Config::gather(Some(("f", &text)), [""; 0]).unwrap().1.forwards.len(), 1000);
}

#[test]
fn no_configuration_is_a_good_one() {
    assert_eq!(Config::gather(Some(("f", "")), [""; 0]).unwrap().1, Plan::default());
    assert_eq!(Config::default().plan(), Plan::default());
    assert_eq!(Config::gather(None, [""; 0]).unwrap().1, Plan::default());
}

#[test]
fn the_faults_of_file_arguments_and_plan_come_together() {
    let text = "[[forward]]\nlisten = \"0.0.0.0:1\"\nmode = 600\n[[forward]]\ntaget = \"x\"\n";
    let faults = Config::gather(Some(("f", text)), ["uds=/a", "backlog=0,x=1", ""]).unwrap_err().to_string();
    let cites: Vec<&str> = faults.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let expected = ["f:1:1", "f:3:8", "f:5:1", "--forward #1", "--forward #2", "--forward #2", "--forward #3"];
    assert_eq!(cites, expected, "{faults}");
}

#[test]
fn low_ports_for_declarations_are_a_list_of_numbers_in_the_defaults() {
    let ports = |text: &str| FileText::read("f", &format!("[defaults]\n{text}\n"), false).qubesdb_ports;
    assert_eq!(ports("qubesdb_ports = [80, 443]"), [80, 443]);
    assert_eq!((ports("qubesdb_ports = 443"), ports("")), (vec![443], vec![]));
    for (value, what) in [
        ("[80, 8443]", "f:2:22: qubesdb_ports: ports from 1024 on are allowed without this key"),
        ("[0]", "f:2:18: qubesdb_ports: expected port numbers from 1 to 1023"),
        ("\"443\"", "f:2:17: qubesdb_ports: expected port numbers"),
        ("[70000]", "f:2:18: qubesdb_ports: expected port numbers"),
        ("[[443]]", "f:2:18: qubesdb_ports: it takes one value"),
    ] {
        let said = faults(&format!("[defaults]\nqubesdb_ports = {value}\n"));
        assert!(said.len() == 1 && said[0].starts_with(what), "{value}: {said:?}");
    }
    assert_eq!(ports("qubesdb_ports = [80, 8443]"), [80], "what is good of it counts");
    let said = faults("[[forward]]\nqubesdb_ports = [80]\nuds = \"/a\"\ntarget = \"a:1\"\n");
    assert!(said.iter().any(|fault| fault.contains("it belongs in [defaults]")), "{said:?}");
}
