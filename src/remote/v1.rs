//! Protocol v1, of the Python original: a token covers an id and no command. This file is what dom0 asks the shell of
//! a qube without an agent, and the reading of what comes back.
//!
//! The original made eleven calls for a command. Here one call fetches everything that waits, and one writes a result:
//! each file under a temporary name, renamed when whole, `.exit` last, because that is what a client waits for.
//!
//! # What the feature `v1` covers
//! This file, the tokens in `proto/v1.rs`, the queue without an agent in `dom0/v1.rs`, the command in
//! `cli/dom0/v1.rs`, and the lines behind `feature = "v1"`. Without it three things stay, so that nothing breaks at an
//! old neighbour: the frame V1 is read and refused, a text without a signature in the queue is answered by a refusal, and
//! `v1 = …` in a policy is read and has no effect.

use std::{
    fmt::Write as _,
    io::{self, BufRead, ErrorKind, Read, Write},
    process::ExitCode,
};

use super::parser::{FAULT, confine, ends};
use crate::proto::remote::{Frame, MAX_COMMAND, SLICE, valid_id};

/// Commands that one call fetches at most.
const BATCH: u32 = 16;

/// The directory in the VM. `user` was checked when it was read ([`super::config`]).
fn directory(user: &str) -> String {
    format!("/home/{user}/.qvm-remote")
}

/// The shell text that prints every command that waits: a line `id size token`, then its bytes. Only regular files of
/// harmless name, and no more of each than a command may have.
pub(crate) fn fetch(user: &str) -> String {
    let dir = directory(user);
    format!(
        "cd '{dir}/queue/pending' 2>/dev/null || exit 0; n=0; for f in *; do \
         case $f in *.auth|*.auth2|*.cmd|*.tmp|*..*|.*|-*|*[!A-Za-z0-9._-]*) continue;; esac; \
         [ -f \"$f\" ] && [ ! -L \"$f\" ] || continue; n=$((n+1)); [ $n -le {BATCH} ] || break; t=; \
         [ -f \"$f.auth\" ] && [ ! -L \"$f.auth\" ] && t=$(head -c 200 \"$f.auth\" | tr -dc 0-9A-Za-z); \
         s=$(head -c {} \"$f\" | wc -c); printf '%s %s %s\\n' \"$f\" $((s)) \"$t\"; head -c $((s)) \"$f\"; done",
        MAX_COMMAND + 1
    )
}

/// The process that reads a listing: `qvm-remote-dom0 parse-v1`. It gives up everything as `uid` first.
///
/// # Errors
/// When privileges cannot be given up: nothing was read then.
pub(crate) fn run(uid: u32) -> io::Result<ExitCode> {
    confine(uid)?;
    let (from, mut to) = ends();
    let result = parse(&mut io::BufReader::new(&*from), &mut *to);
    Ok(result.map_or(ExitCode::from(FAULT), |()| ExitCode::SUCCESS))
}

/// Reads what [`fetch`] prints and writes it as frames: V1 and BODY, a stream for each command. A command of more
/// than 1 MiB is announced with its size and no body.
///
/// # Errors
/// `InvalidData` when it is something else.
pub fn parse(from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    let bad = || io::Error::from(ErrorKind::InvalidData);
    for stream in 1..=BATCH {
        let mut line = Vec::new();
        from.take(512).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let line = std::str::from_utf8(&line).ok().and_then(|l| l.strip_suffix('\n')).ok_or_else(bad)?;
        let mut words = line.split(' ');
        let (Some(id), Some(size), Some(token), None) = (words.next(), words.next(), words.next(), words.next()) else {
            return Err(bad());
        };
        let size: usize = size.parse().map_err(|_| bad())?;
        if !valid_id(id) || size > MAX_COMMAND + 1 || !token.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(bad());
        }
        let mut text = vec![0; size];
        from.read_exact(&mut text)?;
        text.truncate(MAX_COMMAND);
        let mut out = Vec::with_capacity(text.len() + 256);
        let length = u32::try_from(text.len()).map_err(|_| bad())?;
        Frame::V1(id, token.as_bytes(), length).write(stream, &mut out);
        text.chunks(SLICE).for_each(|part| Frame::Body(part).write(stream, &mut out));
        to.write_all(&out)?;
    }
    if from.fill_buf()?.is_empty() { Ok(()) } else { Err(bad()) }
}

/// The result of a command, as the original writes it: outputs, cut already, and the texts of `.meta` and `.exit`.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResultFiles {
    pub(crate) id: String,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
    pub(crate) meta: String,
    pub(crate) exit: u8,
}

/// The shell text that takes a result from its standard input ([`ResultFiles::to_bytes`]) and puts it in place.
pub(crate) fn store(user: &str) -> String {
    let dir = directory(user);
    format!(
        "umask 077; cd '{dir}/queue' || exit 1; mkdir -p pending running results; read -r i o e m x || exit 1; \
         for k in out:$o err:$e meta:$m; do head -c ${{k#*:}} >\"results/.$i.tmp\" && \
         mv -f \"results/.$i.tmp\" \"results/$i.${{k%%:*}}\" || exit 1; done; \
         printf %s \"$x\" >\"results/.$i.tmp\" && mv -f \"results/.$i.tmp\" \"results/$i.exit\"; \
         rm -f \"pending/$i\" \"pending/$i.auth\" \"running/$i\"; \
         while IFS= read -r l; do printf '%s\\n' \"$l\" >>'{dir}/audit.log'; done"
    )
}

impl ResultFiles {
    /// What [`store`] reads, with a line for the VM's audit log.
    pub(crate) fn to_bytes(&self, audit: &str) -> Vec<u8> {
        let mut head = String::new();
        let sizes = (self.out.len(), self.err.len(), self.meta.len());
        let _ = writeln!(head, "{} {} {} {} {}", self.id, sizes.0, sizes.1, sizes.2, self.exit);
        let mut bytes = head.into_bytes();
        for part in [&self.out[..], &self.err, self.meta.as_bytes(), audit.as_bytes(), b"\n"] {
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::proto::remote::Buffer;

    fn frames(listing: &[u8]) -> io::Result<Vec<(u32, String)>> {
        let mut out = Vec::new();
        parse(&mut &listing[..], &mut out)?;
        let mut buffer = Buffer::default();
        buffer.room(0).extend_from_slice(&out);
        let mut all = Vec::new();
        while let Some(whole) = buffer.frame().expect("our own frames") {
            let raw = whole.raw();
            all.push((raw.stream, format!("{:?}", raw.parse().expect("our own frames"))));
        }
        Ok(all)
    }

    #[test]
    fn a_listing_becomes_frames() {
        let all = frames(b"a-1 5 00ff\ntrue\nb-2 2 \nx\n").expect("a listing");
        assert_eq!(all.len(), 4);
        assert!(all[0].1.contains("\"a-1\"") && all[2].0 == 2, "{all:?}");
    }

    #[test]
    fn a_listing_with_a_path_or_too_much_is_refused() {
        for bad in ["../x 1 \nx", "a/b 1 \nx", "a 9999999 \n", "a 5 \nx", "a 1", "a 1 \nxjunk", "a 1 t'o\nx", "a -1 \n"]
        {
            assert!(frames(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(frames("a 0 \n".repeat(20).as_bytes()).is_err(), "more than one call fetches");
    }

    #[test]
    fn the_shell_text_fetches_what_parse_reads_and_stores_what_a_client_waits_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().to_str().expect("a plain path");
        let queue = dir.path().join(".qvm-remote/queue");
        std::fs::create_dir_all(queue.join("pending")).expect("made");
        for (name, text) in
            [("a-1", "echo\n"), ("a-1.auth", "00ff\n"), ("a-1.cmd", "x"), ("b'2", "x"), ("c-3", "\u{e9}")]
        {
            std::fs::write(queue.join("pending").join(name), text).expect("written");
        }
        std::os::unix::fs::symlink("/dev/zero", queue.join("pending/zero")).expect("linked");
        nix::unistd::mkfifo(&queue.join("pending/fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let text = fetch("user").replace("/home/user", home);
        let listing = Command::new("bash").args(["-c", &text]).output().expect("bash runs").stdout;
        assert_eq!(listing, "a-1 5 00ff\necho\nc-3 2 \n\u{e9}".as_bytes());
        assert_eq!(frames(&listing).expect("a listing").len(), 4);

        let answer = ResultFiles {
            id: "a-1".into(),
            out: (0..=255).collect(),
            err: b"e\n".to_vec(),
            meta: "m\n".into(),
            exit: 7,
        };
        let text = store("user").replace("/home/user", home);
        let mut bash = Command::new("bash").args(["-c", &text]).stdin(Stdio::piped()).spawn().expect("bash runs");
        let mut stdin = bash.stdin.take().expect("piped");
        stdin.write_all(&answer.to_bytes("the audit's line")).expect("bash reads");
        drop(stdin);
        assert!(bash.wait().expect("it ends").success());
        let read = |name: &str| std::fs::read(queue.join("results").join(name)).expect("written");
        assert_eq!((read("a-1.out"), read("a-1.err")), (answer.out, b"e\n".to_vec()));
        assert_eq!((read("a-1.meta"), read("a-1.exit")), (b"m\n".to_vec(), b"7".to_vec()));
        assert!(!queue.join("pending/a-1").exists() && !queue.join("pending/a-1.auth").exists());
        let log = std::fs::read_to_string(dir.path().join(".qvm-remote/audit.log")).expect("written");
        assert_eq!(log, "the audit's line\n");
    }

    proptest! {
        #[test]
        fn any_listing_is_read_or_refused(bytes: Vec<u8>) {
            let _ = frames(&bytes);
        }
    }
}
