//! Listeners: sockets that accept connections or receive datagrams, inherited from systemd or bound here.
//!
//! # Theory
//! A [`ServedListener`] is a socket with the route that its new sessions take. One task accepts on it (`accept`) or receives
//! (`datagram`); [`Accepting`] owns these tasks. Each peer is checked before its session begins; `refuse` says so when
//! it may not connect.
//!
//! Listeners of our own come from the configuration. A forward has one or two *legs*, or one for each port of a range; each
//! leg whose listening side is ours has a [`Post`], which binds (`bind`), serves, retries, and closes. [`Posts`] is the
//! set of them: it compares the posts with what the configuration wants, and follows the namespaces that come and go
//! (`namespaces`). [`Handed`] is a listener of ours between two processes.

mod accept;
mod accepting;
mod bind;
mod datagram;
mod handed;
mod holding;
mod listening;
mod namespaces;
mod post;
mod posts;
mod refuse;

pub use accepting::Accepting;
pub use bind::{Bound, SocketClaim, bind};
pub use handed::Handed;
pub use holding::RefusedListener;
pub use listening::ServedListener;
pub use post::{Post, Standing, Wanted, wanted};
pub use posts::Posts;
pub use refuse::{refusal, refuse};
