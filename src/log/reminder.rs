//! A message that would come with every connection, at most once a minute.

use std::time::{Duration, Instant};

/// The shortest time between two messages.
const PAUSE: Duration = Duration::from_secs(60);

/// Says when a message is due, and counts those that were left out.
#[derive(Debug, Default)]
pub struct Reminder {
    last: Option<Instant>,
    left_out: u64,
}

impl Reminder {
    /// Whether the message is due; if so, how many were left out since the last one.
    pub fn due(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_due_at_once_and_again_after_a_minute_with_the_number_left_out() {
        let mut reminder = Reminder::default();
        assert_eq!([reminder.due(), reminder.due(), reminder.due()], [Some(0), None, None]);
        reminder.last = Some(Instant::now().checked_sub(PAUSE).expect("the machine has run for a minute"));
        assert_eq!([reminder.due(), reminder.due()], [Some(2), None]);
        assert_eq!(reminder.left_out, 1);
    }
}
