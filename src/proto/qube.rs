//! Names of qubes.

/// Whether this may be the name of a qube: a letter, then up to 30 letters, digits, `_` and `-`.
pub fn valid_vm(name: &str) -> bool {
    name.len() <= 31
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_qube_can_have_is_none() {
        for good in ["work", "sys-net", "Dev_1", &"x".repeat(31)] {
            assert!(valid_vm(good), "{good}");
        }
        for bad in ["", "1a", "-a", "../x", "a b", "a.b", "a;b", &"x".repeat(32)] {
            assert!(!valid_vm(bad), "{bad}");
        }
    }
}
