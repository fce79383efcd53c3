//! What a qube may ask for: the rules in `/etc/qubes/remote.d/QUBE.policy`. The first rule that matches decides. Where
//! no rule matches, or the file is missing, the answer is no.
//!
//! ```text
//! # rules: allow|deny|ask, what, [options]
//! allow qvm-ls *                            # up to here; a word that begins so is quoted
//! ask   /usr/bin/qvm-shutdown --wait *      [timeout=120]
//! allow /usr/libexec/tools/** *
//! allow shell 'xl info'
//! allow get /var/log/xen                    [max-size=50M]
//! deny  shell *
//!
//! # settings of the whole qube
//! v1 = yes
//! max-running = 4
//! ```
//! A rule about a program matches only a vector of arguments (`qvm-remote --argv …`), compared word by word; no shell
//! reads it, so no `;` leads out of it. A rule `shell` matches the text for bash: `*` is any text, else the very text; a
//! pattern within a text would be an illusion, and is refused. `get` and `put` name directories that files must lie
//! beneath.
//!
//! # The program of a rule
//! A program has several names: a link in `/usr/sbin` leads to a file in `/usr/bin`, `/bin` is `/usr/bin`, and
//! `/usr/bin/../bin/x` is `/usr/bin/x`. [`super::program`] finds them; [`AskedProgram`] holds them. Which of them a rule
//! matches depends on its verdict, so that no name widens a right:
//!
//! | rule | names that it matches | `*` matches `/` |
//! |---|---|---|
//! | `allow` | the path that is executed: its directories resolved, its last name as asked | no; `**` does |
//! | `deny`, `ask` | that path, the name as it was sent, the path at each link on the way, and the file behind the links | yes |
//!
//! A rule's own directory is resolved too: `/bin/ls` in a rule is `/usr/bin/ls` where `/bin` is a link. Where a `deny` rule
//! names one program, and that is a link, the rule matches what is behind the link too, under any name. A program that
//! is `*` alone is any program.
//!
//! The file system is looked at only where a rule that allows or asks can match ([`Policy::reaches`]); anything else is
//! denied without a look. Everything here is pure; reading the file and the file system is the work of
//! [`super::policy_file`].

mod fault;
mod objection;
mod options;
mod pattern;
mod program;
mod remarks;
mod rules;
mod words;

pub use fault::PolicyFault;
pub use objection::{Manner, objection};
pub use options::{RuleOptions, UMASK};
pub use program::{AskedProgram, PATH, ProgramName};
pub use remarks::remarks;
pub use rules::{Action, EVERYTHING, Mismatch, NOTHING, Policy, Ruling, Verdict};

#[cfg(test)]
mod tests;
