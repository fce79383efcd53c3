//! What `qvm-remote --help` prints.

/// On standard output, exit code 0.
pub const TEXT: &str = "\
qvm-remote: run commands in dom0 of Qubes OS, as ssh runs them on a server

Usage:
  qvm-remote [OPTIONS] COMMAND [ARGUMENTS...]   words are joined and read by bash in dom0
  qvm-remote [OPTIONS] < SCRIPT                 without words, standard input is the script
  qvm-remote [OPTIONS] --argv PROGRAM [ARGUMENTS...]   no shell reads the words
  qvm-remote get DOM0-PATH [LOCAL-PATH|-]       copy a file out of dom0, where its policy allows
  qvm-remote put LOCAL-PATH|- DOM0-PATH         copy a file into dom0, where its policy allows
  qvm-remote-ssh dom0 COMMAND                   shaped like ssh: for rsync -e, GIT_SSH, Ansible

  qvm-remote key gen | show | import [KEY]
  qvm-remote ping | status [--json] | queue [status | clean | debug]
  qvm-remote log [N] | history [N]

Options, before the first word:
  -t, --timeout SECONDS      end the command after so long, and exit 124 (300)
      --connect-timeout SECONDS   exit 255 when dom0 does not answer within so long (10)
  -i, --stdin                pass standard input on to the command
      --tty                  give the command a terminal
      --argv                 pass the words on as they are: policies can rely on them
      --user NAME            run as this user of dom0, where its policy names him
      --queue                wait for a daemon that is not up yet
      --v1                   for the Python qvm-remote-dom0: nothing is authenticated but the id
  -q, --quiet                no progress, no hints
  -v, --verbose              say more
  -h, --help   --version

Exit status: the command's; 128+n when signal n ended it; 124 timed out; 125 ended by a limit;
126 refused by dom0; 255 dom0 not reached, or an answer that is not its own; 1 anything of our own.

What an allowed qube may do is in dom0: /etc/qubes/remote.d/QUBE.policy. A qube that may run any
command there is as good as dom0 itself.
";
