//! One line of `events`: `VERB OBJECT key:value ...`, as `drbdsetup events2` has it.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    Exists,
    Create,
    Change,
    Destroy,
    Call,
    Response,
}

impl Verb {
    pub const fn name(self) -> &'static str {
        match self {
            Verb::Exists => "exists",
            Verb::Create => "create",
            Verb::Change => "change",
            Verb::Destroy => "destroy",
            Verb::Call => "call",
            Verb::Response => "response",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    Resource,
    Device,
    Connection,
    PeerDevice,
    Path,
    Helper,
    /// After the last `exists` line: the initial state is complete. Has no keys.
    #[serde(rename = "-")]
    EndOfInitialState,
}

impl Object {
    pub const fn name(self) -> &'static str {
        match self {
            Object::Resource => "resource",
            Object::Device => "device",
            Object::Connection => "connection",
            Object::PeerDevice => "peer-device",
            Object::Path => "path",
            Object::Helper => "helper",
            Object::EndOfInitialState => "-",
        }
    }
}

/// Keys in DRBD's order; identifying keys first, then what is new. Neither keys nor values hold blanks or newlines
/// when they come from `new` and `with`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventRecord {
    pub verb: Verb,
    pub object: Object,
    #[serde(default)]
    pub keys: Vec<(String, String)>,
}

impl EventRecord {
    pub const fn new(verb: Verb, object: Object) -> EventRecord {
        EventRecord { verb, object, keys: Vec::new() }
    }
    /// The mark after the initial state.
    pub const fn end_of_initial_state() -> EventRecord {
        EventRecord::new(Verb::Exists, Object::EndOfInitialState)
    }
    /// Adds a key. A value with blanks would be read as two words: they become `_`.
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> EventRecord {
        let value: String = value.to_string().chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
        self.keys.push((key.into(), value));
        self
    }
    pub fn get(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// The line without its end.
impl fmt::Display for EventRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb.name(), self.object.name())?;
        for (key, value) in &self.keys {
            write!(f, " {key}:{value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_events2() {
        let event = EventRecord::new(Verb::Change, Object::PeerDevice)
            .with("name", "r0")
            .with("peer-node-id", 1)
            .with("conn-name", "bob")
            .with("volume", 0)
            .with("replication", "SyncSource")
            .with("done", "37.50");
        let line = "change peer-device name:r0 peer-node-id:1 conn-name:bob volume:0 replication:SyncSource done:37.50";
        assert_eq!(event.to_string(), line);
        assert_eq!(EventRecord::end_of_initial_state().to_string(), "exists -");
        assert_eq!(event.with("backing_dev", "/a b").get("backing_dev"), Some("/a_b"));
    }
}
