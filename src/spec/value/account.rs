//! Users and groups, by name or number; whoever acts on them looks names up.

use std::fmt;

use super::raw::{Raw, Value};
use crate::spec::error::Flaw;

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// A uid or gid, 0 to 4294967294 (`(uid_t) -1` means "no change" to chown(2)).
    Id(u32),
    /// A name for getpwnam(3) or getgrnam(3): letters, digits, `_`, `.` and `-`, with a `$` at most at its end.
    Name(String),
}

impl Account {
    fn parse(text: &str, kind: &str) -> Result<Self, Flaw> {
        let whole = 0..text.len();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let id = text.parse().ok().filter(|id| *id != u32::MAX).map(Self::Id);
            return id
                .ok_or_else(|| Flaw::new(whole, format!("{text} is no number of a {kind}")).note("0 to 4294967294"));
        }
        let name = text.strip_suffix('$').unwrap_or(text);
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() || text.len() > 255 || name.starts_with('-') || !name.bytes().all(good) {
            return Err(Flaw::new(whole, format!("\"{text}\" is not the name of a {kind}")));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl Value for Account {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        match raw {
            Raw::Integer(number) => Self::parse(&number.to_string(), "user"),
            _ => Self::parse(raw.text("the name or number of a user")?, "user"),
        }
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.to_string().into_bytes()]
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Who shall own a file: `user:group`, `user` or `:group`; at least one of the two is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    user: Option<Account>,
    group: Option<Account>,
}

impl Owner {
    /// The user; the file's own when `None`.
    pub fn user(&self) -> Option<&Account> {
        self.user.as_ref()
    }

    /// The group; the file's own when `None`.
    pub fn group(&self) -> Option<&Account> {
        self.group.as_ref()
    }
}

impl Value for Owner {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        let text = match raw {
            Raw::Integer(number) => return Self::read(Raw::Text(number.to_string().as_bytes())),
            _ => raw.text("an owner such as \"user:group\"")?,
        };
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let account = |text: &str, kind: &str, at: usize| {
            Some(text).filter(|text| !text.is_empty()).map(|text| Account::parse(text, kind).map_err(|f| f.shifted(at)))
        };
        let user = account(user, "user", 0).transpose()?;
        let group = account(group, "group", text.len() - group.len()).transpose()?;
        if user.is_none() && group.is_none() {
            return Err(Flaw::new(0..text.len(), "the owner is empty").note("user:group, user or :group"));
        }
        Ok(Self { user, group })
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.to_string().into_bytes()]
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.user.iter().try_for_each(|user| user.fmt(f))?;
        self.group.iter().try_for_each(|group| write!(f, ":{group}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_a_user_a_group_or_both_by_name_or_number() {
        for text in ["root:root", "root", ":adm", "1000:1000", "0", "www-data:0", "host$:x", "a.b_c:d"] {
            let owner = Owner::read(Raw::Text(text.as_bytes())).unwrap();
            assert_eq!(owner.to_string(), text);
        }
        assert_eq!(Owner::read(Raw::Integer(1000)).unwrap().user(), Some(&Account::Id(1000)));
        for text in ["", ":", "-x", "a b", "a:b:c", "4294967295", "é", "$"] {
            assert!(Owner::read(Raw::Text(text.as_bytes())).is_err(), "{text}");
        }
    }
}
