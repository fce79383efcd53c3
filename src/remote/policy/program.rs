//! The names of a program that somebody asks for.

/// Where programs are looked for, whatever the daemon's own environment says.
pub const PATH: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// One name of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramName {
    /// An absolute path.
    pub path: Vec<u8>,
    /// The path's directory is one of [`PATH`], so a rule with a bare name matches the last name of the path.
    pub in_path: bool,
}

/// A program that somebody asks for, under all its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedProgram {
    /// The path that is executed: directories resolved, the last name as asked. A bare name that no directory of
    /// [`PATH`] has could be in any of them: then there is one path for each.
    pub executed: Vec<ProgramName>,
    /// The other names: the path as it was sent, the path at each link on the way, and the file behind the links.
    pub others: Vec<ProgramName>,
}

impl AskedProgram {
    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &ProgramName> {
        self.executed.iter().chain(&self.others)
    }

    /// A program that has one name only: an absolute path, taken as it stands.
    pub fn plain(path: &[u8]) -> Self {
        let directory = path.iter().rposition(|b| *b == b'/').map_or(&[][..], |at| &path[..at]);
        let in_path = PATH.iter().any(|dir| dir.as_bytes() == directory);
        Self { executed: vec![ProgramName { path: path.to_vec(), in_path }], others: Vec::new() }
    }
}
