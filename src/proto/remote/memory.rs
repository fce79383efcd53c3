//! Memory that bytes are read into, and that is used again when nobody has a part of it any more.

use bytes::BytesMut;

use super::wire::MAX_LENGTH;

/// Bytes of one piece at least: four frames of the largest size, so that few frames begin in one piece and end in the next.
const PIECE: usize = 4 * (MAX_LENGTH + 4);
/// Pieces that are kept while parts of them are in use.
const KEPT: usize = 2;

/// Bytes that were read and not taken yet, with room behind them. Parts that were split off lie where they were read to;
/// new memory is asked for only while parts of all pieces are in use.
#[derive(Debug, Default)]
pub struct ReadMemory {
    bytes: BytesMut,
    /// Whether `bytes` lie in a piece: they do not before the first room.
    begun: bool,
    /// Pieces with parts in use; they hold nothing else.
    others: Vec<BytesMut>,
}

impl ReadMemory {
    /// The bytes that were not taken yet.
    pub fn bytes(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The same, with room for at least so many more behind them.
    pub fn room(&mut self, least: usize) -> &mut BytesMut {
        if !self.bytes.try_reclaim(least) {
            let wanted = self.bytes.len() + least;
            let free = self.others.iter_mut().position(|other| other.try_reclaim(wanted));
            let mut next = match free {
                Some(place) => self.others.swap_remove(place),
                None => BytesMut::with_capacity(wanted.max(PIECE)),
            };
            next.extend_from_slice(&self.bytes);
            let mut used = std::mem::replace(&mut self.bytes, next);
            used.clear();
            if std::mem::replace(&mut self.begun, true) && self.others.len() < KEPT {
                self.others.push(used);
            }
        }
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_whose_parts_are_gone_is_used_again() {
        let (mut memory, mut places) = (ReadMemory::default(), std::collections::BTreeSet::new());
        let mut parts = std::collections::VecDeque::new();
        for n in 0..1000u32 {
            let room = memory.room(PIECE / 2);
            room.extend_from_slice(&n.to_be_bytes().repeat(PIECE / 8));
            let part = room.split();
            places.insert(part.as_ptr() as usize);
            parts.push_back((n, part));
            if parts.len() > KEPT {
                let (n, part) = parts.pop_front().expect("it is not empty");
                assert_eq!(part, &n.to_be_bytes().repeat(PIECE / 8)[..]);
            }
        }
        assert!(places.len() <= 2 * (KEPT + 1), "{} places", places.len());
    }

    #[test]
    fn what_was_not_taken_stays_in_front_of_the_room() {
        let mut memory = ReadMemory::default();
        memory.room(0).extend_from_slice(&[7; PIECE]);
        let part = memory.bytes().split_to(PIECE - 3);
        let room = memory.room(PIECE);
        assert!(room.capacity() - room.len() >= PIECE);
        assert_eq!((&room[..], part.len()), (&[7; 3][..], PIECE - 3));
    }
}
