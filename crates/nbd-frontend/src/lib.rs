//! NBD server as a value: bytes in, bytes out, no socket. Depends on `types` only.
//!
//! ```text
//! socket ─ bytes ─> Session::receive ─> Event::Request ─> engine ─> Session::complete ─> head, then the payload ─> socket
//!          └─ payload of a write: straight into the driver's buffer, Session::payload_received
//! ```
//! Bulk data never passes through the session. `protocol.rs` has the numbers of the protocol and the only errno values
//! outside `ublk-frontend`; `negotiation.rs` the options; `session.rs` the requests and what a driver calls.
mod negotiation;
mod protocol;
mod session;

pub use negotiation::{Export, Exports};
pub use protocol::{Head, REQUEST_BYTES_MAX};
pub use session::{Answer, CloseReason, Event, REQUESTS_MAX, Request, RequestTag, Session, Want};
