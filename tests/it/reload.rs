//! What a reload answers: it succeeds when everything is served that is asked for, and names what is not.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
};

use crate::support::{Activated, Activation, Server, eventually, program, run};

/// A service with a configuration file and a control socket, and who asks it to reload as ExecReload= does.
struct Reloaded {
    service: Activated,
    file: PathBuf,
}

impl Reloaded {
    fn start(activation: Activation, text: &str) -> Self {
        let (dir, file) = (activation.dir().to_owned(), activation.dir().join("it.toml"));
        fs::write(&file, text).expect("ours");
        let service = activation.arg("--config").arg(&file).env("RUNTIME_DIRECTORY", &dir).start().ready();
        Self { service, file }
    }

    fn write(&self, text: &str) {
        fs::write(&self.file, text).expect("ours");
    }

    fn ask(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(program("qrexec-connect"));
        command.args(arguments).env("RUNTIME_DIRECTORY", self.service.dir());
        command.env("MAINPID", self.service.process.pid().to_string());
        let output = run(command);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn reload(&self) -> (Option<i32>, String) {
        self.ask(&["reload"])
    }

    fn status(&self) -> (Option<i32>, String) {
        let control = self.service.dir().join("control");
        self.ask(&["status", "--control", control.to_str().expect("plain")])
    }
}

fn forward(listen: &str, target: u16) -> String {
    format!("[[forward]]\nlisten = \"{listen}\"\ntarget = \"127.0.0.1:{target}\"\n")
}

/// An address that is free now.
fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

#[test]
fn a_reload_whose_new_listener_cannot_be_opened_fails_and_names_it_and_the_others_are_served() {
    let (server, taken) = (Server::tcp(), TcpListener::bind("127.0.0.1:0").expect("a port"));
    let (one, two, at) = (free(), free(), taken.local_addr().expect("bound").to_string());
    let of = |listen: &str| forward(listen, server.port());
    let it = Reloaded::start(Activation::qrexec_connect().tcp("work test.Echo"), &of(&one));
    it.write(&(of(&one) + &of(&two) + &of(&at)));
    let (code, said) = it.reload();
    assert!(code == Some(1) && said.contains(&format!("{at} is not served: ")), "{code:?} {said}");
    assert!(!said.contains(&one) && !said.contains(&two), "{said}");
    for address in [&one, &two] {
        let _peer = TcpStream::connect(address).expect("it is served");
        server.accept();
    }
    assert_eq!(it.status().0, Some(1));
    drop(taken);
    // Until then a test beside this one may be given the port.
    eventually("the port is free, and the reload opens it", || it.reload() == (Some(0), String::new()));
    let _peer = TcpStream::connect(&at).expect("it is served");
    server.accept();
    assert_eq!(it.status().0, Some(0));
    it.service.stop();
}

#[test]
fn a_reload_that_leaves_a_listener_refused_fails_and_names_it() {
    let text = "[[forward]]\nlabel = \"it\"\ntarget = \"127.0.0.1:9\"\n";
    let it = Reloaded::start(Activation::qrexec_connect().tcp("it").tcp("other"), text);
    let (code, said) = it.reload();
    assert!(code == Some(1) && said.contains("no [[forward]] has the label \"other\""), "{code:?} {said}");
    assert!(said.contains("(FileDescriptorName=other) is not served"), "{said}");
    it.write(&(text.to_owned() + &text.replace("\"it\"", "\"other\"")));
    assert_eq!(it.reload(), (Some(0), String::new()));
    it.service.stop();
}

#[test]
fn a_file_emptied_by_accident_keeps_its_text_and_one_with_a_comment_closes_its_forwards() {
    let server = Server::tcp();
    let one = free();
    let it = Reloaded::start(Activation::qrexec_connect().tcp("work test.Echo"), &forward(&one, server.port()));
    for emptied in ["", "\n \n"] {
        it.write(emptied);
        let (code, said) = it.reload();
        assert!(code == Some(1) && said.contains("it.toml") && said.contains("it is empty"), "{code:?} {said}");
        let (code, told) = it.status();
        assert!(code == Some(1) && told.contains("it is empty"), "{told}");
        let (code, checked) = it.ask(&["check", "--config", it.file.to_str().expect("plain")]);
        assert!(code == Some(78) && checked.contains("it is empty"), "{code:?} {checked}");
        let _peer = TcpStream::connect(&one).expect("it is served as before");
        server.accept();
    }
    it.write("# nothing\n");
    assert_eq!(it.reload(), (Some(0), String::new()));
    it.service.process.stderr.wait_for(&format!("0 opened, 1 closed: tcp {one}"));
    assert!(TcpStream::connect(&one).is_err());
    it.service.stop();
}

#[test]
fn a_reload_is_done_and_answered_while_sessions_have_every_descriptor() {
    let activation = Activation::qrexec_connect().tcp("it").tcp(&Server::tcp().echo()).nofile(64);
    let it = Reloaded::start(activation, "# nothing yet\n");
    let clients: Vec<_> = (0..40).map(|_| it.service.connect(1)).collect();
    it.service.process.stderr.wait_for("Too many open files");
    let (code, said) = it.reload();
    assert!(code == Some(1) && said.contains("(FileDescriptorName=it) is not served"), "{code:?} {said}");
    it.write("[[forward]]\nlabel = \"it\"\ntarget = \"127.0.0.1:9\"\n");
    assert_eq!(it.reload(), (Some(0), String::new()));
    assert_eq!(it.service.process.stderr.count("a restart would not find"), 0);
    assert!(it.service.dir().join("configuration").exists());
    drop(clients);
    it.service.stop();
}

#[test]
fn the_notice_of_a_refused_listener_has_the_reason_of_the_last_reload() {
    let it = Reloaded::start(Activation::qrexec_connect().udp("dns"), "# nothing yet\n");
    it.write("[[forward]]\nlabel = \"dsn\"\ntarget = \"127.0.0.1:9\"\n");
    let (code, said) = it.reload();
    assert!(code == Some(1) && said.contains("did you mean"), "{code:?} {said}");
    let asker = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    asker.send_to(b"lost", ("127.0.0.1", it.service.port(0))).expect("sent");
    let notice = it.service.process.stderr.wait_for("dropped a datagram");
    assert!(notice.contains("did you mean"), "{notice}");
    it.service.stop();
}

#[test]
fn config_shows_what_is_in_force_in_the_running_service_and_says_which_files_are_not() {
    let activation = Activation::qrexec_connect().tcp("it");
    let (dir, runtime) = (activation.dir().to_owned(), activation.dir().join("qrexec-connect"));
    fs::create_dir(&runtime).expect("ours");
    let file = dir.join("qrexec-connect.toml");
    let text =
        |limit: u32| format!("[[forward]]\nlabel = \"it\"\ntarget = \"127.0.0.1:9\"\nmax_connections = {limit}\n");
    let config = |arguments: &[&str]| {
        let mut command = Command::new(program("qrexec-connect"));
        command.arg("config").args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &dir);
        command.envs([("XDG_CONFIG_HOME", &dir), ("XDG_RUNTIME_DIR", &dir)]);
        let output = run(command);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let has =
        |said: &str, value: &str| said.lines().any(|line| line.contains("max_connections") && line.contains(value));
    fs::write(&file, text(7)).expect("ours");
    let (code, said) = config(&[]);
    assert!(code == Some(0) && said.starts_with("# as a start would read it\n") && has(&said, " 7 "), "{said}");
    let activation = activation.env("XDG_CONFIG_HOME", &dir).env("RUNTIME_DIRECTORY", &runtime);
    let service = activation.args(["--calls-per-qube", "9"]).start().ready();
    let (code, said) = config(&[]);
    assert!(code == Some(0) && said.starts_with("# in force in the running service: "), "{code:?} {said}");
    assert!(said.lines().next().is_some_and(|line| line.ends_with("qrexec-connect --calls-per-qube 9")), "{said}");
    assert!(has(&said, " 7 ") && said.contains("on 127.0.0.1:") && !said.contains("an earlier text"), "{said}");
    // Not loaded: the running service goes on with 7.
    fs::write(&file, text(8)).expect("ours");
    fs::create_dir(dir.join("qrexec-connect.toml.d")).expect("ours");
    fs::write(dir.join("qrexec-connect.toml.d/new.toml"), "# nothing\n").expect("ours");
    let (_, said) = config(&[]);
    assert!(has(&said, " 7 ") && said.contains("qrexec-connect.toml: an earlier text is in force"), "{said}");
    assert!(said.contains("new.toml: nothing of it is in force"), "{said}");
    let (_, json) = config(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(json["source"] == "service" && json["texts"][0]["state"] == "changed", "{json}");
    let (_, said) = config(&["--config", file.to_str().expect("plain")]);
    assert!(said.starts_with("# as a start would read it\n") && has(&said, " 8 "), "{said}");
    service.stop();
}
