//! `/dev/ublkbN`: block devices of the kernel's ublk driver. Translates and reports; decides nothing.
//!
//! Two halves, because the driver has two interfaces. The control half (`Device`) adds, starts, stops, recovers and
//! removes devices through libublk; its commands block, so they run on a thread of their own, and their outcome comes
//! back as events behind an eventfd. The data half (`Queue`) has no thread and no ring: it makes io_uring entries for the
//! caller's ring and interprets their completions, so that one loop serves many devices, disks and sockets
//! (docs/decisions/0002-ublk-ring.md).
//!
//! Life of a device, as seen by the loop that owns it:
//!
//! ```text
//!  Device::create ──> Queue::new ──> Queue::start (fetch commands) ──> Device::start ──> event Started
//!     requests: Queue::on_cqe ─> Request ─> payload entries ─> Queue::finish ─> …
//!  Device::stop ──> keep serving ──> event Stopped, Queue::is_down ──> drop Queue ──> Device::delete ──> event Deleted
//! ```
//!
//! 512-byte sectors and errno stay inside `request.rs` and `params.rs`.

mod device;
mod error;
mod params;
mod queue;
mod request;

pub use device::{Deletion, Device, DeviceEvent, DeviceOptions, Start};
pub use error::UblkError;
pub use queue::{DataMode, Queue};
pub use request::Request;
