//! `dump-md`, `restore-md`, `verify-dump`.

use super::ask::confirmed;
use super::{Failure, Format, Line, found, open, remember};
use crate::offline::dump::{Restored, read_dump};
use crate::online::civil;
use crate::output::{Exit, Output};
use metadata::{AnyDump, DumpOptions};
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

pub fn dump_md(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let device = open(line)?;
    let found = found(line, &device)?;
    if !found.is_clean() {
        let text = "Found meta data is \"unclean\", please apply-al first";
        if !line.force {
            return Err(Failure::new(1, text));
        }
        output.remark(text);
    }
    let (superblock, layout) = found.as_v09();
    let bitmap = device.bitmap(&superblock, layout)?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let command = format!("{}> {}", host.trim(), line.typed);
    // As in replicactl's dump: only what has a member mask says so.
    let options = DumpOptions { time: &time(SystemTime::now()), command: &command, members: superblock.members != 0 };
    output.text(&found.dump(options, &bitmap));
    Ok(Exit::DONE)
}

/// `2026-11-29 15:11:57 +0000 [1795965117]`.
fn time(now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 [{seconds}]")
}

/// The file of the argument, or standard input.
fn read(line: &Line) -> Result<AnyDump, Failure> {
    let name = line.argument.as_deref().unwrap_or("standard input");
    let text = match &line.argument {
        Some(file) => read_dump(Path::new(file)),
        None => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
        }
    };
    let text = text.map_err(|e| Failure::new(20, format!("cannot read the dump {name}: {e}")))?;
    let dump = metadata::parse_any_dump(&text).map_err(|e| Failure::new(10, format!("{name}: {e}")))?;
    let format = match &dump {
        AnyDump::V08(_) => Format::V08,
        AnyDump::V09(_) => Format::V09,
    };
    if format != line.format {
        let text = format!("{name} is a dump of {}, and {} was asked for", format.name(), line.format.name());
        return Err(Failure::new(10, text));
    }
    Ok(dump)
}

pub fn verify_dump(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    read(line)?;
    output.line("input file parsed ok");
    Ok(Exit::DONE)
}

pub fn restore_md(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let device = open(line)?;
    let dump = read(line)?;
    let restored =
        Restored::of(&dump, line.placement, device.size_bytes()).map_err(|e| Failure::new(10, e.to_string()))?;
    if found(line, &device).is_ok() && !confirmed(line, "There is valid metadata here. Overwrite it with the dump?") {
        return Ok(Exit::FAILED);
    }
    device.write_all(&restored.superblock, &restored.layout, &restored.bitmap)?;
    remember(line, &device, restored.device_uuid, output);
    output.line("Successfully restored meta data");
    Ok(Exit::DONE)
}
