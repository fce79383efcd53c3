//! What programs of others read of both commands: no field of `status --json` and no exit code goes away. `tests/captures`
//! has what was promised; `earlier` is what commit 9498472 printed.

use std::collections::BTreeSet;

use crate::support::{eventually, gone, shape};

const EARLIER: &str = include_str!("../captures/earlier/remote-json.txt");
const PROMISED: &str = include_str!("../captures/remote-json.txt");

#[test]
fn no_field_of_the_json_of_both_sides_goes_away() {
    let world = world!("work");
    let status = |text: String| serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
    let mut found = BTreeSet::new();
    let mut note = |at: &str, value: &serde_json::Value| shape(value, at, &["dom0.vms", "dom0.approvals"], &mut found);
    let without = world.remote("work", &["status", "--json"]);
    assert_eq!(without.code, 1, "neither a key nor a daemon: {without:#?}");
    note("qube", &status(without.text()));
    let _daemon = world.ready();
    let with = world.remote("work", &["status", "--json"]);
    assert_eq!(with.code, 0, "{with:#?}");
    note("qube", &status(with.text()));
    world.policy("work", "ask env *\nallow shell *\n");
    let mut runs = world.remote_start("work", &["echo up; sleep 4753"]);
    runs.wait_for("up\n");
    let _waits = world.remote_start("work", &["--argv", "env"]);
    let dom0 = || status(world.dom0("qvm-remote-dom0 status --json").text());
    let some = |status: &serde_json::Value, key: &str| status[key].as_array().is_some_and(|all| !all.is_empty());
    eventually("one of each is there", || {
        let status = dom0();
        let lists = ["commands", "waiting"].iter().all(|key| some(&status, key));
        lists && status["approvals"].as_object().is_some_and(|all| !all.is_empty())
    });
    note("dom0", &dom0());
    let gone = [gone(EARLIER, &found), gone(PROMISED, &found)].concat();
    assert!(gone.is_empty() && EARLIER.lines().count() > 25, "gone: {gone:#?}\nthere is: {found:#?}");
    for (command, code) in
        [("status", 0), ("approve", 0), ("keys", 0), ("kill nosuch", 1), ("nonsense", 2), ("test work", 2)]
    {
        assert_eq!(world.dom0(&format!("qvm-remote-dom0 {command}")).code, code, "{command}");
    }
}
