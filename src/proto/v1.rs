//! The tokens of protocol v1 (the Python original): `HMAC(hex digits of the key as ASCII, id)`.
//!
//! A token covers the name of a request, not its content. Clients compute it for old daemons; dom0 accepts it only where
//! its owner said so.

use subtle::ConstantTimeEq as _;

use super::mac::{Digest, Key, code, hex, unhex};

impl Key {
    /// The original's token for a request: 64 lower-case digits.
    pub fn v1_token(&self, id: &str) -> String {
        hex(&code(self.to_hex().as_bytes(), &[id.as_bytes()]))
    }

    /// Whether `token` is the original's token for `id`. White space around it is allowed.
    pub fn v1_verify(&self, id: &str, token: &[u8]) -> bool {
        let wanted = code(self.to_hex().as_bytes(), &[id.as_bytes()]);
        unhex(token.trim_ascii()).is_some_and(|given: Digest| given.ct_eq(&wanted).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v1_token_is_what_openssl_dgst_says() {
        // printf %s e2e-single-001 | openssl dgst -sha256 -hmac 000102…1f
        let token = key().v1_token("e2e-single-001");
        assert_eq!(token, "8ab0194f07b8bce1237fd8e5ffda4827f12ec996417a4a0080fb9642e14554f3");
        assert!(key().v1_verify("e2e-single-001", format!(" {token}\n").as_bytes()));
        assert!(!key().v1_verify("e2e-single-002", token.as_bytes()));
        for bad in ["", "zz", &token[1..], "é"] {
            assert!(!key().v1_verify("e2e-single-001", bad.as_bytes()), "{bad}");
        }
    }

    fn key() -> Key {
        Key::new(std::array::from_fn(|i| u8::try_from(i).expect("below 32")))
    }
}
