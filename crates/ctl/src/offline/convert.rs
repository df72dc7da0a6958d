//! `create-md` on a disk that carries metadata of DRBD 8: with `--force` it becomes v09 in place, as with drbdmeta.
//! Generations, bits and the data stay, so the node that moves needs no full sync.

use super::LocalVolume;
use super::disk::{DiskError, MetaDevice};
use crate::output::{Exit, Output};
use control::Response;
use metadata::Layout;
use types::NodeId;

/// `None`: there is no such metadata.
pub fn create_over_v08(
    volume: &LocalVolume,
    device: &MetaDevice,
    max_peers: Option<u8>,
    force: bool,
    output: &mut Output,
) -> Result<Option<Exit>, DiskError> {
    let (v08, layout) = match device.superblock_v08() {
        Ok(Some((v08, _, layout))) => (v08, layout),
        // Damaged: nothing to convert. What is there is overwritten with --force, like anything else.
        Ok(None) | Err(DiskError::Format(_)) => return Ok(None),
        Err(e) => return Err(e),
    };
    let path = device.device().path().display().to_string();
    let refuse = |rule: &str, message: String, next: String, output: &mut Output| {
        let response = Response::Refused {
            object: volume.name(),
            code: 0,
            rule: rule.into(),
            state: String::new(),
            message,
            next_step: Some(next),
        };
        output.failure(&response);
        Ok(Some(Exit(response.exit_code())))
    };
    if v08.unclean() {
        let message = format!("{path} holds DRBD metadata v08 whose activity log is not applied");
        return refuse(
            "apply-al-first",
            message,
            format!("`replicactl apply-al {}`, then again", volume.name()),
            output,
        );
    }
    let peer = match peers(volume).as_slice() {
        [peer] if max_peers.is_none_or(|n| n == 1) => *peer,
        others => {
            let message = format!(
                "{path} holds DRBD metadata v08, which converts to one bitmap slot; {} were asked for",
                max_peers.map_or(others.len(), usize::from)
            );
            let next = "convert it with a configuration of the two nodes that share it, without --max-peers; for fresh \
                        metadata erase the old one first (`wipefs -a -t drbd`)";
            return refuse("one-slot", message, next.into(), output);
        }
    };
    if !force {
        let message = format!("{path} holds DRBD metadata v08");
        let next = "repeat with --force to convert it to v09 in place: data, generations and bits stay";
        return refuse("disk-not-empty", message, next.into(), output);
    }
    let converted = v08.convert(Some((volume.resource.node.id, peer)));
    device.write_applied(&converted.encode(), &layout, &[])?;
    Ok(Some(tell(volume, &path, &layout, output)))
}

fn peers(volume: &LocalVolume) -> Vec<NodeId> {
    let mine = volume.resource.node.id;
    volume.resource.node_names.keys().copied().filter(|id| *id != mine).collect()
}

fn tell(volume: &LocalVolume, path: &str, layout: &Layout, output: &mut Output) -> Exit {
    if output.json {
        output.json_line(&serde_json::json!({
            "result": "done", "object": volume.name(), "device": path, "max-peers": 1, "converted-from": "v08",
            "superblock": layout.superblock, "usable-bytes": layout.usable_bytes,
        }));
    } else {
        output.line(&format!(
            "{}: metadata v08 on {path} converted to v09 (superblock at byte {})",
            volume.name(),
            layout.superblock
        ));
    }
    Exit::DONE
}
