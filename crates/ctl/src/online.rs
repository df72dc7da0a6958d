//! Commands that the daemon carries out, and how its answers are shown.

use crate::args::{Cmd, Forced, Global, One, Wait};
use crate::client::{Client, ClientError};
use crate::output::{Exit, Output};
use crate::render::{self, Detail};
use control::{Command, EventRecord, Request, ResourceReport, Response, Target};
use std::time::{Duration, SystemTime};

/// No daemon, or it went away. Source: `drbdsetup` without the kernel module.
const EXIT_NO_DAEMON: u8 = 20;

/// The request a command line stands for; `None` if it is no command for the daemon.
pub fn command_of(cmd: &Cmd, global: &Global) -> Option<Command> {
    let at = |target: &Target| target.clone();
    Some(match cmd {
        Cmd::Up(One { target }) => Command::Up { target: at(target) },
        Cmd::Down(One { target }) => Command::Down { target: at(target) },
        Cmd::Adjust { target, dry_run } => Command::Adjust { target: at(target), dry_run: *dry_run },
        Cmd::NetOptions(changed) => changed.command(),
        Cmd::DiskOptions(changed) => changed.command(),
        Cmd::PeerDeviceOptions(changed) => changed.command(),
        Cmd::ResourceOptions(changed) => changed.command(),
        Cmd::Attach(One { target }) => Command::Attach { target: at(target) },
        Cmd::Detach(Forced { target, force }) => Command::Detach { target: at(target), force: *force },
        Cmd::Connect { target, discard_my_data } => {
            Command::Connect { target: at(target), discard_my_data: *discard_my_data }
        }
        Cmd::Disconnect(Forced { target, force }) => Command::Disconnect { target: at(target), force: *force },
        Cmd::Promote(Forced { target, force }) => Command::Promote { target: at(target), force: *force },
        Cmd::Demote(Forced { target, force }) => Command::Demote { target: at(target), force: *force },
        Cmd::Status { any, .. } => Command::Status { target: at(&any.target) },
        Cmd::Events { any, now, statistics, .. } => {
            Command::Events { target: at(&any.target), now: *now, statistics: *statistics }
        }
        // Answered from the status, so that all four always agree.
        Cmd::Role(One { target }) | Cmd::Cstate(One { target }) | Cmd::Dstate(One { target }) => {
            Command::Status { target: Target { peer: None, volume: None, ..at(target) } }
        }
        Cmd::WaitConnect(wait) => Command::WaitConnect { target: at(&wait.target), timeout_s: timeout(wait, global) },
        Cmd::WaitSync(wait) => Command::WaitSync { target: at(&wait.target), timeout_s: timeout(wait, global) },
        Cmd::Invalidate { target, from_peer } => {
            Command::Invalidate { target: at(target), from_peer: from_peer.clone() }
        }
        Cmd::InvalidateRemote(One { target }) => Command::InvalidateRemote { target: at(target) },
        Cmd::PauseSync(One { target }) => Command::PauseSync { target: at(target) },
        Cmd::ResumeSync(One { target }) => Command::ResumeSync { target: at(target) },
        Cmd::Verify { target, start, stop } => Command::Verify { target: at(target), start: *start, stop: *stop },
        Cmd::NewCurrentUuid { target, clear_bitmap } => {
            Command::NewCurrentUuid { target: at(target), clear_bitmap: *clear_bitmap }
        }
        Cmd::Outdate(One { target }) => Command::Outdate { target: at(target) },
        Cmd::ShowGi(One { target }) => Command::ShowGi { target: at(target) },
        Cmd::GetGi(One { target }) => Command::GetGi { target: at(target) },
        _ => return None,
    })
}

/// The command line, else the configuration if it can be read, else for ever.
fn timeout(wait: &Wait, global: &Global) -> Option<u64> {
    let configured = || {
        let config = config::Config::load(&global.config).ok()?;
        Some(config.resource(wait.target.resource.as_deref()?)?.startup.wfc_timeout.as_secs())
    };
    wait.timeout.or_else(configured).filter(|seconds| *seconds != 0)
}

/// Runs a command of the daemon. `Err`: the daemon could not be asked.
pub fn run(cmd: &Cmd, command: Command, global: &Global, output: &mut Output) -> Result<Exit, ClientError> {
    if let Cmd::Status { watch: true, .. } = cmd {
        return watch(cmd, &command, global, output);
    }
    let mut client = Client::ask(&global.run_dir, &Request::new(command))?;
    loop {
        let response = match client.next() {
            Err(ClientError::Ended) if matches!(cmd, Cmd::Events { now: false, .. }) => {
                return Ok(Exit(EXIT_NO_DAEMON));
            }
            other => other?,
        };
        let last = response.is_final();
        let exit = show(cmd, response, output);
        // A closed pipe: nobody reads the events any more.
        if last || output.is_closed() {
            return Ok(exit);
        }
    }
}

fn watch(cmd: &Cmd, command: &Command, global: &Global, output: &mut Output) -> Result<Exit, ClientError> {
    loop {
        let response = Client::ask(&global.run_dir, &Request::new(command.clone()))?.next()?;
        output.clear_screen();
        let exit = show(cmd, response, output);
        if exit != Exit::DONE || output.is_closed() {
            return Ok(exit);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

pub fn no_daemon(error: &ClientError, output: &mut Output) -> Exit {
    output.error(Exit(EXIT_NO_DAEMON), error.to_string())
}

fn show(cmd: &Cmd, response: Response, output: &mut Output) -> Exit {
    let exit = Exit(response.exit_code());
    match response {
        Response::Done if !output.json => {}
        Response::Done => output.json_line(&serde_json::json!({ "result": "done" })),
        Response::Changed { changes } if output.json => {
            output.json_line(&serde_json::json!({ "result": "done", "changes": changes }))
        }
        Response::Changed { changes } => changes.iter().for_each(|change| output.line(&render::change(change))),
        Response::Status { status } => return show_status(cmd, &status, output),
        Response::Text { lines } if output.json => output.json_line(&lines),
        Response::Text { lines } => lines.iter().for_each(|line| output.line(line)),
        Response::Event { event } => show_event(cmd, &event, output),
        Response::Progress { message } => output.remark(&message),
        failure => output.failure(&failure),
    }
    exit
}

fn show_status(cmd: &Cmd, status: &[ResourceReport], output: &mut Output) -> Exit {
    let lines: Vec<String> = match cmd {
        Cmd::Role(_) => status.iter().map(ResourceReport::role_line).collect(),
        Cmd::Cstate(One { target }) => status.iter().flat_map(|r| r.cstate_lines(target.peer.as_deref())).collect(),
        Cmd::Dstate(One { target }) => status.iter().flat_map(|r| r.dstate_lines(target.volume)).collect(),
        _ if output.json => {
            output.json_pretty(&status);
            return Exit::DONE;
        }
        Cmd::Status { verbose, statistics, .. } => {
            output.text(&render::status(status, Detail { verbose: *verbose, statistics: *statistics }));
            return Exit::DONE;
        }
        _ => Vec::new(),
    };
    if let (Cmd::Cstate(One { target }) | Cmd::Dstate(One { target }), true) = (cmd, lines.is_empty())
        && (target.peer.is_some() || target.volume.is_some())
    {
        let message = format!("{target}: no such connection or volume");
        let next_step = Some("`replicactl status` lists what there is".into());
        let unknown = Response::Unknown { object: target.to_string(), message, next_step };
        output.failure(&unknown);
        return Exit(unknown.exit_code());
    }
    match output.json {
        true => output.json_line(&lines),
        false => lines.iter().for_each(|line| output.line(line)),
    }
    Exit::DONE
}

fn show_event(cmd: &Cmd, event: &EventRecord, output: &mut Output) {
    let timestamps = matches!(cmd, Cmd::Events { timestamps: true, .. });
    let time = timestamps.then(|| utc(SystemTime::now()));
    if output.json {
        let keys: serde_json::Map<_, _> = event.keys.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        let mut value = serde_json::json!({ "event": event.verb, "object": event.object, "keys": keys });
        if let Some(time) = time {
            value["time"] = time.into();
        }
        output.json_line(&value);
    } else {
        output.line(&format!("{}{event}", time.map_or(String::new(), |t| t + " ")));
    }
}

/// `2026-11-20T18:56:58.467449+00:00`.
pub fn utc(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    let (year, month, day) = civil(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00")
}

/// Gregorian date of a day since 1970-01-01.
pub fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| utc(SystemTime::UNIX_EPOCH + Duration::from_micros(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000+00:00");
        assert_eq!(at(951_782_400_000_001), "2000-02-29T00:00:00.000001+00:00");
        assert_eq!(at(1_795_201_018_467_449), "2026-11-20T18:56:58.467449+00:00");
    }
}
