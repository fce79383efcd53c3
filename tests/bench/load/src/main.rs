//! The load of the benchmark: it is both ends of the relay under test. It listens on `--backend`, where the relay
//! connects to, and connects to `--target`, where the relay listens; with the same for both it measures no relay.
//!
//! Every measurement prints one line of JSON.

mod datagrams;
mod endpoint;
mod measure;
mod relays;

use std::{collections::HashMap, process::ExitCode, str::FromStr};

const USAGE: &str = "\
usage: load bulk     --target EP --backend EP [--streams 1] [--dir up|down|both] [--secs 2] [--verify]
       load messages --target EP --backend EP [--conns 1] [--size 64] [--secs 2 | --count N]
       load churn    --target EP --backend EP [--clients 32] [--secs 2 | --count N]
       load idle     --target EP --backend EP [--conns 1000]   waits for a line on stdin twice: to close, to end
       load datagrams --target EP --backend EP [--size 1200] [--run 1] [--window 0] [--secs 2]
       load queries  --target EP --backend EP [--clients 32] [--secs 2 | --count N]   one answer to each, over UDP
       load udp-plain LISTEN TARGET    a relay: one blocking call to receive, one to send
       load plain    LISTEN TARGET     a relay: tokio's copy_bidirectional
       load copies   LISTEN CLIENT     a relay: CLIENT as a child, blocking copies of 64 KiB through its pipes
       load child    [--] TARGET SERVICE   such a client: connects to the endpoint in $BENCH_SERVICE
EP: tcp:IP:PORT | udp:IP:PORT | unix:PATH; --backend-ns PATH: the namespace to listen in; --timeout 20: seconds without progress";

/// What was asked for.
pub struct Options(HashMap<String, String>);

impl Options {
    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn number<T: FromStr>(&self, key: &str, default: T) -> T {
        self.text(key).map_or(default, |v| v.parse().unwrap_or_else(|_| fail(&format!("bad --{key} {v}"))))
    }
}

/// Says what is wrong, as JSON, and ends.
pub fn fail(what: &str) -> ! {
    println!("{{\"error\":\"{}\"}}", what.replace(['"', '\n'], " "));
    std::process::exit(1)
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(what) = args.next() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (mut options, mut words) = (HashMap::new(), Vec::new());
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--") {
            Some("verify") => drop(options.insert("verify".to_owned(), String::new())),
            Some("" | "no-filter-escape-chars-stdout" | "no-filter-escape-chars-stderr") => {}
            Some(key) => {
                let value = args.next().unwrap_or_else(|| fail(&format!("--{key} needs a value")));
                options.insert(key.to_owned(), value);
            }
            None => words.push(arg),
        }
    }
    let options = Options(options);
    match (what.as_str(), words.as_slice()) {
        ("bulk", []) => measure::bulk(&options),
        ("messages", []) => measure::messages(&options),
        ("churn", []) => measure::churn(&options),
        ("idle", []) => measure::idle(&options),
        ("datagrams", []) => datagrams::datagrams(&options),
        ("queries", []) => datagrams::queries(&options),
        ("udp-plain", [listen, target]) => datagrams::plain(listen, target),
        ("plain", [listen, target]) => relays::plain(listen, target),
        ("copies", [listen, client]) => relays::copies(listen, client),
        ("child", [_, _]) => relays::child(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
