//! What a client may ask for.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// One line from the client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    #[serde(flatten)]
    pub command: Command,
}

impl Request {
    pub fn new(command: Command) -> Request {
        Request { version: crate::VERSION, command }
    }
}

/// Names are DRBD's. Every command has a target; which parts it may have is said per command: commands on whole
/// resources refuse a volume, commands on disks a peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Resource or all. Attaches, connects; done when the disks are attached.
    Up {
        target: Target,
    },
    /// Resource or all. Done also if it was not up.
    Down {
        target: Target,
    },
    /// Resource or all: re-read the configuration and make the running state match.
    #[serde(rename_all = "kebab-case")]
    Adjust {
        target: Target,
        /// Only tell what would change.
        #[serde(default)]
        dry_run: bool,
    },
    /// Peer; without one all of the resource. Until the next `adjust`; options as on the command line.
    NetOptions {
        target: Target,
        options: OptionWords,
    },
    /// Volume; without one all of the resource.
    DiskOptions {
        target: Target,
        options: OptionWords,
    },
    /// Peer and volume; without them all of the resource.
    PeerDeviceOptions {
        target: Target,
        options: OptionWords,
    },
    /// Resource.
    ResourceOptions {
        target: Target,
        options: OptionWords,
    },
    /// Volume; without one all of the resource.
    Attach {
        target: Target,
    },
    Detach {
        target: Target,
        force: bool,
    },
    /// Peer; without one all of the resource.
    #[serde(rename_all = "kebab-case")]
    Connect {
        target: Target,
        discard_my_data: bool,
    },
    Disconnect {
        target: Target,
        force: bool,
    },
    /// Resource.
    Promote {
        target: Target,
        force: bool,
    },
    Demote {
        target: Target,
        force: bool,
    },
    /// Resource or all. Answer: `Status`.
    Status {
        target: Target,
    },
    /// Resource or all. Answer: `Event` lines; with `now`, `Done` after the present state.
    Events {
        target: Target,
        now: bool,
        statistics: bool,
    },
    /// Answers: `Text`, the lines that DRBD's tools print.
    Role {
        target: Target,
    },
    Cstate {
        target: Target,
    },
    Dstate {
        target: Target,
    },
    /// `timeout_s`: `None` waits for ever. Answer: `Done`, or `TimedOut`.
    WaitConnect {
        target: Target,
        timeout_s: Option<u64>,
    },
    WaitSync {
        target: Target,
        timeout_s: Option<u64>,
    },
    /// Volume; data comes from `from_peer`, or from whom the engine chooses.
    #[serde(rename_all = "kebab-case")]
    Invalidate {
        target: Target,
        from_peer: Option<String>,
    },
    /// Peer and volume.
    InvalidateRemote {
        target: Target,
    },
    PauseSync {
        target: Target,
    },
    ResumeSync {
        target: Target,
    },
    /// Peer and volume; without them all of the resource. Sectors; `start` `None`: where the last one was interrupted;
    /// `stop` `None`: to the end. Done when it runs.
    Verify {
        target: Target,
        #[serde(default)]
        start: Option<u64>,
        #[serde(default)]
        stop: Option<u64>,
    },
    /// Volume.
    #[serde(rename_all = "kebab-case")]
    NewCurrentUuid {
        target: Target,
        clear_bitmap: bool,
    },
    Outdate {
        target: Target,
    },
    /// Peer and volume. Answer: `Text`, drbdmeta's line of identifiers and flags, one per match.
    GetGi {
        target: Target,
    },
    /// Answer: `Text`, the same explained.
    ShowGi {
        target: Target,
    },
}

impl Command {
    /// As on the command line.
    pub const fn name(&self) -> &'static str {
        match self {
            Command::Up { .. } => "up",
            Command::Down { .. } => "down",
            Command::Adjust { .. } => "adjust",
            Command::NetOptions { .. } => "net-options",
            Command::DiskOptions { .. } => "disk-options",
            Command::PeerDeviceOptions { .. } => "peer-device-options",
            Command::ResourceOptions { .. } => "resource-options",
            Command::Attach { .. } => "attach",
            Command::Detach { .. } => "detach",
            Command::Connect { .. } => "connect",
            Command::Disconnect { .. } => "disconnect",
            Command::Promote { .. } => "promote",
            Command::Demote { .. } => "demote",
            Command::Status { .. } => "status",
            Command::Events { .. } => "events",
            Command::Role { .. } => "role",
            Command::Cstate { .. } => "cstate",
            Command::Dstate { .. } => "dstate",
            Command::WaitConnect { .. } => "wait-connect",
            Command::WaitSync { .. } => "wait-sync",
            Command::Invalidate { .. } => "invalidate",
            Command::InvalidateRemote { .. } => "invalidate-remote",
            Command::PauseSync { .. } => "pause-sync",
            Command::ResumeSync { .. } => "resume-sync",
            Command::Verify { .. } => "verify",
            Command::NewCurrentUuid { .. } => "new-current-uuid",
            Command::Outdate { .. } => "outdate",
            Command::GetGi { .. } => "get-gi",
            Command::ShowGi { .. } => "show-gi",
        }
    }

    pub const fn target(&self) -> &Target {
        match self {
            Command::Up { target }
            | Command::Down { target }
            | Command::Adjust { target, .. }
            | Command::NetOptions { target, .. }
            | Command::DiskOptions { target, .. }
            | Command::PeerDeviceOptions { target, .. }
            | Command::ResourceOptions { target, .. }
            | Command::Attach { target }
            | Command::Detach { target, .. }
            | Command::Connect { target, .. }
            | Command::Disconnect { target, .. }
            | Command::Promote { target, .. }
            | Command::Demote { target, .. }
            | Command::Status { target }
            | Command::Events { target, .. }
            | Command::Role { target }
            | Command::Cstate { target }
            | Command::Dstate { target }
            | Command::WaitConnect { target, .. }
            | Command::WaitSync { target, .. }
            | Command::Invalidate { target, .. }
            | Command::InvalidateRemote { target }
            | Command::PauseSync { target }
            | Command::ResumeSync { target }
            | Command::Verify { target, .. }
            | Command::NewCurrentUuid { target, .. }
            | Command::Outdate { target }
            | Command::GetGi { target }
            | Command::ShowGi { target } => target,
        }
    }

    /// The part of its target that this command has no meaning for, if it has one: `down r0/1` must not take all of r0
    /// down, nor `invalidate bob:r0` throw away what is here. Questions take what they understand.
    pub fn part_too_much(&self) -> Option<&'static str> {
        let target = self.target();
        let (for_peers, for_volumes) = match self {
            Command::Up { .. }
            | Command::Down { .. }
            | Command::Adjust { .. }
            | Command::Promote { .. }
            | Command::Demote { .. }
            | Command::ResourceOptions { .. } => (false, false),
            Command::Connect { .. } | Command::Disconnect { .. } | Command::NetOptions { .. } => (true, false),
            Command::Attach { .. }
            | Command::DiskOptions { .. }
            | Command::Detach { .. }
            | Command::Invalidate { .. }
            | Command::NewCurrentUuid { .. }
            | Command::Outdate { .. } => (false, true),
            _ => (true, true),
        };
        match (&target.peer, target.volume) {
            (Some(_), _) if !for_peers => Some("peer"),
            (_, Some(_)) if !for_volumes => Some("volume"),
            _ => None,
        }
    }

    /// Needs no more than the right to read; all else is for root.
    pub const fn is_question(&self) -> bool {
        matches!(
            self,
            Command::Status { .. }
                | Command::Events { .. }
                | Command::Role { .. }
                | Command::Cstate { .. }
                | Command::Dstate { .. }
                | Command::WaitConnect { .. }
                | Command::WaitSync { .. }
                | Command::GetGi { .. }
                | Command::ShowGi { .. }
        )
    }
}

/// By name; values as on the command line.
pub type OptionWords = BTreeMap<String, String>;

/// `all`, or `[PEER:]RESOURCE[/VOLUME]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Target {
    /// `None`: all resources of this node.
    pub resource: Option<String>,
    /// Host name of the peer; `None`: all peers.
    #[serde(default)]
    pub peer: Option<String>,
    /// `None`: all volumes.
    #[serde(default)]
    pub volume: Option<u16>,
}

impl Target {
    pub const ALL: Target = Target { resource: None, peer: None, volume: None };

    pub fn resource(name: &str) -> Target {
        Target { resource: Some(name.into()), peer: None, volume: None }
    }
}

/// Why a text is no target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetError {
    pub text: String,
    pub cause: &'static str,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}; write RESOURCE[/VOLUME], PEER:RESOURCE[/VOLUME] or all", self.text, self.cause)
    }
}

impl std::error::Error for TargetError {}

impl FromStr for Target {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Target, TargetError> {
        let wrong = |cause| TargetError { text: text.into(), cause };
        if text == "all" {
            return Ok(Target::ALL);
        }
        let (peer, rest) = match text.split_once(':') {
            Some((peer, rest)) => (Some(peer.to_string()), rest),
            None => (None, text),
        };
        let (resource, volume) = match rest.split_once('/') {
            Some((resource, volume)) => (resource, Some(volume)),
            None => (rest, None),
        };
        if resource.is_empty() || peer.as_deref() == Some("") {
            return Err(wrong("has an empty part"));
        }
        if resource.contains(':') {
            return Err(wrong("has two colons"));
        }
        let volume = match volume {
            None => None,
            Some(number) => match number.parse::<u16>() {
                Ok(n) if n < u16::MAX => Some(n),
                _ => return Err(wrong("has no volume number of 0 to 65534 after the slash")),
            },
        };
        Ok(Target { resource: Some(resource.into()), peer, volume })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(resource) = &self.resource else { return f.write_str("all") };
        if let Some(peer) = &self.peer {
            write!(f, "{peer}:")?;
        }
        f.write_str(resource)?;
        match self.volume {
            Some(volume) => write!(f, "/{volume}"),
            None => Ok(()),
        }
    }
}
