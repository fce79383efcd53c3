//! Entries as lines: `[time] CATEGORY text head=HEX seq=N`. Pure.

use sha2::{Digest as _, Sha256};

use crate::proto::mac::{Digest, hex, unhex};

/// What every head is made with, so that no other digest is one.
const CONTEXT: &[u8] = b"qvm-remote log 1";
/// The category of the entry that begins a file or follows what was lost: it names the head before it.
pub(super) const LINK: &str = "CHAIN";

/// A place in the chain: the number of an entry, and the head that it made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChainPoint {
    /// The number of the entry; 0 before the first.
    pub(crate) number: u64,
    /// The head: covers the entry and all before it.
    pub(crate) head: Digest,
}

impl ChainPoint {
    /// The place behind the next entry, whose text (all before ` head=`) is this.
    pub(super) fn next(&self, text: &str) -> Self {
        let number = self.number + 1;
        let head = Sha256::new()
            .chain_update(CONTEXT)
            .chain_update(self.head)
            .chain_update(number.to_be_bytes())
            .chain_update(text)
            .finalize();
        Self { number, head: head.into() }
    }

    /// The line of the entry that made this point.
    pub(super) fn line(&self, text: &str) -> String {
        format!("{text} head={} seq={}\n", hex(&self.head), self.number)
    }
}

/// A line that was read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogLine<'a> {
    /// All before ` head=`.
    pub(super) text: &'a str,
    pub(super) number: u64,
    /// `None`: written before there was a chain.
    pub(super) head: Option<Digest>,
}

impl<'a> LogLine<'a> {
    /// Reads a line, without its end.
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let (text, number) = line.rsplit_once(" seq=")?;
        let number = number.parse().ok().filter(|n: &u64| *n > 0)?;
        match text.rsplit_once(" head=").map(|(text, head)| (text, unhex(head.as_bytes()))) {
            Some((text, Some(head))) => Some(Self { text, number, head: Some(head) }),
            _ => Some(Self { text, number, head: None }),
        }
    }

    /// The place in the chain behind this entry; one without a head begins a chain again.
    pub(super) fn point(&self) -> ChainPoint {
        ChainPoint { number: self.number, head: self.head.unwrap_or_default() }
    }

    /// The head before a [`LINK`].
    pub(super) fn before(&self) -> Option<ChainPoint> {
        let (_, rest) = self.text.split_once("] ")?;
        let head = rest.strip_prefix(LINK)?.strip_prefix(" previous=")?.split(' ').next()?;
        Some(ChainPoint { number: self.number - 1, head: unhex(head.as_bytes())? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_is_read_back_and_its_head_covers_all_of_it(
            head: [u8; 32], number in 0..u64::MAX / 2, text in "\\[[0-9T:-]{4,19}\\] [A-Z]{2,8} [ -~]{0,80}",
        ) {
            let point = ChainPoint { number, head };
            let next = point.next(&text);
            let line = next.line(&text);
            let read = LogLine::parse(line.trim_end_matches('\n')).expect("a line");
            prop_assert_eq!((read.text, read.point()), (text.as_str(), next));
            prop_assert_ne!(point.next(&format!("{text}x")).head, next.head);
            prop_assert_ne!(ChainPoint { number: number + 1, head }.next(&text).head, next.head);
        }

        #[test]
        fn any_line_is_read_without_a_panic(text: String) {
            if let Some(line) = LogLine::parse(&text) {
                let _ = (line.point(), line.before());
            }
        }
    }

    #[test]
    fn a_line_of_an_earlier_version_has_a_number_and_no_head() {
        let line = LogLine::parse("[2026-01-01T00:00:00] CMD vm=work cmd=x seq=7").expect("a line");
        assert_eq!((line.number, line.head, line.point().number), (7, None, 7));
        assert_eq!(LogLine::parse("[2026-01-01T00:00:00] CMD vm=work cmd=x"), None);
    }
}
