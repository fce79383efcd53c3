//! `qvm-remote-ssh`: the words of ssh(1), for programs that call it.

use std::{
    ffi::{OsStr, OsString},
    io::IsTerminal as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    process::ExitCode,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    options::{ClientOptions, local_error},
    submit::submit,
};
use crate::{
    proto::remote::Mode,
    remote::client::{ClientError, Home},
};

/// Letters of ssh(1) that take a value.
const WITH_VALUE: &[u8] = b"bcDEeFIiJLlmOopQRSWw";

/// Reads ssh(1)'s words: options before and after the host, single or together, their values in the same word or the
/// next. Those that mean something here are noted; the host, and the command.
fn ssh_words(words: Vec<OsString>, options: &mut ClientOptions) -> SshWords {
    let (mut host, mut terminal, mut subsystem) = (None, None, false);
    let mut rest = words.into_iter().peekable();
    loop {
        while let Some(word) = rest.next_if(|w| w.as_bytes().first() == Some(&b'-') && w.len() > 1) {
            if word == "--" {
                break;
            }
            for (at, letter) in word.as_bytes().iter().enumerate().skip(1) {
                match letter {
                    b'n' => options.stdin = false,
                    b't' => terminal = Some(true),
                    b'T' => terminal = Some(false),
                    b's' => subsystem = true,
                    b'v' => options.verbose = true,
                    _ => {}
                }
                if WITH_VALUE.contains(letter) {
                    if at + 1 == word.len() {
                        rest.next();
                    }
                    break;
                }
            }
        }
        if host.is_some() {
            break;
        }
        host = rest.next();
        if host.is_none() {
            break;
        }
    }
    // as ssh has it: a terminal is given to somebody who has one
    options.tty = terminal == Some(true) && std::io::stdin().is_terminal();
    SshWords { host, command: rest.collect(), subsystem }
}

/// What the words of ssh(1) say.
struct SshWords {
    host: Option<OsString>,
    command: Vec<OsString>,
    /// The command is the name of a subsystem: scp and sftp ask for one.
    subsystem: bool,
}

/// `qvm-remote-ssh [ssh's options] HOST COMMAND…`: for rsync, Git and Ansible, which call `ssh` so.
pub(super) fn as_ssh(words: Vec<OsString>) -> Result<ExitCode, ClientError> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let mut options = ClientOptions { stdin: true, progress: false, bounded: false, ..ClientOptions::default() };
    let SshWords { host, command, subsystem } = ssh_words(words, &mut options);
    options.stdin &= !write_only();
    match host {
        None => Err(local_error("usage: qvm-remote-ssh [OPTIONS] dom0 COMMAND")),
        Some(host) if host != "dom0" && !host.as_bytes().ends_with(b"@dom0") => {
            Err(ClientError::Transport("the only host is dom0".into()))
        }
        Some(_) if subsystem => Err(local_error(
            "dom0 serves no sftp: use scp -O -S qvm-remote-ssh, rsync -e qvm-remote-ssh, or qvm-remote get and put",
        )),
        Some(_) if command.is_empty() => Err(local_error("no command: write qvm-remote-ssh dom0 COMMAND")),
        Some(_) => Home::find().map_err(|e| local_error(e.to_string())).and_then(|home| {
            let mut text = command.join(OsStr::new(" ")).into_vec();
            text.push(b'\n');
            submit(&home, &options, Mode::Shell, text.clone(), text)
        }),
    }
}

/// Whether standard input can only be written to, as nohup(1) has it: ssh(1) takes that for an end of input.
fn write_only() -> bool {
    let flags = fcntl(std::io::stdin(), FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
    flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_WRONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(words: &str) -> (Option<String>, String, ClientOptions) {
        let mut options = ClientOptions { stdin: true, ..ClientOptions::default() };
        let SshWords { host, command, .. } = ssh_words(words.split(' ').map(OsString::from).collect(), &mut options);
        let text = |w: OsString| w.into_string().expect("text");
        (host.map(text), command.into_iter().map(text).collect::<Vec<_>>().join(" "), options)
    }

    #[test]
    fn words_for_ssh_are_read_as_ssh_reads_them() {
        // rsync, Git, Ansible, Mercurial, and what people type
        for (words, command) in [
            ("dom0 rsync --server -logDtpre.iLsfxCIvu . /root/", "rsync --server -logDtpre.iLsfxCIvu . /root/"),
            ("-l root dom0 rsync --server", "rsync --server"),
            ("-o SendEnv=GIT_PROTOCOL -p 22 dom0 git-upload-pack '/r'", "git-upload-pack '/r'"),
            (
                "-C -o ControlMaster=auto -oControlPersist=60s -o ConnectTimeout=10 -tt dom0 /bin/sh -c x",
                "/bin/sh -c x",
            ),
            ("-qCo BatchMode=yes dom0 -p 22 -- true -n", "true -n"),
            ("-qoBatchMode=yes dom0 echo -t", "echo -t"),
        ] {
            let (host, got, options) = ssh(words);
            assert_eq!((host.as_deref(), got.as_str()), (Some("dom0"), command), "{words}");
            assert!(options.stdin, "{words}");
        }
        assert!(!ssh("-nT dom0 true").2.stdin);
        assert!(ssh("-p dom0").0.is_none());
        assert!(ssh("-Gv dom0").1.is_empty());
    }
}
