//! Where configuration comes from: a main file, the drop-in files beside it, none of which is needed, and `--forward`
//! arguments over them. Here they are found and read; `spec` decides what they mean.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    dial::netns,
    log::{Kind, escape, say},
    report::{Code, Fatal},
    service::{ReadTexts, unit_flaws},
    spec::{Beside, Config, Faults, LastTexts, Loaded, Machine, Plan, Text, Texts, load, load_knowing},
    sys,
    systemd::startable::StartableUnits,
};

/// A configuration file above this size is a mistake, in bytes.
const LIMIT: u64 = 1 << 20;
/// More drop-in files are a mistake, and more bytes in all of them.
const DROP_INS: (usize, usize) = (1000, 16 << 20);

/// How long a named pipe or a terminal may take at a first start.
const PIPE: Duration = Duration::from_secs(60);

/// Where a program's configuration comes from.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    /// The file that was named, if one was.
    pub(super) file: Option<PathBuf>,
    /// Where else a main file is looked for, with drop-in files in the directory of its name and `.d`: the first place
    /// that has either counts.
    pub(super) places: Vec<PathBuf>,
    /// `--forward` arguments.
    pub(super) forwards: Vec<String>,
}

impl Sources {
    /// Whether there may be a file, now or later.
    pub(super) fn may_have_file(&self) -> bool {
        self.file.is_some() || !self.places.is_empty()
    }

    /// Why there is nothing to serve, when nothing was passed and nothing is asked for.
    pub(super) fn nothing(&self, program: &str) -> String {
        let files = self.file.as_ref().map_or_else(|| self.places.iter().collect(), |file| vec![file]);
        let files: Vec<_> = files.into_iter().map(|file| file.display().to_string()).collect();
        let files = if files.is_empty() { "the arguments".to_owned() } else { files.join(" or ") };
        format!("no {program}-*.socket unit is started, and no [[forward]] of {files} has a listener")
    }

    /// Reads everything; what cannot be read says why.
    pub(super) fn texts(&self) -> Texts {
        self.texts_with(|path| read_within(path, PIPE))
    }

    /// Reads everything, a named file with `read_named`.
    fn texts_with(&self, read_named: fn(&Path) -> io::Result<String>) -> Texts {
        let forwards = self.forwards.clone();
        if let Some(file) = &self.file {
            let main = Some(text(file, read_named(file)));
            return Texts { main, drop_ins: Vec::new(), forwards };
        }
        for place in &self.places {
            let main = match read_regular(place) {
                Err(e) if is_absent(place, &e) => None,
                read => Some(text(place, read)),
            };
            let drop_ins = drop_ins(place);
            if main.is_some() || drop_ins.is_some() {
                return Texts { main, drop_ins: drop_ins.unwrap_or_default(), forwards };
            }
        }
        Texts { main: None, drop_ins: Vec::new(), forwards }
    }

    /// What a first start would make of it `beside` the sockets that there are, and the `units` of the manager.
    pub(super) fn load(&self, beside: &Beside<'_>, units: &StartableUnits) -> Loaded {
        load_beside(&self.texts(), beside, units)
    }

    /// Reads everything for who takes only a configuration without faults. No manager is asked.
    ///
    /// # Errors
    /// Every fault of the files and arguments.
    pub(super) fn read(&self) -> Result<(Config, Plan), Faults> {
        let machine = Machine { users: sys::user_exists, ..Machine::WILLING };
        load_knowing(&self.texts(), &LastTexts::default(), &Beside::NOTHING, 0, machine).strict()
    }

    /// A function that reads everything each time it is called, and never waits: it reads regular files alone.
    pub(super) fn reader(self) -> ReadTexts {
        Box::new(move || {
            self.warn_of_writable();
            self.texts_with(read_regular)
        })
    }

    /// Warns in the journal of a main file that every user can write: whoever writes it decides where connections go.
    pub(super) fn warn_of_writable(&self) {
        let named = self.file.iter().chain(self.places.iter().filter(|_| self.file.is_none()));
        for file in named {
            if let Some(text) = writable(file) {
                say(Kind::ControlTrouble, text);
            }
        }
    }
}

/// What a first start would make of these texts `beside` the sockets that there are, and the `units` of the manager.
pub(super) fn load_beside(texts: &Texts, beside: &Beside<'_>, units: &StartableUnits) -> Loaded {
    let machine = Machine { users: sys::user_exists, units: &|uses| unit_flaws(units, uses) };
    load_knowing(texts, &LastTexts::default(), beside, 0, machine)
}

/// What a first start would make of it without any socket; neither users nor units are asked about.
pub(super) fn load_alone(texts: &Texts) -> Loaded {
    load(texts, &LastTexts::default(), &Beside::NOTHING, 0)
}

/// Tells faults on stderr: to people each with its line underlined, to a log a line for each. The exit code that goes
/// with it.
pub(super) fn tell(faults: &Faults, program: &str, people: bool) -> ExitCode {
    let terminal = io::IsTerminal::is_terminal(&io::stderr());
    if people || terminal {
        eprint!("{}", faults.render(terminal));
    } else {
        faults.to_string().lines().for_each(|line| eprintln!("{program}: {line}"));
    }
    Code::Config.into()
}

/// The failure of a plan with namespaces in a process that may not enter any.
///
/// # Errors
/// That one.
pub(super) fn check_permission(plan: &Plan) -> Result<(), Fatal> {
    if !plan.enters_namespaces() || netns::permitted() {
        return Ok(());
    }
    Err(Fatal::new(Code::Permission, "may not enter network namespaces").hint(netns::NEEDS))
}

fn text(path: &Path, read: io::Result<String>) -> Text {
    Text { name: path.to_string_lossy().into_owned(), text: read.map_err(|e| e.to_string()) }
}

/// The drop-in files of a place, in the byte order of their names; `None` where it has no directory for them.
fn drop_ins(place: &Path) -> Option<Vec<Text>> {
    let mut dir = place.as_os_str().to_owned();
    dir.push(".d");
    let dir = PathBuf::from(dir);
    let names = match drop_in_names(&dir) {
        Ok(names) => names,
        Err(e) if is_absent(&dir, &e) => return None,
        Err(e) => return Some(vec![text(&dir, Err(e))]),
    };
    let read = |name: OsString| {
        let path = dir.join(name);
        let read = read_drop_in(&path);
        text(&path, read)
    };
    let all: Vec<Text> = names.into_iter().map(read).collect();
    if all.iter().filter_map(|text| text.text.as_ref().ok()).map(String::len).sum::<usize>() > DROP_INS.1 {
        return Some(vec![text(&dir, Err(io::Error::other("the files have more than 16 MiB in all")))]);
    }
    Some(all)
}

fn drop_in_names(dir: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(dir)?;
    refuse_writable(&fs::metadata(dir)?)?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(b".toml") && !bytes.starts_with(b".") {
            names.push(name);
        }
        if names.len() > DROP_INS.0 {
            return Err(io::Error::other(format!("there are more than {} files", DROP_INS.0)));
        }
    }
    names.sort_unstable_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
    Ok(names)
}

/// Refuses what others than root and we can write: whoever can write it decides where connections go.
fn refuse_writable(metadata: &Metadata) -> io::Result<()> {
    let (us, our_group) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
    if ![0, us].contains(&metadata.uid()) {
        return refuse("it belongs to another user; run: chown it to root, or to the user of the service");
    }
    let group_writes = metadata.mode() & 0o020 != 0 && ![0, our_group].contains(&metadata.gid());
    if metadata.mode() & 0o002 != 0 || group_writes {
        return refuse("other users can write to it; run: chmod go-w");
    }
    Ok(())
}

fn read_drop_in(path: &Path) -> io::Result<String> {
    let file = open_regular(path)?;
    refuse_writable(&file.metadata()?)?;
    read_text(file).and_then(not_empty)
}

fn read_regular(path: &Path) -> io::Result<String> {
    read_text(open_regular(path)?).and_then(not_empty)
}

/// Whether `error` says that nothing is at `path`. A link that leads nowhere is there, and cannot be read.
fn is_absent(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err()
}

/// What is to be said of a regular file that every user can write.
fn writable(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok().filter(|file| file.is_file() && file.mode() & 0o002 != 0)?;
    let mode = metadata.mode() & 0o7777;
    let path = path.to_string_lossy();
    let path = escape(path.as_bytes());
    Some(format!(
        "{path}: every user can write this file (mode {mode:04o}) and decide where connections go; run: chmod o-w {path}"
    ))
}

/// Reads a file that somebody named. A pipe is as good, if its text comes within `limit`.
fn read_within(path: &Path, limit: Duration) -> io::Result<String> {
    if fs::metadata(path)?.is_file() {
        return read_text(File::open(path)?).and_then(not_empty);
    }
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    // Nothing ends an open(2) that waits for a writer: after the limit, the thread stays behind.
    thread::spawn(move || sender.send(File::open(path).and_then(read_text)));
    let late = || format!("it is not a regular file, and its end did not come within {} s", limit.as_secs());
    receiver.recv_timeout(limit).unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, late())))
}

/// Opens a file, and nothing that a reader would wait for.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

fn read_text(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    if file.take(LIMIT + 1).read_to_end(&mut bytes)? as u64 > LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Refuses the text of a file without a single word. Nobody means that: it is what a full disk or an editor leaves for
/// a moment, and a reload would close every forward of the file.
fn not_empty(text: String) -> io::Result<String> {
    if text.trim().is_empty() {
        return Err(io::Error::other("it is empty; to serve no forward of it, write a comment into it or remove it"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn sources(places: &[&Path]) -> Sources {
        Sources { file: None, places: places.iter().map(|place| (*place).to_owned()).collect(), forwards: Vec::new() }
    }

    /// The last part of the name of each drop-in file, and its text.
    fn drop_ins(texts: &Texts) -> Vec<(String, Result<String, String>)> {
        let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        texts.drop_ins.iter().map(|text| (last(&text.name), text.text.clone())).collect()
    }

    #[test]
    fn the_first_place_with_a_file_or_a_directory_counts_alone() {
        let root = tempfile::tempdir().unwrap();
        let [home, etc] = ["home.toml", "etc.toml"].map(|name| root.path().join(name));
        let both = sources(&[&home, &etc]);
        assert_eq!(both.texts(), Texts::default());
        fs::create_dir(root.path().join("etc.toml.d")).unwrap();
        fs::write(root.path().join("etc.toml.d/x.toml"), "etc").unwrap();
        assert_eq!(drop_ins(&both.texts()), [("x.toml".to_owned(), Ok("etc".to_owned()))]);
        fs::create_dir(root.path().join("home.toml.d")).unwrap();
        assert_eq!(both.texts(), Texts::default(), "an empty directory is a place");
        fs::write(&home, "home").unwrap();
        let texts = both.texts();
        assert_eq!((texts.main.map(|main| main.text), texts.drop_ins), (Some(Ok("home".to_owned())), Vec::new()));
        let named = Sources { file: Some(etc), ..both };
        assert_eq!(named.texts().drop_ins, Vec::new(), "a named file stands alone");
        assert!(named.texts().main.is_some_and(|main| main.text.is_err()), "it is not there");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_a_file_that_cannot_be_read() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("m.toml");
        symlink("nowhere", &main).unwrap();
        let texts = sources(&[&main]).texts();
        assert!(texts.main.is_some_and(|main| main.text.is_err_and(|why| why.contains("No such file"))));
        fs::remove_file(&main).unwrap();
        symlink("nowhere", root.path().join("m.toml.d")).unwrap();
        let [(name, Err(_))] = &drop_ins(&sources(&[&main]).texts())[..] else { panic!("the directory alone") };
        assert_eq!(name, "m.toml.d");
    }

    #[test]
    fn a_pipe_is_read_at_a_first_start_within_a_limit_and_never_at_a_reload() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        let why = read_within(&pipe, Duration::from_millis(20)).unwrap_err().to_string();
        assert!(why.contains("not a regular file"), "{why}");
        let named = Sources { file: Some(pipe.clone()), ..sources(&[]) };
        let again = named.clone().reader();
        assert!(again().main.is_some_and(|main| main.text.is_err_and(|why| why.contains("not a regular file"))));
    }

    #[test]
    fn a_main_file_that_every_user_can_write_is_told() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("m.toml");
        fs::write(&main, "").unwrap();
        fs::set_permissions(&main, fs::Permissions::from_mode(0o664)).unwrap();
        assert_eq!(writable(&main), None);
        fs::set_permissions(&main, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(writable(&main).is_some_and(|text| text.contains("mode 0666") && text.contains("chmod o-w")));
    }

    #[test]
    fn drop_ins_are_read_in_the_byte_order_of_their_names_and_each_by_itself() {
        let root = tempfile::tempdir().unwrap();
        let (main, dir) = (root.path().join("m.toml"), root.path().join("m.toml.d"));
        fs::create_dir(&dir).unwrap();
        for name in ["b.toml", "B.toml", "é.toml", "a.toml", ".hidden.toml", "a.toml~", "a.conf", "open.toml"] {
            fs::write(dir.join(name), name).unwrap();
        }
        fs::set_permissions(dir.join("open.toml"), fs::Permissions::from_mode(0o646)).unwrap();
        fs::create_dir(dir.join("dir.toml")).unwrap();
        symlink("nowhere", dir.join("link.toml")).unwrap();
        nix::unistd::mkfifo(&dir.join("pipe.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        fs::write(dir.join("large.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
        fs::write(dir.join("latin.toml"), b"\xe9").unwrap();
        let read = drop_ins(&sources(&[&main]).texts());
        let good: Vec<&str> = read.iter().filter(|(_, text)| text.is_ok()).map(|(name, _)| name.as_str()).collect();
        assert_eq!(good, ["B.toml", "a.toml", "b.toml", "é.toml"]);
        let why = |name: &str| {
            let found = read.iter().find(|(other, _)| other == name).and_then(|(_, text)| text.clone().err());
            found.unwrap_or_else(|| panic!("{name}: {read:?}"))
        };
        for (name, part) in [
            ("open.toml", "chmod go-w"),
            ("dir.toml", "directory"),
            ("link.toml", "No such file"),
            ("pipe.toml", "not a regular file"),
            ("large.toml", "1 MiB"),
            ("latin.toml", "UTF-8"),
        ] {
            assert!(why(name).contains(part), "{name}: {}", why(name));
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let [(name, Err(why))] = &drop_ins(&sources(&[&main]).texts())[..] else { panic!("the directory alone") };
        assert!(name == "m.toml.d" && why.contains("other users can write"), "{why}");
    }
}
