//! What nobody may cost the daemon, its control socket and the supervisors of commands.

use std::{thread, time::Duration};

use crate::world::World;

/// Clock ticks of processor time that a process in dom0 has used (proc_pid_stat(5): utime and stime).
fn ticks(world: &World, pid: &str) -> u32 {
    let text = world.dom0(&format!("sed 's/.*) //' /proc/{pid}/stat | awk '{{print $12 + $13}}'")).text();
    text.trim().parse().expect("a number")
}

#[test]
fn a_word_that_names_a_descriptor_of_the_supervisor_is_a_word() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "allow sh *\n");
    let mut running = world.remote_start("work", &["--argv", "sh", "-c", "echo $0; sleep 4742", "/dev/fd/4"]);
    running.wait_for("/dev/fd/4\n");
    let supervisor = world.dom0("pgrep -f '^/proc/self/exe supervise'").text();
    let supervisor = supervisor.trim();
    let descriptors = world.dom0(&format!("ls -l /proc/{supervisor}/fd")).text();
    assert!(descriptors.contains("anon_inode:[signalfd]"), "{descriptors}");
    let before = ticks(&world, supervisor);
    thread::sleep(Duration::from_secs(1)); // measured: a loop would use a hundred ticks
    let spent = ticks(&world, supervisor) - before;
    assert!(spent <= 5, "the supervisor used {spent} ticks in a second");
}
