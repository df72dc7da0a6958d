//! Generation identifiers from the metadata, as `drbdmeta get-gi` and `show-gi` give them.

use super::LocalVolume;
use crate::output::{Exit, Output};
use control::Response;
use metadata::{DeviceFlags, PeerFlags, Superblock};
use types::NodeId;

pub fn show(
    volume: &LocalVolume,
    superblock: &Superblock,
    peer: Option<&str>,
    explain: bool,
    output: &mut Output,
) -> Exit {
    let all: Vec<(NodeId, String)> = volume.resource.peers.iter().map(|p| (p.id, p.name.clone())).collect();
    let wanted: Vec<(NodeId, String)> = match peer {
        None => all,
        Some(name) => match volume.resource.peer(name) {
            Some(peer) => vec![(peer.id, peer.name.clone())],
            None => {
                let known: Vec<String> = all.into_iter().map(|(_, name)| name).collect();
                let message = format!("{}: no peer `{name}`; there are: {}", volume.name(), known.join(", "));
                let response = Response::Unknown { object: name.into(), message, next_step: None };
                output.failure(&response);
                return Exit(response.exit_code());
            }
        },
    };
    for (id, name) in wanted {
        let line = line(superblock, id);
        match (output.json, explain) {
            (true, _) => {
                let value = serde_json::json!({ "object": volume.name(), "peer": name, "gi": line });
                output.json_line(&value);
            }
            (false, false) => output.line(&line),
            (false, true) => output.text(&explained(&volume.name(), superblock, id, &name)),
        }
    }
    Exit::DONE
}

/// Device flags in the order of the line.
pub const DEVICE: [(DeviceFlags, &str); 7] = [
    (DeviceFlags::CONSISTENT, "consistent"),
    (DeviceFlags::WAS_UP_TO_DATE, "was up to date"),
    (DeviceFlags::PRIMARY_INDICATOR, "primary indicator"),
    (DeviceFlags::CRASHED_PRIMARY, "crashed primary"),
    (DeviceFlags::AL_CLEAN, "activity log clean"),
    (DeviceFlags::AL_DISABLED, "activity log disabled"),
    (DeviceFlags::LOST_QUORUM, "primary lost quorum"),
];

/// Flags of the peer, behind those of the device.
pub const PEER: [(PeerFlags, &str); 5] = [
    (PeerFlags::CONNECTED, "connected"),
    (PeerFlags::OUTDATED, "peer outdated"),
    (PeerFlags::FENCING, "fencing"),
    (PeerFlags::FULL_SYNC, "full sync needed"),
    (PeerFlags::DEVICE_SEEN, "peer's disk seen"),
];

/// One line, as scripts read it.
pub fn line(superblock: &Superblock, peer: NodeId) -> String {
    let record = superblock.peer(peer);
    let uuids = [superblock.current_uuid, record.bitmap_uuid, superblock.history[0], superblock.history[1]];
    let device = DEVICE.iter().map(|(flag, _)| superblock.flags.contains(*flag));
    let peer = PEER.iter().map(|(flag, _)| record.flags.contains(*flag));
    let digits: Vec<&str> = device.chain(peer).map(|on| if on { "1" } else { "0" }).collect();
    let uuids: Vec<String> = uuids.iter().map(ToString::to_string).collect();
    format!("{}:{}", uuids.join(":"), digits.join(":"))
}

/// For people.
pub fn explained(volume: &str, superblock: &Superblock, peer: NodeId, name: &str) -> String {
    let record = superblock.peer(peer);
    let mut text = format!("{volume} towards {name} (node-id {peer}), from the metadata\n");
    let mut row = |what: &str, value: String| text.push_str(&format!("  {what:<22}{value}\n"));
    row("current", superblock.current_uuid.to_string());
    row("bitmap", record.bitmap_uuid.to_string());
    let history: Vec<String> = superblock.history.iter().filter(|u| u.0 != 0).map(ToString::to_string).collect();
    row("history", if history.is_empty() { "none".into() } else { history.join(" ") });
    row("bitmap slot", record.slot.map_or("none".into(), |slot| slot.0.to_string()));
    let device = DEVICE.iter().map(|(flag, what)| (superblock.flags.contains(*flag), *what));
    let peer = PEER.iter().map(|(flag, what)| (record.flags.contains(*flag), *what));
    for (on, what) in device.chain(peer) {
        row(what, if on { "yes" } else { "no" }.into());
    }
    text
}
