//! Finding the peers: two TCP connections a peer, made by both sides at once (docs/wire.md "Establishing").
//!
//! This is the control plane's half of the network: it runs on tokio, knows addresses and first packets, and ends
//! where both sockets exist and were checked. From there the resource thread owns them (`stream.rs`); nothing here
//! touches a byte after the first packet.

pub mod address;
pub mod connector;
pub mod first_packet;
pub mod listener;

pub use connector::{ConnectorHandle, Established, PathConfig};
pub use listener::Listeners;
