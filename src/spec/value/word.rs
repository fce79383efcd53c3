//! Values that are one of a few words.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::raw::{Raw, Value};
use crate::spec::{error::Flaw, nearest::nearest};

/// Defines an enum whose values are written as one word each.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$word_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $type {
            /// The word that stands for it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Value for $type {
            fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
                let words = [$($word),*];
                let expected = format!("one of {}", words.join(", "));
                let text = raw.text(&expected)?;
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => {
                        let flaw = Flaw::new(0..text.len(), format!("\"{text}\" is not {expected}"));
                        Err(match nearest(text, words) { Some(word) => flaw.fix(word), None => flaw })
                    }
                }
            }

            fn texts(&self) -> Vec<Vec<u8>> {
                vec![self.as_str().as_bytes().to_vec()]
            }
        }
    };
}

words! {
    /// What becomes of a listener's sessions when the listener goes away.
    OnRemove {
        /// They live on (the default).
        Keep = "keep",
        /// They get the drain timeout to end.
        Drain = "drain",
    }
}

words! {
    /// Which PROXY protocol header the upstream is sent before the first byte (haproxy's proxy-protocol.txt).
    ProxyProtocol {
        /// The text form, of one line.
        V1 = "v1",
        /// The binary form.
        V2 = "v2",
    }
}

words! {
    /// How much is logged: everything up to this level.
    LogLevel {
        /// We are broken.
        Error = "error",
        /// The operator may want to act.
        Warn = "warn",
        /// Each session, once when it starts and once when it ends (the default).
        Info = "info",
        /// Steps between a connection and its end.
        Debug = "debug",
        /// The same as `debug` at present.
        Trace = "trace",
    }
}
