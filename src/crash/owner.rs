//! What is to become of the sessions, and who has them: one word of the header each.

/// What is to become of the sessions when the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionMode {
    /// The next process takes them up.
    Running,
    /// The handover has them.
    Handed,
    /// The keeper ends them.
    Stopping,
    /// There are none.
    Ended,
}

impl RegionMode {
    pub(super) const ALL: [Self; 4] = [Self::Running, Self::Handed, Self::Stopping, Self::Ended];

    pub fn word(self) -> u64 {
        match self {
            Self::Running => 0,
            Self::Handed => 0x4a17,
            Self::Stopping => 0x570b,
            Self::Ended => 0xe2de,
        }
    }
}

/// Who has the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionOwner {
    /// Nobody, since the death of the process with this number.
    Free(u64),
    /// The process whose shadow has this number.
    Service(u64),
    Keeper,
}

impl RegionOwner {
    pub fn word(self) -> u64 {
        match self {
            Self::Free(generation) => generation << 8 | 1,
            Self::Keeper => 2,
            Self::Service(generation) => generation << 8 | 3,
        }
    }

    pub(super) fn of(word: u64) -> Self {
        match word & 0xff {
            1 => Self::Free(word >> 8),
            3 => Self::Service(word >> 8),
            _ => Self::Keeper, // nobody else's
        }
    }
}
