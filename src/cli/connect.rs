//! The face of `qrexec-connect`.

use std::process::ExitCode;

/// Runs `qrexec-connect`.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
