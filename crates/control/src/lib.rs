//! What replicactl and replicad say to each other over `RUN_DIR/control.sock`: one JSON value per line, UTF-8.
//!
//! The client sends one [`Request`] and reads [`Reply`] lines until one that is final ([`Response::is_final`]):
//! an event stream without `now` has none and ends when either side closes. `version` is checked first; fields may
//! be added, never renamed. `status.rs` mirrors `drbdsetup status --json`, `event.rs` mirrors `events2`.
//! No I/O here, no policy.

mod event;
mod framing;
mod request;
mod response;
mod status;

pub use event::{EventRecord, Object, Verb};
pub use framing::{FrameError, LINE_BYTES_MAX, LineBuffer, decode_line, encode_line};
pub use request::{Command, OptionWords, Request, Target, TargetError};
pub use response::{Change, Reply, Response};
pub use status::{
    ConnectionReport, DeviceReport, Host, LatencyReport, OwnConnectionKeys, OwnDeviceKeys, OwnKeys, OwnPeerDeviceKeys,
    PathReport, PeerDeviceReport, ResourceReport, StatusReport, SyncDetails,
};

/// Of this protocol. A daemon refuses other versions with [`Response::Error`].
pub const VERSION: u32 = 1;

/// In the run directory.
pub const SOCKET_NAME: &str = "control.sock";
