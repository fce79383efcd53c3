//! Asking a running service: by its own commands, and by raw Varlink.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{Activated, Activation, PATIENCE, Process, bare, program, run};

/// The interface's name.
pub const INTERFACE: &str = "org.qrexec-connect.Control";

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// What it printed, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Who asks the service of one test.
pub struct Asking {
    dir: PathBuf,
}

impl Activation {
    /// With a runtime directory, as `RuntimeDirectory=` gives one, and so with a control socket.
    pub fn with_control(self) -> Self {
        let dir = self.dir().join("run/qrexec-connect");
        std::fs::create_dir_all(&dir).expect("the test's directory is writable");
        self.env("RUNTIME_DIRECTORY", dir)
    }
}

impl Activated {
    /// Who asks it.
    pub fn asking(&self) -> Asking {
        Asking { dir: self.dir().to_owned() }
    }
}

impl Asking {
    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/qrexec-connect/control")
    }

    /// `qrexec-connect ARGS`, in the service's own environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("qrexec-connect"));
        bare(&mut command).args(args).env("LANG", "C.UTF-8");
        command.env("PATH", format!("{}/bin:/usr/bin:/bin", self.dir.display()));
        command.env("HOME", &self.dir).env("XDG_CONFIG_HOME", self.dir.join("config"));
        command.env("XDG_RUNTIME_DIR", self.dir.join("run")).env("SYSTEMD_UNIT_PATH", self.dir.join("units"));
        command
    }

    /// The same, run to its end.
    #[track_caller]
    pub fn say(&self, args: &[&str]) -> Said {
        let output = run(self.command(args));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The same, which must end with exit code 0.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> Said {
        let said = self.say(args);
        assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
        said
    }

    /// The same, left running.
    pub fn start(&self, args: &[&str]) -> Process {
        Process::start(self.command(args))
    }

    /// The sessions there are.
    #[track_caller]
    pub fn sessions(&self) -> Vec<Value> {
        let all = self.ok(&["sessions", "--json"]).json();
        all["sessions"].as_array().expect("a list").clone()
    }

    /// A separate connection.
    #[track_caller]
    pub fn connect(&self) -> UnixStream {
        connect(&self.socket()).unwrap_or_else(|e| panic!("{}: {e}", self.socket().display()))
    }

    /// One call over Varlink; the reply as it is.
    #[track_caller]
    pub fn call(&self, method: &str, parameters: &Value) -> Value {
        let mut wire = self.connect();
        send(&mut wire, &json!({"method": format!("{INTERFACE}.{method}"), "parameters": parameters}));
        receive(&mut wire).expect("a reply")
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends one message.
pub fn send(wire: &mut UnixStream, message: &Value) {
    let mut bytes = serde_json::to_vec(message).expect("JSON");
    bytes.push(0);
    wire.write_all(&bytes).expect("it is taken");
}

/// The next message; `None` when the connection ends.
#[track_caller]
pub fn receive(wire: &mut UnixStream) -> Option<Value> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        match wire.read(&mut byte) {
            Ok(0) => return None,
            Ok(_) if byte[0] == 0 => return Some(serde_json::from_slice(&bytes).expect("JSON")),
            Ok(_) => bytes.push(byte[0]),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return None,
            Err(e) => panic!("{e}; so far {}", String::from_utf8_lossy(&bytes)),
        }
    }
}
