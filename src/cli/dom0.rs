//! The face of `qvm-remote-dom0`, which a later version brings.

use std::process::ExitCode;

/// Says that this program is not part of this version yet, and fails.
pub fn main() -> ExitCode {
    eprintln!("qvm-remote-dom0: not built yet: this version has qrexec-connect only");
    ExitCode::FAILURE
}
