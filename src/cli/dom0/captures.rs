//! Every table of dom0 at four widths, for texts of every kind, held against what was seen to be right
//! (`tests/captures/dom0.txt`). `UPDATE_CAPTURES=1 cargo test --lib captures` writes the file again; the difference is
//! for a person to read.

use std::{fs, path::Path};

use unicode_width::UnicodeWidthStr as _;

use super::tables::{self, KeyRow, KeyShown};
use crate::{
    cli::table::Style,
    log::escape,
    remote::dom0::question::{CommandStatus, DaemonStatus, QubeStatus, WaitingStatus},
};

const FILE: &str = "tests/captures/dom0.txt";

/// Names of qubes: short, ordinary, as long as Qubes OS allows.
const QUBES: [&str; 3] = ["a", "work-web", "customer-27a7e3a4-9d07-4f1e-8f6"];

/// Commands: short, ordinary, long, with wide characters, escaped.
fn commands() -> [String; 5] {
    [
        "cmd=true".into(),
        "argv='/usr/bin/qvm-start' 'work-web'".into(),
        format!("cmd=for q in {}; do qvm-start $q; done", "customer-27a7e3a4-9d07-4f1e-8f6 ".repeat(20)),
        "cmd=echo 日本語の名前".into(),
        format!("cmd={}", escape("a\u{1b}[31m\u{202e}\\b".as_bytes())),
    ]
}

fn id(number: usize) -> String {
    format!("20261130-101500-{}-0a1b2c3{number}", 77 + 1000 * number)
}

fn daemon() -> DaemonStatus {
    let [short, ordinary, long] = QUBES.map(str::to_owned);
    let qube = |channel: &str, v1, keyed| QubeStatus { channel: channel.into(), v1, keyed };
    let qubes = [
        (short.clone(), qube("live", false, true)),
        (ordinary.clone(), qube("down", true, true)),
        (long.clone(), qube("idle", true, false)),
    ];
    let command = |(number, shown): (usize, String)| CommandStatus {
        vm: QUBES[number % 3].into(),
        id: id(number),
        seconds: 10_u64.pow(u32::try_from(number).expect("small")),
        shown,
    };
    let mut commands: Vec<_> = commands().into_iter().enumerate().map(command).collect();
    let background = commands.split_off(3);
    let waiting = |(number, state): (usize, &str)| WaitingStatus {
        vm: QUBES[number % 3].into(),
        id: id(number + 5),
        state: state.into(),
        seconds: 299,
    };
    let waiting = ["approval", "recording", "quota"].into_iter().enumerate().map(waiting).collect();
    DaemonStatus {
        restart_pending_since: None,
        pid: 4711,
        draining: true,
        log_failure: Some("/var/log/qubes/qvm-remote.log: No space left on device (os error 28), since 3 min".into()),
        qubes: qubes.into(),
        commands,
        background,
        waiting,
        approvals: approvals().into_iter().collect(),
    }
}

fn approvals() -> Vec<(String, String)> {
    let summary = |(number, vm): (usize, &&str)| {
        (format!("{number}123456789abcdef").repeat(4), format!("{vm} asks for a text for bash of 21 bytes"))
    };
    QUBES.iter().enumerate().map(summary).collect()
}

fn keys() -> Vec<KeyRow> {
    let ids = [("0a1b2c3d4e5f6071", Some(86_400 * 3), Some(5)), ("f0e1d2c3b4a59687", None, None)]
        .map(|(id, age, unused)| KeyShown { id: id.to_owned(), age, unused });
    let keys =
        [Ok(ids[..1].to_vec()), Ok(ids.to_vec()), Err("it is not a key: 64 hexadecimal digits are wanted".into())];
    let row = |(vm, keys): (&str, _)| KeyRow { vm: vm.into(), keys, v1: vm == "a" };
    QUBES.into_iter().zip(keys).map(row).collect()
}

#[test]
fn every_table_of_dom0_is_as_it_was_seen_to_be_right() {
    let (daemon, approvals, keys) = (daemon(), approvals(), keys());
    let mut all = String::new();
    for width in [Some(60), Some(80), Some(200), None] {
        let style = Style { colour: false, width };
        let name = width.map_or_else(|| "a pipe".to_owned(), |width| format!("{width} columns"));
        let tables = [
            ("status", tables::status(style, &daemon)),
            ("approve", tables::approvals(style, &approvals)),
            ("keys", tables::keys(style, &keys)),
        ];
        for (what, text) in tables {
            for line in text.lines() {
                assert!(width.is_none_or(|width| line.width() <= width), "{name}: {line}");
            }
            let (first, rest) = text.split_once('\n').expect("lines");
            let first = if what == "status" { first.rsplit_once(' ').expect("with the time").0 } else { first };
            all += &format!("=== {what}, {name}\n{first}\n{rest}\n");
        }
    }
    let whole = all.split("=== status, a pipe").nth(1).expect("it is the last");
    assert!(commands().iter().all(|command| whole.contains(command)), "a pipe gets everything: {whole}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if std::env::var_os("UPDATE_CAPTURES").is_some() {
        fs::write(&file, &all).expect("writable");
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(all, known, "see the head of this file");
}
