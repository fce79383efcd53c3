//! What a supervisor is to run, and how: written by the daemon into a file without a name, read by its supervisor.
//!
//! # Format
//! Fields that end with a zero byte, in the order of [`SupervisorPlan::encode`]; no field holds one, as no argument of
//! execve(2) does. An empty field stands for what there is not. Both ends are the same program (`/proc/self/exe`), so
//! there is no version to agree on.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
    str,
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::sys::Identity;

/// What to run, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SupervisorPlan {
    /// The path that is executed; `None` where there is no such program: then nothing is, and the status is 127.
    pub program: Option<PathBuf>,
    /// The words of the command, the program's name as asked among them.
    pub words: Vec<OsString>,
    /// The whole environment of the command.
    pub env: Vec<(OsString, OsString)>,
    /// Its standard input is a terminal that it shall control.
    pub tty: bool,
    /// The user to run as.
    pub identity: Option<Identity>,
    /// Descriptors that the command may have.
    pub descriptors: u64,
    /// The directory to run in, which that user must be able to enter.
    pub cwd: PathBuf,
    /// The command runs in `/` where that user cannot enter the directory.
    pub cwd_optional: bool,
    /// The umask of the command.
    pub umask: u32,
    /// A separate control group, made already.
    pub cgroup: Option<PathBuf>,
}

impl SupervisorPlan {
    /// The plan in a file without a name.
    ///
    /// # Errors
    /// `InvalidInput` for a zero byte in a field; what memfd_create(2) and write(2) say.
    pub fn file(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create(c"plan", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&self.encode()?)?;
        file.rewind()?;
        Ok(file)
    }

    /// Reads a plan from its file.
    ///
    /// # Errors
    /// What read(2) says; `InvalidData` for what is no plan.
    pub fn read(mut file: File) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Self::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = Fields(Vec::new());
        out.put(self.program.as_ref().map_or(b"", |path| path.as_os_str().as_bytes()))?;
        out.put(if self.tty { b"t" } else { b"" })?;
        let identity = self.identity.as_ref().map(|id| {
            let groups: Vec<_> = id.groups.iter().map(u32::to_string).collect();
            format!("{}:{}:{}", id.uid, id.gid, groups.join(","))
        });
        out.put(identity.unwrap_or_default().as_bytes())?;
        out.put(self.descriptors.to_string().as_bytes())?;
        out.put(self.cwd.as_os_str().as_bytes())?;
        out.put(if self.cwd_optional { b"o" } else { b"" })?;
        out.put(self.umask.to_string().as_bytes())?;
        out.put(self.cgroup.as_ref().map_or(b"", |path| path.as_os_str().as_bytes()))?;
        out.put(self.words.len().to_string().as_bytes())?;
        for word in &self.words {
            out.put(word.as_bytes())?;
        }
        for (name, value) in &self.env {
            out.put(name.as_bytes())?;
            out.put(value.as_bytes())?;
        }
        Ok(out.0)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = bytes.strip_suffix(b"\0")?.split(|byte| *byte == 0);
        let word = |field: &[u8]| OsString::from_vec(field.to_vec());
        let path = |field: &[u8]| (!field.is_empty()).then(|| PathBuf::from(word(field)));
        let mut plan = Self {
            program: path(fields.next()?),
            tty: !fields.next()?.is_empty(),
            identity: match fields.next()? {
                b"" => None,
                text => Some(identity(str::from_utf8(text).ok()?)?),
            },
            descriptors: number(fields.next()?)?,
            cwd: path(fields.next()?)?,
            cwd_optional: !fields.next()?.is_empty(),
            umask: u32::try_from(number(fields.next()?)?).ok()?,
            cgroup: path(fields.next()?),
            ..Self::default()
        };
        for _ in 0..number(fields.next()?)? {
            plan.words.push(word(fields.next()?));
        }
        while let Some(name) = fields.next() {
            plan.env.push((word(name), word(fields.next()?)));
        }
        Some(plan)
    }
}

struct Fields(Vec<u8>);

impl Fields {
    fn put(&mut self, field: &[u8]) -> io::Result<()> {
        if field.contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a word of the command has a zero byte"));
        }
        self.0.extend_from_slice(field);
        self.0.push(0);
        Ok(())
    }
}

fn number(field: &[u8]) -> Option<u64> {
    str::from_utf8(field).ok()?.parse().ok()
}

/// `UID:GID:GROUPS`.
fn identity(text: &str) -> Option<Identity> {
    let mut parts = text.split(':');
    let (uid, gid, groups) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
    let groups: Result<Vec<u32>, _> = groups.split(',').filter(|g| !g.is_empty()).map(str::parse).collect();
    Some(Identity { uid, gid, groups: groups.ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn any_word() -> impl Strategy<Value = OsString> {
        vec(1u8.., 0..20).prop_map(OsString::from_vec)
    }

    fn any_path() -> impl Strategy<Value = PathBuf> {
        vec(1u8.., 1..20).prop_map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
    }

    prop_compose! {
        fn any_plan()(
            program in option::of(any_path()), words in vec(any_word(), 0..5), env in vec((any_word(), any_word()), 0..5),
            tty: bool, id in option::of((any::<u32>(), any::<u32>(), vec(any::<u32>(), 0..4))), descriptors: u64,
            cwd in any_path(), cwd_optional: bool, umask: u32, cgroup in option::of(any_path()),
        ) -> SupervisorPlan {
            let identity = id.map(|(uid, gid, groups)| Identity { uid, gid, groups });
            SupervisorPlan { program, words, env, tty, identity, descriptors, cwd, cwd_optional, umask, cgroup }
        }
    }

    proptest! {
        #[test]
        fn a_plan_is_read_back_as_it_was_written(plan in any_plan()) {
            let file = plan.file().expect("a file in memory");
            prop_assert_eq!(SupervisorPlan::read(file).expect("a plan"), plan);
        }

        #[test]
        fn a_part_of_a_plan_is_none_or_a_shorter_one(plan in any_plan(), cut: prop::sample::Index) {
            let bytes = plan.encode().expect("no zero byte");
            let part = &bytes[..cut.index(bytes.len())];
            if let Some(other) = SupervisorPlan::decode(part) {
                prop_assert_eq!(other.encode().expect("no zero byte"), part);
            }
        }
    }

    #[test]
    fn a_zero_byte_is_refused() {
        let plan = SupervisorPlan { words: vec!["a\0b".into()], cwd: "/".into(), ..SupervisorPlan::default() };
        assert_eq!(plan.file().map_err(|e| e.kind()).err(), Some(io::ErrorKind::InvalidInput));
    }
}
