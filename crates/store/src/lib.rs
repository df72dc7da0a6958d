//! Ranges of bytes to and from files and block devices. Depends on `types` only; knows nothing of replication.
//!
//! The daemon owns one io_uring per resource. Nothing here owns a ring or a thread: [`uring::prepare`] turns a
//! [`StoreOp`] into a submission entry, [`uring::interpret`] turns its result into what happens next.
//!
//! ```text
//! backing.rs   one open file or device: geometry, exclusive use      device.rs  what sysfs and procfs know about it
//! op.rs        the operations and the checks before each             uring.rs   operation <-> ring entry, result
//! buffers.rs   the bounded arena that payloads live in               mem.rs     the same semantics in memory, for tests
//! sync.rs      blocking helpers for the metadata tools               error.rs   kind, operation, range, path, source
//! ```
pub mod backing;
pub mod buffers;
mod device;
pub mod error;
pub mod mem;
pub mod op;
pub mod sync;
pub mod uring;

pub use backing::{Backing, Geometry, Kind, OpenOptions};
pub use buffers::{BufferPool, Span};
pub use error::{Operation, StoreError, StoreErrorKind};
pub use op::{Place, RegisteredSpan, StoreOp};
pub use uring::{Completion, Running};
