//! What the daemon answers.

use crate::{EventRecord, StatusReport};
use serde::{Deserialize, Serialize};

/// One line from the daemon.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Reply {
    pub version: u32,
    #[serde(flatten)]
    pub response: Response,
}

impl Reply {
    pub fn new(response: Response) -> Reply {
        Reply { version: crate::VERSION, response }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    Done,
    /// Done; which options are others now, or, after a dry run, would be.
    Changed {
        changes: Vec<Change>,
    },
    /// A rule refused the command; nothing has changed.
    #[serde(rename_all = "kebab-case")]
    Refused {
        /// What the command was for: `r0`, `r0/1`, `bob:r0`.
        object: String,
        /// DRBD's number where it has one: negative for state changes, 101..=176 for refused configuration. 0: none.
        code: i32,
        /// DRBD's name of the rule, e.g. `SS_NO_UP_TO_DATE_DISK`, or ours.
        rule: String,
        /// The state that the rule met.
        state: String,
        /// One sentence for people.
        message: String,
        next_step: Option<String>,
    },
    /// The object does not exist.
    #[serde(rename_all = "kebab-case")]
    Unknown {
        object: String,
        message: String,
        next_step: Option<String>,
    },
    /// It could not be done: I/O, configuration, an unreadable request.
    #[serde(rename_all = "kebab-case")]
    Error {
        message: String,
        next_step: Option<String>,
    },
    /// A wait ended without what was waited for.
    TimedOut {
        message: String,
    },
    Status {
        status: StatusReport,
    },
    Text {
        lines: Vec<String>,
    },
    /// Not final.
    Event {
        event: EventRecord,
    },
    /// Not final: something to show while a command runs, on stderr.
    Progress {
        message: String,
    },
}

/// One option of a running resource that changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// `r0`, `r0/1`, `bob:r0`, `bob:r0/1`.
    pub object: String,
    pub option: String,
    /// Values as in the configuration; secrets are not shown.
    pub from: String,
    pub to: String,
    /// Why it has no effect yet, or never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Response {
    /// Nothing follows on this request.
    pub const fn is_final(&self) -> bool {
        !matches!(self, Response::Event { .. } | Response::Progress { .. })
    }

    /// What `replicactl` ends with. Source of the numbers: DRBD's tools, scripts act on them.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Response::Done | Response::Changed { .. } | Response::Status { .. } | Response::Text { .. } => 0,
            Response::Event { .. } | Response::Progress { .. } => 0,
            Response::Refused { code, .. } => exit_code_of_refusal(*code),
            Response::Unknown { .. } => 10,
            Response::TimedOut { .. } => 5,
            Response::Error { .. } => 1,
        }
    }
}

/// 17: no UpToDate data. 16: needs a local disk. 5: disk lower than Outdated. 11: any other state change.
/// 10: refused before a state change. 1: DRBD has no number for it.
const fn exit_code_of_refusal(code: i32) -> u8 {
    match code {
        -2 => 17,
        -4 => 16,
        -16 => 5,
        // DRBD turns "already StandAlone" into success; a daemon that reports it means it.
        i32::MIN..=-1 => 11,
        0 => 1,
        _ => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_that_scripts_know() {
        let refused = |code| {
            let text = String::new;
            Response::Refused { object: text(), code, rule: text(), state: text(), message: text(), next_step: None }
                .exit_code()
        };
        let table = [(-2, 17), (-1, 11), (-4, 16), (-12, 11), (-16, 5), (-25, 11), (158, 10), (119, 10), (0, 1)];
        for (code, exit) in table {
            assert_eq!(refused(code), exit, "code {code}");
        }
    }
}
