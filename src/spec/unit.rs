//! A systemd unit file, read as systemd reads it, and names as systemd takes them.

/// placeholder
pub fn repair(_name: &str) -> Option<String> {
    None
}
