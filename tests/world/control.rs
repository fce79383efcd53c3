//! What nobody may cost the daemon, its control socket and the supervisors of commands.

use std::{thread, time::Duration};

use crate::{support::eventually, world::World};

/// Clock ticks of processor time that a process in dom0 has used (proc_pid_stat(5): utime and stime).
fn ticks(world: &World, pid: &str) -> u32 {
    let text = world.dom0(&format!("sed 's/.*) //' /proc/{pid}/stat | awk '{{print $12 + $13}}'")).text();
    text.trim().parse().expect("a number")
}

/// Connects to the control socket in dom0; `then` is Python that has the connections in `all`.
fn clients(count: usize, then: &str) -> String {
    format!(
        "python3 -uc '
import socket, sys
all = []
for n in range({count}):
    s = socket.socket(socket.AF_UNIX)
    s.connect(\"/run/qvm-remote/control\")
    all.append(s)
print(\"connected\")
{then}'"
    )
}

#[test]
fn timing_a_word_that_names_a_descriptor_of_the_supervisor_is_a_word() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "allow sh *\n");
    let mut running = world.remote_start("work", &["--argv", "sh", "-c", "echo $0; sleep 4742", "/dev/fd/4"]);
    running.wait_for("/dev/fd/4\n");
    let supervisor = world.dom0("ps -o ppid= -p $(pgrep -f '^sh -c echo')").text();
    let supervisor = supervisor.trim();
    let descriptors = world.dom0(&format!("ls -l /proc/{supervisor}/fd")).text();
    assert!(descriptors.contains("anon_inode:[signalfd]"), "{descriptors}");
    let before = ticks(&world, supervisor);
    thread::sleep(Duration::from_secs(1)); // measured: a loop would use a hundred ticks
    let spent = ticks(&world, supervisor) - before;
    assert!(spent <= 5, "the supervisor used {spent} ticks in a second");
}

#[test]
fn silent_clients_of_the_control_socket_keep_nobody_from_it() {
    let world = world!("work");
    let _daemon = world.ready();
    let mut silent = world.dom0_start(&clients(
        8,
        "for s in all:
    s.settimeout(30)
    assert s.recv(1) == b\"\"
print(\"closed\")",
    ));
    silent.wait_for("connected\n");
    let status = world.dom0("qvm-remote-dom0 status");
    assert!(status.code == 0 && status.text().contains("live"), "{status:#?}");
    silent.end().expect(0, "connected\nclosed\n");
}

#[test]
fn timing_a_daemon_without_free_descriptors_waits_for_one_and_uses_no_time() {
    let world = world!("work");
    let daemon = world.ready();
    let pid = daemon.pid();
    // open descriptors stay open; no new one can be made
    world.dom0(&format!("prlimit --pid {pid} --nofile=3:")).expect(0, "");
    let mut client = world.dom0_start(&clients(
        1,
        "all[0].sendall(b\"approvals\\n\")
all[0].settimeout(60)
print(all[0].recv(9))",
    ));
    client.wait_for("connected\n");
    let before = ticks(&world, &pid);
    thread::sleep(Duration::from_secs(2)); // measured: a loop would use two hundred ticks
    let spent = ticks(&world, &pid) - before;
    world.dom0(&format!("prlimit --pid {pid} --nofile=1024:")).expect(0, "");
    assert!(spent <= 20, "the daemon used {spent} ticks in two seconds");
    client.end().expect(0, "connected\nb''\n");
    eventually("an answer", || world.dom0("qvm-remote-dom0 status").code == 0);
}
