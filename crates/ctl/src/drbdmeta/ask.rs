//! Questions before anything is overwritten. Only the word yes, from a terminal, or `--force`.

use super::Line;
use std::io::{BufRead, IsTerminal, Write};

/// `question` says what is there and what would happen to it.
pub fn confirmed(line: &Line, question: &str) -> bool {
    let mut stderr = std::io::stderr().lock();
    // A stderr that takes nothing changes no answer.
    let mut say = |text: &str| _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    say(&format!("{question}\n"));
    if line.force {
        say("*** confirmation forced via --force option ***\n");
        return true;
    }
    // A pipe that says yes to everything is no operator.
    if !std::io::stdin().is_terminal() {
        say("stdin not a TTY, not waiting for confirmation\n");
        return false;
    }
    say("[need to type 'yes' to confirm] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).is_ok() && answer.trim_end() == "yes"
}
