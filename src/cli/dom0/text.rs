//! The longer texts of `qvm-remote-dom0`.

/// `--help`.
pub(super) const ABOUT: &str = "\
Runs commands of authorised qubes in dom0, as root where their policy allows.

Without a command this is the daemon (qvm-remote-dom0.service). The policy of a qube is
/etc/qubes/remote.d/QUBE.policy, its key QUBE.key in the same directory. The list of qubes is
in /etc/qubes/remote.conf: QVM_REMOTE_VMS=\"QUBE...\".";

/// What `enable` and `authorize` put before the owner.
pub(super) const WARNING: &str = "\
WARNING: this lets qubes run commands in dom0 with root privileges.
It breaks the security model of Qubes OS by design: whoever controls an allowed
qube controls dom0, and with it every other qube on this machine.
  - any program of the same user in that qube can use its key;
  - letting it call qvm-run or qvm-prefs is as good as root;
  - an unrestricted command can rewrite any log.
Use it only on a machine that you fully control, with small qubes that have no
network, and stop the service when it is not in use. For qvm-* alone, Qubes'
Admin API policy is the better way.
";
