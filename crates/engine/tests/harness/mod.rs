//! What runs the scenarios: `script` reads files and commands, `cluster` moves engines, `config` configures them, `disk`
//! is their disk, `print` and `names` make stable lines of what they do.

pub mod cluster;
pub mod config;
pub mod disk;
pub mod names;
pub mod print;
pub mod script;
