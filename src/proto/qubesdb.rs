//! The messages of qubesdb-daemon's socket (`include/qubesdb.h` of qubes-core-qubesdb): a header of 72 bytes, then
//! data.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | type |
//! | 1..65 | path, ended by a NUL |
//! | 65..68 | nothing: the compiler's padding |
//! | 68..72 | length of the data, in the byte order of the machine |

/// Length of a header, in bytes.
pub const HEADER: usize = 72;
/// The longest path, in bytes, its NUL included (`QDB_MAX_PATH`).
pub const MAX_PATH: usize = 64;
/// The longest value, in bytes (`QDB_MAX_DATA`).
pub const MAX_DATA: u32 = 3072;

/// Where the path and the length stand.
const PATH: std::ops::Range<usize> = 1..1 + MAX_PATH;
const LENGTH: std::ops::Range<usize> = 68..HEADER;

/// What a message is: `enum qdb_msg`, the types that a reader sends or gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbMessage {
    /// Reads all entries whose paths begin with the path of the header.
    Multiread,
    /// Writes one entry.
    Write,
    /// Removes an entry; all entries below a path that ends in a slash.
    Remove,
    /// Watches a path; all paths below one that ends in a slash.
    Watch,
    /// It was done.
    Ok,
    /// There is no such path.
    NoEntry,
    /// It was refused.
    Error,
    /// One entry; an empty path ends the answer.
    Entry,
    /// A watched path was written or removed. It may come between the parts of any answer.
    Changed,
}

impl DbMessage {
    const ALL: [(Self, u8); 9] = [
        (Self::Write, 1),
        (Self::Multiread, 2),
        (Self::Remove, 4),
        (Self::Watch, 5),
        (Self::Ok, 7),
        (Self::NoEntry, 8),
        (Self::Error, 9),
        (Self::Entry, 11),
        (Self::Changed, 13),
    ];
}

/// The header of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DbHeader {
    message: DbMessage,
    path: Vec<u8>,
    data: u32,
}

/// Why a header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbFault {
    /// This type is not one that a reader gets.
    Type(u8),
    /// The path has no end, or is too long.
    Path,
    /// So many bytes of data are announced.
    Length(u32),
}

impl std::fmt::Display for DbFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Type(number) => write!(f, "a message of the unexpected type {number}"),
            Self::Path => f.write_str("a path without an end"),
            Self::Length(length) => write!(f, "{length} bytes of data, and {MAX_DATA} are the most"),
        }
    }
}

impl std::error::Error for DbFault {}

impl DbHeader {
    /// A header; `data` bytes follow it.
    ///
    /// # Errors
    /// A path that is too long or holds a NUL; too much data.
    pub fn new(message: DbMessage, path: &[u8], data: u32) -> Result<Self, DbFault> {
        if path.len() >= MAX_PATH || path.contains(&0) {
            return Err(DbFault::Path);
        }
        if data > MAX_DATA {
            return Err(DbFault::Length(data));
        }
        Ok(Self { message, path: path.to_owned(), data })
    }

    /// What the message is.
    pub fn message(&self) -> DbMessage {
        self.message
    }

    /// The path, without its NUL.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// How many bytes of data follow: at most [`MAX_DATA`].
    pub fn data(&self) -> usize {
        usize::try_from(self.data).unwrap_or(0)
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let number = DbMessage::ALL.into_iter().find(|(message, _)| *message == self.message);
        bytes[0] = number.map_or(0, |(_, number)| number);
        bytes[PATH.start..PATH.start + self.path.len()].copy_from_slice(&self.path);
        bytes[LENGTH].copy_from_slice(&self.data.to_ne_bytes());
        bytes
    }

    /// Reads a header. What stands behind the NUL of the path, and in the padding, means nothing.
    ///
    /// # Errors
    /// What no daemon sends.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, DbFault> {
        let message = DbMessage::ALL.into_iter().find(|(_, number)| *number == bytes[0]);
        let (message, _) = message.ok_or(DbFault::Type(bytes[0]))?;
        let path = &bytes[PATH];
        let end = path.iter().position(|byte| *byte == 0).ok_or(DbFault::Path)?;
        let mut length = [0; 4];
        length.copy_from_slice(&bytes[LENGTH]);
        Self::new(message, &path[..end], u32::from_ne_bytes(length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_is_laid_out_as_the_compiler_of_the_daemon_does() {
        let header = DbHeader::new(DbMessage::Entry, b"/vm-config/x", 3).expect("a header");
        let bytes = header.encode();
        assert_eq!((bytes[0], &bytes[1..14], &bytes[14..68]), (11, &b"/vm-config/x\0"[..], &[0; 54][..]));
        assert_eq!(bytes[68..], 3u32.to_ne_bytes());
    }

    #[test]
    fn what_no_daemon_sends_is_refused() {
        let good = DbHeader::new(DbMessage::Changed, b"/x", 0).expect("a header").encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            DbHeader::decode(&bytes)
        };
        assert_eq!(with(0, 99), Err(DbFault::Type(99)));
        assert_eq!(with(69, 255).map_err(|fault| matches!(fault, DbFault::Length(_))), Err(true));
        let mut endless = good;
        endless[PATH].fill(b'a');
        assert_eq!(DbHeader::decode(&endless), Err(DbFault::Path));
        assert_eq!(DbHeader::new(DbMessage::Watch, &[b'a'; MAX_PATH], 0), Err(DbFault::Path));
    }

    proptest! {
        #[test]
        fn encode_and_decode_are_inverses(
            kind in 0..DbMessage::ALL.len(),
            path in proptest::collection::vec(1..=255u8, 0..MAX_PATH),
            data in 0..=MAX_DATA,
        ) {
            let header = DbHeader::new(DbMessage::ALL[kind].0, &path, data).expect("within the limits");
            prop_assert_eq!(DbHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::array::uniform32(any::<u8>()), kind in any::<u8>()) {
            let mut header = [0; HEADER];
            header[..32].copy_from_slice(&bytes);
            header[40..72].copy_from_slice(&bytes);
            header[0] = kind;
            if let Ok(read) = DbHeader::decode(&header) {
                prop_assert!(read.path().len() < MAX_PATH && read.data <= MAX_DATA);
            }
        }
    }
}
