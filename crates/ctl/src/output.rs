//! Where answers go: results to stdout, everything about failure to stderr. A closed pipe ends the output, not the
//! program with a panic; nor does a stderr that takes nothing.

use control::Response;
use serde_json::json;
use std::io::{ErrorKind, IsTerminal, Write};

/// What the program ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit(pub u8);

impl Exit {
    pub const DONE: Exit = Exit(0);
    pub const FAILED: Exit = Exit(1);
    /// Usage or configuration.
    pub const USAGE: Exit = Exit(2);

    /// The worse of both, for several targets.
    pub fn and(self, other: Exit) -> Exit {
        Exit(self.0.max(other.0))
    }
}

pub struct Output {
    pub json: bool,
    closed: bool,
    /// A part of the answer is lost: the disk is full, not the reader gone.
    truncated: bool,
}

impl Output {
    pub fn new(json: bool) -> Output {
        Output { json, closed: false, truncated: false }
    }
    /// Nobody reads stdout any more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
    /// `exit`, unless a part of the answer could not be written: half a dump must not look like a whole one.
    pub fn exit(&self, exit: Exit) -> Exit {
        if self.truncated { exit.and(Exit::FAILED) } else { exit }
    }
    /// Each call is flushed: events have readers that wait.
    pub fn text(&mut self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        if let Err(e) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            self.closed = true;
            if e.kind() != ErrorKind::BrokenPipe {
                self.truncated = true;
                to_stderr(&format!("replicactl: cannot write to stdout: {e}"));
            }
        }
    }
    pub fn line(&mut self, line: &str) {
        self.text(&format!("{line}\n"));
    }
    pub fn json_line(&mut self, value: &impl serde::Serialize) {
        let text = serde_json::to_string(value).expect("plain data with string keys");
        self.line(&text);
    }
    pub fn json_pretty(&mut self, value: &impl serde::Serialize) {
        let text = serde_json::to_string_pretty(value).expect("plain data with string keys");
        self.line(&text);
    }
    pub fn clear_screen(&mut self) {
        if std::io::stdout().is_terminal() {
            self.text("\x1b[2J\x1b[H");
        }
    }
    /// Not part of the answer.
    pub fn remark(&mut self, text: &str) {
        to_stderr(text);
    }
    /// A refusal or failure: for people in DRBD's form with the next step, with `--json` as one value.
    pub fn failure(&mut self, response: &Response) {
        self.failure_with(response, Exit(response.exit_code()));
    }

    fn failure_with(&mut self, response: &Response, exit: Exit) {
        if self.json {
            let mut value = serde_json::to_value(response).expect("plain data with string keys");
            value["exit-code"] = json!(exit.0);
            return to_stderr(&value.to_string());
        }
        let (text, next_step) = match response {
            Response::Refused { object, code, rule, state, message, next_step } => {
                (refusal(object, *code, rule, state, message), next_step.as_deref())
            }
            Response::Unknown { message, next_step, .. } | Response::Error { message, next_step } => {
                (message.clone(), next_step.as_deref())
            }
            Response::TimedOut { message } => (message.clone(), None),
            other => panic!("{other:?} is no failure"),
        };
        match next_step {
            Some(next_step) => to_stderr(&format!("{text}; {next_step}")),
            None => to_stderr(&text),
        }
    }
    /// A failure of this program's own commands; gives back what it ends with.
    pub fn error(&mut self, exit: Exit, message: String) -> Exit {
        self.failure_with(&Response::Error { message, next_step: None }, exit);
        exit
    }
}

fn to_stderr(line: &str) {
    // Where stderr is a closed pipe or a full disk there is nobody left to tell; the exit code still says it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The words `State change failed: (-N)` and `Failure: (N)` are what programs look for.
fn refusal(object: &str, code: i32, rule: &str, state: &str, message: &str) -> String {
    let head = match code {
        ..0 => format!("{object}: State change failed: ({code}) {message}"),
        0 => format!("{object}: refused: {message}"),
        1.. => format!("{object}: Failure: ({code}) {message}"),
    };
    match state.is_empty() {
        true => format!("{head} [{rule}]"),
        false => format!("{head} [{rule}: {state}]"),
    }
}
