//! The names of a session, which change seldom: text, as JSON. Fields are added with a default and ignored by older
//! readers.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What a session is called, and whom it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    /// The fd name of its listener.
    pub name: String,
    pub listener: String,
    pub upstream: String,
    pub peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_netns: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// The unit that the session uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Of a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<SavedAsker>,
}

/// What a listener of our own is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerNames {
    /// What it listens on, as the configuration had it.
    pub listen: String,
    /// 0 TCP, 1 UNIX, 2 UDP.
    pub kind: u8,
    /// Device and inode of its namespace, when that is not the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<(u64, u64)>,
    /// Path of the socket file, and its device and inode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<(Vec<u8>, (u64, u64))>,
    /// The processes that served it, the last one first.
    pub before: Vec<u32>,
}

/// Who asked, and at which address of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedAsker {
    pub peer: SocketAddr,
    pub at: Option<(IpAddr, u32)>,
}
