//! Ports that only root may listen on.

use super::raw::{Raw, Value};
use crate::spec::error::Flaw;

/// A port from 1 to 1023.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spec) struct LowPort(pub(in crate::spec) u16);

impl LowPort {
    /// The first port that every user may listen on (ip_unprivileged_port_start, as Linux has it).
    pub(in crate::spec) const END: u16 = 1024;
}

impl Value for LowPort {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        let number = match raw {
            Raw::Integer(number) => u16::try_from(number).ok(),
            Raw::Text(_) | Raw::Float(_) | Raw::Boolean(_) => None,
        };
        match number {
            Some(port @ 1..Self::END) => Ok(Self(port)),
            Some(Self::END..) => {
                Err(Flaw::new(0..0, "ports from 1024 on are allowed without this key").note("leave the number out"))
            }
            _ => Err(Flaw::new(0..0, "expected port numbers from 1 to 1023").note("such as [80, 443]")),
        }
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.to_string().into_bytes()]
    }
}
