//! The face of `pfwd`, which a later version brings.

use std::process::ExitCode;

/// Says that this program is not part of this version yet, and fails.
pub fn main() -> ExitCode {
    eprintln!("pfwd: not built yet: this version has qrexec-connect only");
    ExitCode::FAILURE
}
