//! The replicad daemon: one thread with one io_uring ring per resource, a control plane on tokio beside them.
//!
//! ```text
//! resource thread:  resource/ (loop, links)  ring  slots  payloads  stream/  disks  nbd  ublk  log
//! control plane:    node  commands  control  attach  devices  nbd_doors  links/  settings  report  events
//! ```
//! The two meet in `resource::Order` (in) and `resource::Wish`, `Snapshot` (out); no lock is shared.

pub mod attach;
pub mod commands;
pub mod control_socket;
pub mod devices;
mod digest;
pub mod disks;
pub mod events;
pub mod links;
mod log;
pub mod nbd;
mod nbd_doors;
pub mod node;
pub mod options;
pub mod payloads;
pub mod process;
pub mod report;
pub mod resource;
pub mod ring;
pub mod settings;
pub mod slots;
pub mod stream;
pub mod ublk;
