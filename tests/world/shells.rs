//! `qvm-remote-ssh` in the place of ssh, for those who call one: the real rsync, Git and Ansible.

#[test]
fn it_takes_the_words_that_ssh_takes() {
    let world = world!("work");
    let _daemon = world.ready();
    world
        .vm("work", &["qvm-remote-ssh", "-o", "BatchMode=yes", "-p", "22", "root@dom0", "echo", "hi"])
        .expect(0, "hi\n");
    world.shell("work", "echo in | qvm-remote-ssh dom0 'cat; exit 4'").expect(4, "in\n");
    world.shell("work", "echo in | qvm-remote-ssh -nT dom0 cat").expect(0, "");
    world.vm("work", &["qvm-remote-ssh", "other", "true"]).expect(255, "").says("the only host is dom0");
    world.vm("work", &["qvm-remote-ssh", "dom0"]).expect(1, "").says("no command: write qvm-remote-ssh dom0 COMMAND");
    world.vm("work", &["qvm-remote-ssh", "dom0", "kill", "-TERM", "$$"]).expect(143, "");
}

#[test]
fn rsync_copies_both_ways_and_only_what_changed() {
    let world = world!("work");
    let _daemon = world.ready();
    world
        .shell(
            "work",
            "mkdir -p notes/sub; head -c 5000000 /dev/urandom >notes/big; echo one >'notes/sub/a b'; ln -s big notes/link; \
             touch -d @1000000000 notes/sub",
        )
        .expect(0, "");
    // as the README prints it
    world.shell("work", "rsync -e qvm-remote-ssh -a notes dom0:/root/").expect(0, "");
    let list = "find notes -printf '%p %y %s %l %Ts\\n' | sort; cat notes/big 'notes/sub/a b' | sha256sum";
    let sent = world.shell("work", list).text();
    world.dom0(&format!("cd /root; {list}")).expect(0, &sent);
    world.shell("work", "echo another >'notes/sub/a b'; rm notes/link").expect(0, "");
    let stats = world.shell("work", "rsync -e qvm-remote-ssh -a --delete --stats root@dom0:/root/notes/ copy");
    assert!(stats.text().contains("Number of regular files transferred: 2"), "{stats:#?}");
    let stats = world.shell("work", "rsync -e qvm-remote-ssh -a --delete --stats notes/ dom0:/root/notes/");
    assert!(stats.text().contains("Number of regular files transferred: 1"), "{stats:#?}");
    world.dom0("cat '/root/notes/sub/a b'; ls /root/notes").expect(0, "another\nbig\nsub\n");
    world.policy("work", "allow shell true\n");
    // with our status, or with its own for a shell that was gone too soon
    let refused = world.shell("work", "rsync -e qvm-remote-ssh -a notes dom0:/root/");
    assert_ne!(refused.code, 0);
    refused.says("denied: no rule of its policy allows it");
}

#[test]
fn git_fetches_and_pushes_however_it_is_told_of_the_shell() {
    let world = world!("work");
    let _daemon = world.ready();
    world.dom0("git init -q --bare /root/repo; git config --global safe.directory '*'").expect(0, "");
    let git = "export GIT_SSH_COMMAND=qvm-remote-ssh GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x;";
    let push = "git init -q r; cd r; head -c 3000000 /dev/urandom >f; git add f; git commit -qm one; git push -q dom0:/root/repo HEAD:main";
    world.shell("work", &format!("{git} {push}")).expect(0, "");
    world.dom0("git -C /root/repo log --format=%s main").expect(0, "one\n");
    let clone = "git clone -q -b main root@dom0:/root/repo s; cmp r/f s/f; git -C s log --format=%s";
    world.shell("work", &format!("{git} {clone}")).expect(0, "one\n");
    let variant = "unset GIT_SSH_COMMAND; GIT_SSH=/mnt/bin/qvm-remote-ssh GIT_SSH_VARIANT=ssh git ls-remote -q ssh://dom0:22/root/repo main | cut -f2";
    world.shell("work", &format!("{git} {variant}")).expect(0, "refs/heads/main\n");
}

#[test]
fn a_relative_path_is_below_home_and_sftp_is_refused_in_one_sentence() {
    let world = world!("work");
    let _daemon = world.ready();
    world.shell("work", "echo note >f; rsync -e qvm-remote-ssh f dom0:").expect(0, "");
    world
        .dom0("cat /root/f; git init -q --bare /root/r.git; git config --global safe.directory '*'")
        .expect(0, "note\n");
    let done = world.shell("work", "GIT_SSH_COMMAND=qvm-remote-ssh git clone -q dom0:r.git; ls -d r");
    done.expect(0, "r\n");
    let ssh = "-S $(command -v qvm-remote-ssh)";
    world.shell("work", &format!("scp -O -q {ssh} f dom0:g")).expect(0, "");
    world.dom0("cat /root/g").expect(0, "note\n");
    for words in [format!("scp {ssh} f dom0:h"), format!("sftp {ssh} dom0")] {
        let done = world.shell("work", &format!("{words} </dev/null"));
        // the rest is what scp and sftp print themselves
        assert!(done.code != 0 && done.err.matches("qvm-remote: ").count() == 1, "{done:#?}");
        done.says(
            "qvm-remote: dom0 serves no sftp: use scp -O -S qvm-remote-ssh, rsync -e qvm-remote-ssh, or qvm-remote get",
        );
    }
}

#[test]
fn ansible_configures_dom0() {
    let world = world!("work");
    let _daemon = world.ready();
    let ansible = "echo hello >src; ansible -i dom0, all -e ansible_ssh_executable=/mnt/bin/qvm-remote-ssh \
                   -e ansible_ssh_transfer_method=piped -e ansible_python_interpreter=/usr/bin/python3";
    let copy = world.shell("work", &format!("{ansible} -m copy -a 'src=src dest=/root/dst mode=0640'"));
    assert!(copy.code == 0 && copy.text().contains("\"changed\": true"), "{copy:#?}");
    world.dom0("cat /root/dst; stat -c %a /root/dst").expect(0, "hello\n640\n");
    // without a mode it is the umask of ssh
    let copy = world.shell("work", &format!("{ansible} -m copy -a 'src=src dest=/root/plain'"));
    assert_eq!(copy.code, 0, "{copy:#?}");
    world.dom0("stat -c %a /root/plain").expect(0, "644\n");
    let run = world.shell("work", &format!("{ansible} -m command -a hostname"));
    assert!(run.code == 0 && run.text().trim_end().ends_with(">>\ndom0"), "{run:#?}");
    let fails = world.shell("work", &format!("{ansible} -m command -a false"));
    assert!(fails.code == 2 && fails.text().contains("non-zero return code"), "{fails:#?}");
}

#[test]
fn whoever_leaves_its_descriptors_non_blocking_loses_nothing() {
    let world = world!("work");
    let _daemon = world.ready();
    // every way in and out, through pipes that do not wait, with a reader and a writer that take their time
    let program = r#"
import fcntl, hashlib, os, subprocess, sys, threading, time
def run(words, data):
    pipes = [os.pipe() for _ in range(2)]
    for fd in (pipes[0][0], pipes[1][1]):
        os.set_blocking(fd, False)
    child = subprocess.Popen(["qvm-remote"] + words, stdin=pipes[0][0], stdout=pipes[1][1])
    os.close(pipes[0][0]); os.close(pipes[1][1])
    def feed():
        time.sleep(0.2)
        with os.fdopen(pipes[0][1], "wb") as f: f.write(data)
    threading.Thread(target=feed).start()
    time.sleep(0.3)
    with os.fdopen(pipes[1][0], "rb") as f: out = f.read()
    print(child.wait(), len(out), hashlib.sha256(out).hexdigest() == hashlib.sha256(data).hexdigest())
data = os.urandom(1000) * 2000
run(["-i", "cat"], data)
run([], b"head -c 700000 /dev/zero\n")
run(["--queue"], b"head -c 700000 /dev/zero\n")
"#;
    std::fs::write(world.home("work").join("slow.py"), program).expect("written");
    world.shell("work", "python3 slow.py").expect(0, "0 2000000 True\n0 700000 False\n0 700000 False\n");
}
