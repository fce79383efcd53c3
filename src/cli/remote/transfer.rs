//! `get` and `put`: one file between dom0 and here.

use std::{
    ffi::OsString,
    fs::File,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::Path,
    process::ExitCode,
};

use super::{
    options::{ClientOptions, local_error},
    submit::{ask, plain},
};
use crate::{
    log::escape,
    proto::remote::Mode,
    remote::client::{ClientError, Home, Submission},
};

/// `get REMOTE [LOCAL]`: into a file that appears whole, or `-` for standard output.
pub(super) fn get(home: &Home, options: &ClientOptions, words: &[OsString]) -> Result<ExitCode, ClientError> {
    let (remote, local) = match words {
        [remote] => (remote, Path::new(remote).file_name().unwrap_or_default().to_owned()),
        [remote, local] => (remote, local.clone()),
        _ => return Err(local_error("usage: get DOM0-PATH [LOCAL-PATH]")),
    };
    let shown = [b"get ", remote.as_bytes()].concat();
    let mut wanted = Submission { shown, ..plain(options, Mode::Get, remote.as_bytes().to_vec()) };
    if local == "-" {
        return ask(home, options, wanted);
    }
    let mut place = std::path::PathBuf::from(&local);
    if place.is_dir() {
        place.push(Path::new(remote).file_name().unwrap_or_default());
    }
    let mut name = place.clone().into_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = std::path::PathBuf::from(name);
    let failed = |e: std::io::Error| local_error(format!("{}: {e}", place.display()));
    let file = File::options().write(true).create_new(true).mode(0o600).open(&part).map_err(failed)?;
    wanted.output = Some(file);
    let result = ask(home, options, wanted);
    if matches!(&result, Ok(code) if *code == ExitCode::SUCCESS) {
        std::fs::rename(&part, &place).map_err(failed)?;
    } else {
        let _ = std::fs::remove_file(&part);
    }
    result
}

/// `put LOCAL REMOTE`; `-` is standard input.
pub(super) fn put(home: &Home, options: &ClientOptions, words: &[OsString]) -> Result<ExitCode, ClientError> {
    let [local, remote] = words else { return Err(local_error("usage: put LOCAL-PATH DOM0-PATH")) };
    let shown = [b"put ", remote.as_bytes()].concat();
    let mut wanted = Submission { shown, ..plain(options, Mode::Put, remote.as_bytes().to_vec()) };
    if local != "-" {
        let name = escape(local.as_bytes());
        let file = File::open(local).map_err(|e| local_error(format!("{name}: {e}")))?;
        if file.metadata().is_ok_and(|file| file.is_dir()) {
            let hint = "put copies one file; a directory: tar c DIRECTORY | qvm-remote -i 'tar xC /DOM0-DIRECTORY'";
            return Err(local_error(format!("{name}: it is a directory ({hint})")));
        }
        wanted.input = Some(file);
    }
    ask(home, options, wanted)
}
