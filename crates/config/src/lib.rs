//! Configuration: TOML to checked, inherited, typed values, with a precise message for everything that is wrong.
//!
//! `options.rs` has a table row per option (name, range, default, unit, whether it is honoured); `reader.rs` and
//! `raw.rs` turn files into what they say; `check.rs` looks across them; `load.rs` inherits; `model.rs` is the result.
//! Files are the only thing touched, and only read. Secrets are in [`Secret`], which nothing prints.

mod check;
mod diagnostic;
mod load;
mod model;
pub mod options;
mod raw;
mod reader;
pub mod value;
pub mod words;

pub use diagnostic::{ConfigError, Diagnostic, Place, Severity};
pub use model::{
    Config, Connection, Device, Disk, Handler, LocalResource, MetaDisk, Node, Path, Peer, PeerVolume, Resource, Volume,
};
pub use options::{DiskOptions, GlobalOptions, NetOptions, PeerDeviceOptions, ResourceOptions, StartupOptions};
pub use words::Secret;
