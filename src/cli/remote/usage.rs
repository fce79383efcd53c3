//! What `qvm-remote --help` prints, on standard output.

use super::{options::OPTIONS, verbs::VERBS};

/// The column of the help of options and of verbs.
const COLUMNS: (usize, usize) = (27, 46);

/// The whole text.
pub(super) fn text() -> String {
    let mut text = String::from(
        "\
qvm-remote: run commands in dom0 of Qubes OS, as ssh runs them on a server

Usage:
  qvm-remote [OPTIONS] COMMAND [ARGUMENTS...]   words are joined and read by bash in dom0
  qvm-remote [OPTIONS] < SCRIPT                 without words, standard input is the script
  qvm-remote [OPTIONS] --argv PROGRAM [ARGUMENTS...]   no shell reads the words
  qvm-remote-ssh dom0 COMMAND                   with the arguments of ssh: for rsync -e, GIT_SSH, Ansible

",
    );
    for verb in VERBS {
        let usage = format!("qvm-remote {} {}", verb.name, verb.usage);
        text += &format!("  {usage:<width$}{}\n", verb.help, width = COLUMNS.1);
    }
    text += "\nOptions, before the first word:\n";
    for option in OPTIONS {
        let short = option.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
        let value = option.value.map_or_else(String::new, |value| format!(" {value}"));
        let names = format!("{short}--{}{value}  ", option.long);
        text += &format!("  {names:<width$}{}\n", option.help, width = COLUMNS.0);
    }
    text + "
Exit status: the command's; 128+n when signal n ended it; 124 timed out; 125 ended by a limit of
the policy; 126 refused by dom0; 127 with --argv, no such program; 255 dom0 was not reached, could
not do it, or did not sign the answer; 1 a local error, or a file of get or put.

The policy of a qube is /etc/qubes/remote.d/QUBE.policy in dom0. A qube that may run any
command there is as good as dom0 itself.
"
}
