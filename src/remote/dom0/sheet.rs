//! The sheet that a person sees before approving a command: everything that decides what will run.

use std::os::unix::ffi::OsStrExt as _;

use super::{
    execute::Launch,
    judge::{Authentic, Judged, Task},
    launch::variables,
    state::Vm,
};
use crate::{
    log::counted,
    proto::{
        mac::{self, hex},
        remote::{Mode, flags},
    },
    remote::shown::{Sheet, quoted, visible},
};

/// Makes the sheet of a command that was judged.
pub(super) fn sheet(vm: &Vm, authentic: &Authentic, judged: &Judged, payload: &[u8]) -> Sheet {
    let mut sheet = Sheet::default();
    let request = authentic.request.as_deref();
    let has = |flag| request.is_some_and(|r| r.has(flag));
    if has(flags::TTY) {
        sheet.note("WHAT IS TYPED LATER DECIDES WHAT RUNS: the qube gets a terminal, as stdin=yes of");
        sheet.note("the rule allows, and nobody is asked about what comes from there.");
    } else if matches!(judged.task, Task::Put(..)) {
        sheet.note("THE CONTENT OF THE FILE COMES AFTER THE APPROVAL: nobody is asked about it.");
    } else if has(flags::STDIN) {
        sheet.note("LATER INPUT DECIDES WHAT RUNS: the command reads what the qube sends while it");
        sheet.note("runs, as stdin=yes of the rule allows, and nobody is asked about that.");
    }
    sheet.field("qube", &vm.name);
    sheet.field("request", &visible(authentic.id.as_bytes()));
    match request {
        Some(r) if r.has(flags::QUEUED) => sheet.field("nonce", &format!("none: queued, made at {} ms", r.created_ms)),
        Some(r) => {
            sheet.field("nonce", &hex(&r.nonce));
            sheet.field("number", &format!("{} of this session", r.seq));
        }
        None => sheet.field("nonce", "none: a token of protocol v1, which covers the id alone"),
    }
    sheet.field("rule", &format!("line {} of {}.policy", judged.rule(), vm.name));
    match &judged.task {
        Task::Run(launch) => run(&mut sheet, launch, judged, payload),
        Task::Get(_, path, most) => {
            sheet.field("reads", &quoted(path.as_os_str().as_bytes()));
            sheet.field("size", &format!("at most {}", counted(*most, "byte")));
        }
        Task::Put(_, path, most, mode) => {
            sheet.field("writes", &quoted(path.as_os_str().as_bytes()));
            sheet.field("mode", &format!("{mode:03o}"));
            sheet.field("content", &format!("at most {}, which come from the qube", counted(*most, "byte")));
        }
    }
    sheet
}

fn run(sheet: &mut Sheet, launch: &Launch, judged: &Judged, payload: &[u8]) {
    let user = judged.options.user.as_deref().unwrap_or("root");
    sheet.field("user", &visible(user.as_bytes()));
    let otherwise = if launch.at_root_otherwise() { ", or '/' where it cannot be entered" } else { "" };
    sheet.field("directory", &format!("{}{otherwise}", quoted(launch.cwd.as_os_str().as_bytes())));
    sheet.field("umask", &format!("{:03o}", launch.umask));
    sheet.field("input", if launch.stdin { "comes from the qube while it runs" } else { "none" });
    sheet.field("terminal", if launch.tty { "yes" } else { "no" });
    sheet.field("time", &launch.timeout.map_or("no limit".to_owned(), |t| format!("at most {} ms", t.as_millis())));
    sheet.field(
        "output",
        &launch.max_output.map_or("no limit".to_owned(), |n| format!("at most {}", counted(n, "byte"))),
    );
    for (name, value) in variables(launch) {
        sheet.field("variable", &format!("{}={}", visible(name.as_bytes()), quoted(value.as_bytes())));
    }
    match &launch.script {
        Some(text) => {
            if judged.mode != Mode::Shell || text != payload {
                sheet.note("The policy has this run instead of what was asked (force):");
            }
            sheet.field("sha256", &hex(&mac::digest(text)));
            sheet.field("text for bash", &format!("{}:", counted(text.len(), "byte")));
            sheet.text(text);
        }
        None => {
            let path = launch.program.as_ref().map_or(&b""[..], |path| path.as_os_str().as_bytes());
            sheet.field(
                "program",
                if path.is_empty() { "none: there is no such program".into() } else { quoted(path) }.as_str(),
            );
            for name in judged.names.iter().flat_map(|names| &names.others).filter(|name| name.path != path) {
                sheet.field("", &format!("also {}", quoted(&name.path)));
            }
            for (n, word) in launch.words.iter().enumerate() {
                sheet.field(&format!("word {n}"), &quoted(word.as_bytes()));
            }
        }
    }
}
