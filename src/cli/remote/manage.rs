//! What `qvm-remote` does beside running commands: keys, health, logs, the queue.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    options::{ClientOptions, default_delivery, local_error},
    submit::plain,
};
use crate::{
    log::{counted, counted_were, escape},
    proto::{mac::Key, mac::hex, remote::Mode},
    remote::{
        agent,
        client::{self, ClientError, Delivery, Home, Submission, history},
        files, keys,
    },
    sys,
};

/// `key gen | show | import [KEY]`.
pub(super) fn key(home: &Home, words: &[&str]) -> Result<ExitCode, ClientError> {
    sys::end_with_the_reader();
    let path = home.at("auth.key");
    match words {
        ["gen"] => {
            let old = home.key().is_ok();
            if !replaceable(home, old)? {
                println!("No key was made.");
                return Ok(ExitCode::FAILURE);
            }
            let path = if old { home.new_key_path() } else { path };
            let key = keys::generate().and_then(|key| keys::write_own(&path, &key).map(|()| key));
            let key = key.map_err(|e| local_error(format!("failed to write key: {e}")))?;
            let node = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
            println!("{}", *key.to_hex());
            eprintln!("\nKey saved to {}", path.display());
            let keep = if old { "--keep-old " } else { "" };
            let node = escape(node.as_bytes());
            eprintln!("Register in dom0:\n  qvm-remote-dom0 authorize {keep}{node} {}", *key.to_hex());
            if old {
                eprintln!(
                    "The old key stays in use until dom0 has accepted this one. Then: qvm-remote ping, and in dom0:"
                );
                eprintln!("  qvm-remote-dom0 authorize {node} {}", *key.to_hex());
            }
            Ok(ExitCode::SUCCESS)
        }
        ["show"] => {
            println!("{}", *home.key()?.to_hex());
            Ok(ExitCode::SUCCESS)
        }
        ["import", rest @ ..] => {
            let text = match rest {
                [text, ..] => (*text).to_owned(),
                [] => {
                    let mut line = String::new();
                    let read = io::stdin().lock().take(256).read_line(&mut line);
                    read.map_err(|e| local_error(format!("failed to import key: {e}")))?;
                    line
                }
            };
            let key = Key::from_hex(text.as_bytes())
                .ok_or_else(|| local_error("invalid key (expected 64 hex characters)"))?;
            keys::write_own(&path, &key).map_err(|e| local_error(format!("failed to import key: {e}")))?;
            let _ = std::fs::remove_file(home.new_key_path()); // this one is wanted now
            println!("Key imported to {}", path.display());
            Ok(ExitCode::SUCCESS)
        }
        [other, ..] => Err(local_error(format!("unknown key command: {}", escape(other.as_bytes())))),
        [] => Err(local_error("key requires: gen | show | import")),
    }
}

/// Whether a new key may be made where there is one: it is asked at a terminal. Where a file would be replaced whose
/// key dom0 may accept, nothing is done without a terminal.
fn replaceable(home: &Home, old: bool) -> Result<bool, ClientError> {
    let waits = home.new_key_path().exists();
    let unread = !old && home.at("auth.key").exists();
    let lost = if waits {
        format!(
            "a new key waits already in {}, and dom0 may have accepted it: qvm-remote ping takes it into use then",
            home.new_key_path().display()
        )
    } else if unread {
        format!("{} cannot be read, and would be replaced", home.at("auth.key").display())
    } else if old {
        "this qube has a key; a new one takes its place when dom0 has accepted it".to_owned()
    } else {
        return Ok(true);
    };
    if !io::stdin().is_terminal() {
        return if waits || unread {
            Err(local_error(format!("{lost}; to make another one: qvm-remote key gen at a terminal")))
        } else {
            Ok(true)
        };
    }
    eprint!("{lost}. Make a new one? [y/N] ");
    let mut line = String::new();
    io::stdin().lock().take(64).read_line(&mut line).map_err(|e| local_error(e.to_string()))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Asks dom0 for nothing but a signed answer, in whatever protocol.
fn reach(home: &Home, within: Duration, delivery: Delivery) -> Result<Duration, ClientError> {
    let (delivery, mode, payload) = match delivery {
        #[cfg(feature = "v1")]
        Delivery::V1 => (Delivery::V1, Mode::Shell, b"true\n".to_vec()),
        _ => (Delivery::Live, Mode::Ping, Vec::new()),
    };
    let options = ClientOptions { timeout: Some(10), quiet: true, delivery, ..ClientOptions::default() };
    let ask = Submission {
        connect_timeout: within,
        timeout: Some(within),
        recorded: false,
        ..plain(&options, mode, payload)
    };
    let began = Instant::now();
    client::ask(home, ask).map(|_| began.elapsed())
}

/// `ping`: whether dom0 answers and knows our key.
pub(super) fn ping(home: &Home, options: &ClientOptions) -> Result<ExitCode, ClientError> {
    match reach(home, Duration::from_secs(options.connect_timeout.into()), options.delivery) {
        Ok(time) => {
            println!("qvm-remote-dom0 is responding.");
            if options.verbose {
                eprintln!("[qvm-remote] round trip {:.1} ms", time.as_secs_f64() * 1000.0);
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(trouble) => {
            eprintln!("qvm-remote-dom0 is NOT responding.");
            if let ClientError::Transport(why)
            | ClientError::Local(why)
            | ClientError::Unauthorised(why)
            | ClientError::Refused(_, why) = &trouble
            {
                eprintln!("{why}");
            }
            eprintln!("troubleshooting:");
            eprintln!("  In dom0:  systemctl status qvm-remote-dom0");
            eprintln!("  In dom0:  qvm-remote-dom0 keys            (is this qube authorized?)");
            eprintln!("  In dom0:  grep VMS /etc/qubes/remote.conf (is it listed?)");
            eprintln!("  Here:     qvm-remote key show             (is it the key of dom0?)");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// `status [--json]`.
pub(super) fn status(home: &Home, words: &[&str]) -> Result<ExitCode, ClientError> {
    let node = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
    let name = files::read(&home.at(agent::NAME), 64).ok().and_then(|n| String::from_utf8(n).ok());
    let name = name.unwrap_or(node);
    let key = home.key();
    let counts = client::counts(home);
    let clean = counts.running == 0 && counts.orphans == 0;
    let trip = reach(home, Duration::from_secs(5), default_delivery());
    let code = if trip.is_ok() && clean { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if words.contains(&"--json") {
        let json = json!({
            "vm": name,
            "data_dir": home.path(),
            "key_id": key.as_ref().ok().map(|key| hex(&key.id())),
            "new_key_id": home.new_key().map(|key| hex(&key.id())),
            "queue": {
                "clean": clean, "pending": counts.pending, "running": counts.running,
                "results": counts.results, "orphan_tokens": counts.orphans,
            },
            "responding": trip.is_ok(),
            "round_trip_ms": trip.ok().map(|t| t.as_secs_f64() * 1000.0),
        });
        println!("{json}");
        return Ok(code);
    }
    println!("VM:        {}", escape(name.as_bytes()));
    println!("Data dir:  {}", home.path().display());
    match key {
        // the original shows the key's first digits; its public name serves as well
        Ok(key) => println!("Auth key:  {}... (configured)", hex(&key.id())),
        Err(_) => {
            println!("Auth key:  NOT CONFIGURED");
            println!("           Run: qvm-remote key gen");
        }
    }
    if let Some(new) = home.new_key() {
        println!("New key:   {}... (dom0 has not accepted it yet)", hex(&new.id()));
    }
    println!("Queue:     {}", if clean { "clean" } else { "STALE ENTRIES" });
    println!("  pending: {}\n  running: {}", counts.pending, counts.running);
    println!("  results: {}\n  orphan .auth: {}", counts.results, counts.orphans);
    println!("Daemon:    {}", if trip.is_ok() { "responding" } else { "NOT responding" });
    Ok(code)
}

/// `queue [status | clean | debug]`.
pub(super) fn queue(home: &Home, word: Option<&str>) -> Result<ExitCode, ClientError> {
    sys::end_with_the_reader();
    match word {
        None | Some("status") => {
            let counts = client::counts(home);
            let rule = "─".repeat(28);
            println!("{rule}");
            for (name, n) in [
                ("pending", counts.pending),
                ("running", counts.running),
                ("results", counts.results),
                ("orphan .auth", counts.orphans),
            ] {
                println!("{name:<20} {n:>6}");
            }
            println!("{rule}\n{:<20} {:>6}", "total", counts.total());
            if counts.running > 0 {
                println!("WARNING: {} begun without a result", counted_were(counts.running, "command"));
            }
            if counts.orphans > 0 {
                println!("WARNING: {} without a command", counted(counts.orphans, "token"));
            }
        }
        Some("clean") => {
            let removed = client::clean(home);
            println!("Removed {} from the queue.", counted(removed, "file"));
            let line = format!("[{}] QUEUE-CLEAN removed={removed}", crate::remote::clock::now());
            let _ = crate::remote::spool::append(&home.at("audit.log"), &line);
        }
        Some("debug") => {
            for dir in ["pending", "running", "results"] {
                println!("{dir}/");
                for entry in std::fs::read_dir(home.at("queue").join(dir)).into_iter().flatten().flatten() {
                    let size = entry.metadata().map_or(0, |m| m.len());
                    let age = agent::age(&entry.path()).map_or(0, |age| age.as_secs());
                    let name = entry.file_name();
                    let name = escape(std::os::unix::ffi::OsStrExt::as_bytes(&*name));
                    println!("  {name}  {size} B  {age} s");
                    let secret = name.contains(".auth");
                    if let (false, Ok(text)) = (secret, files::read(&entry.path(), 499)) {
                        println!("    {}", escape(&text));
                    }
                }
            }
            print!("{}", history::table(&home.at("history"), 5));
        }
        Some(other) => return Err(local_error(format!("unknown queue command: {}", escape(other.as_bytes())))),
    }
    Ok(ExitCode::SUCCESS)
}

/// `[N | -n N]`.
fn count(words: &[&str], default: usize) -> Result<usize, ClientError> {
    let word = match words {
        [] => return Ok(default),
        ["-n", n, ..] | [n, ..] => n,
    };
    let bad = || local_error(format!("not a number: {}", escape(word.as_bytes())));
    word.trim_start_matches('-').parse().map_err(|_| bad())
}

/// `log [N]`: the last entries of this side's log, without what a terminal would obey.
pub(super) fn log(home: &Home, words: &[&str]) -> Result<ExitCode, ClientError> {
    sys::end_with_the_reader();
    let count = count(words, 20)?;
    let text = files::read(&home.at("audit.log"), 16 << 20).unwrap_or_default();
    let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        println!("No audit log entries yet.");
    }
    for line in &lines[lines.len().saturating_sub(count)..] {
        // entries of ours are escaped already; those of an older client may hold anything
        let shown: String =
            String::from_utf8_lossy(line).chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        println!("{shown}");
    }
    Ok(ExitCode::SUCCESS)
}

/// `history [N]`.
pub(super) fn history(home: &Home, words: &[&str]) -> Result<ExitCode, ClientError> {
    sys::end_with_the_reader();
    print!("{}", history::table(&home.at("history"), count(words, 10)?));
    Ok(ExitCode::SUCCESS)
}
