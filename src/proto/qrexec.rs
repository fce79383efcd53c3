//! What `qrexec-client-vm` says by its exit code.

/// 255: the connection to the other qube broke before the service's exit code came (libqrexec/process_io.c: its status
/// is still -1). A service may give the same code itself.
pub const LOST: u8 = 255;

/// What an exit code of `qrexec-client-vm` means when the service has not sent a byte; otherwise every code is the
/// service's own. Codes: `QREXEC_EXIT_*` at the end of libqrexec/qrexec.h, qrexec-client-vm(1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetUp {
    /// 126: refused. Policy said no, an `ask` was cancelled, the target could not be started, or has no free port:
    /// the caller is not told which.
    Refused,
    /// 127: the target has no such service.
    Missing,
    /// 125: qrexec itself failed on the other side, or the service's socket did not take the connection.
    Qrexec,
    /// 1: the local agent could not be reached or did not answer properly.
    Local,
    /// 2: `qrexec-client-vm` did not understand its arguments.
    Usage,
    /// The service ended with this code.
    Service(u8),
}

impl SetUp {
    /// Reads an exit code, 0..=255 (128+n for a signal n).
    pub fn from_exit(code: u8) -> Self {
        match code {
            126 => Self::Refused,
            127 => Self::Missing,
            125 => Self::Qrexec,
            1 => Self::Local,
            2 => Self::Usage,
            other => Self::Service(other),
        }
    }

    /// Whether nothing was ever there to serve the call. The caller learns it by the exit code of a *connected* call:
    /// the two qubes are connected before the service is looked for.
    pub fn never_began(self) -> bool {
        matches!(self, Self::Missing | Self::Qrexec)
    }

    /// Whether only a service can have given it, so that the call was connected.
    pub fn is_the_services(self) -> bool {
        matches!(self, Self::Service(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_codes_are_told_from_the_services_own() {
        let read = [(126, SetUp::Refused), (127, SetUp::Missing), (125, SetUp::Qrexec), (1, SetUp::Local)];
        for (code, meaning) in read {
            assert_eq!(SetUp::from_exit(code), meaning);
        }
        assert_eq!(SetUp::from_exit(2), SetUp::Usage);
        for code in [0, 3, 124, 128, 137, 255] {
            assert_eq!(SetUp::from_exit(code), SetUp::Service(code));
        }
    }
}
