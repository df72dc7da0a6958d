//! What the end-to-end tests stand on: daemons built from this workspace, one network namespace per node, files as
//! disks, and the programs of other people that use them. Everything a test makes goes away with it, also when it
//! fails. Nothing here measures time; [`PATIENCE`] only ends what hangs.

pub mod cluster;
pub mod load;
pub mod mounted;
pub mod network;
pub mod node;
pub mod programs;
pub mod tools;

pub use cluster::{Cluster, Setup};
pub use load::Load;
pub use nbd_client::Client;
pub use node::{Answer, Node, State};

use std::time::{Duration, Instant};

/// Far above anything that works, also on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// An NBD client over TCP, as a program in that namespace.
pub fn tcp_client(namespace: &str, address: std::net::SocketAddr) -> std::io::Result<Client> {
    Client::over_tcp(network::inside(namespace, || std::net::TcpStream::connect_timeout(&address, PATIENCE))?)
}

/// Polls until `probe` gives a value. Panics with what `context` says when [`PATIENCE`] is over.
pub fn wait_for<T>(what: &str, context: impl Fn() -> String, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}\n{}", context());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes that depend on `seed` alone.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
