//! Options of a running resource: what differs from the configuration, and how it is changed.
//!
//! `adjust` compares what the resource runs with to the configuration, DRBD's `...-options` commands change single
//! values until the next `adjust`. Either way the engine gets all of it in one command, which changes everything or
//! nothing; then the connectors get theirs, and from there on the resource counts as configured so.

use config::value::{Difference, Support};
use config::{Config, LocalResource};
use control::{Change, Command as OwnCommand, OptionWords, Response, Target};
use engine::{Command, OptionChange, ResourceConfig, VolumeConfig, VolumeOptions};
use types::{ConnectionState, DiskState};

use crate::commands::{Failure, gone, peers, run, volumes};
use crate::node::{Node, Served};
use crate::resource::{Order, Snapshot};
use crate::settings;

const NEXT_ATTACH: &str = "takes effect at the next attach";
const NEXT_CONNECT: &str = "takes effect at the next connect";

/// What the configuration has for this resource now.
pub async fn configured(node: &Node, served: &Served) -> Result<LocalResource, Failure> {
    let path = node.config_path.clone();
    let loaded = tokio::task::spawn_blocking(move || Config::load(&path)).await.expect("loading does not panic");
    let error = |message: String, next: &str| Box::new(Response::Error { message, next_step: Some(next.into()) });
    let config = loaded.map_err(|e| error(e.to_string(), "correct the configuration; nothing was changed"))?;
    let name = served.name();
    let fresh = config.resource(name).and_then(|resource| resource.for_node(&node.name)).ok_or_else(|| {
        let message = format!("{name}: the configuration does not have it for node {} any more", node.name);
        error(message, "`replicactl down` it and restart replicad, or put it back; nothing was changed")
    })?;
    let parts = structure(&served.local(), &fresh);
    if !parts.is_empty() {
        let message = format!("{name}: the configuration changes more than options: {}", parts.join(", "));
        return Err(error(message, "restart replicad to use it; nothing was changed"));
    }
    Ok(fresh)
}

/// What is different and no option of something that both have.
fn structure(running: &LocalResource, fresh: &LocalResource) -> Vec<String> {
    let mut parts = Vec::new();
    let mut differs = |what: String, is: bool| parts.extend(is.then_some(what));
    differs(format!("node-id of {}", running.node.name), running.node.id != fresh.node.id);
    for peer in &running.peers {
        let Some(same) = fresh.peers.iter().find(|p| p.id == peer.id && p.name == peer.name) else {
            differs(format!("no connection to {}", peer.name), true);
            continue;
        };
        differs(format!("address of {}", peer.name), peer.paths != same.paths);
        for (number, volume) in &peer.volumes {
            let has_disk = same.volumes.get(number).map(|v| v.has_disk);
            differs(format!("disk of {}, volume {number}", peer.name), has_disk.is_some_and(|h| h != volume.has_disk));
        }
    }
    let is_new = |p: &&config::Peer| !running.peers.iter().any(|r| r.id == p.id && r.name == p.name);
    fresh.peers.iter().filter(is_new).for_each(|peer| differs(format!("a connection to {}", peer.name), true));
    for volume in running.volumes() {
        let Some(same) = fresh.volume(volume.number) else {
            differs(format!("no volume {}", volume.number), true);
            continue;
        };
        let number = volume.number;
        differs(format!("device of volume {number}"), volume.device != same.device);
        differs(format!("disk of volume {number}"), volume.disk != same.disk);
        differs(format!("meta-disk of volume {number}"), volume.meta_disk != same.meta_disk);
        differs(format!("size of volume {number}"), volume.options.size != same.options.size);
    }
    let is_new = |v: &&config::Volume| running.volume(v.number).is_none();
    fresh.volumes().iter().filter(is_new).for_each(|volume| differs(format!("volume {}", volume.number), true));
    parts
}

/// As it runs: the peers may have told another protocol than this node was configured for.
fn as_it_runs(served: &Served, snapshot: &Snapshot) -> LocalResource {
    let mut running = LocalResource::clone(&served.local());
    for peer in &mut running.peers {
        if let Some(status) = snapshot.status.peers.get(&peer.id) {
            peer.net.protocol = settings::word_of(status.protocol);
        }
    }
    running
}

/// Brings the resource to what the configuration says. `dry_run`: only tells.
pub async fn adjust(served: &Served, fresh: LocalResource, dry_run: bool) -> Result<Vec<Change>, Failure> {
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    let running = as_it_runs(served, &snapshot);
    change(served, &snapshot, &running, fresh, dry_run).await
}

/// `drbdsetup ...-options`: what is not given stays as it is.
pub async fn set(served: &Served, command: &OwnCommand) -> Result<Vec<Change>, Failure> {
    let target = command.target();
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    let running = as_it_runs(served, &snapshot);
    let mut fresh = running.clone();
    let wrong = |wrong| bad_option(target, wrong);
    let named: Vec<_> = peers(served, target)?.into_iter().map(|peer| peer.id).collect();
    let peers = fresh.peers.iter_mut().filter(|peer| named.contains(&peer.id));
    let numbers = volumes(served, target)?;
    match command {
        OwnCommand::ResourceOptions { options, .. } => {
            fresh.options = fresh.options.with(given(options)).map_err(wrong)?;
        }
        OwnCommand::DiskOptions { options, .. } => {
            if options.contains_key("size") {
                let cause = "size changes with a resize only, which this version does not have";
                return Err(refusal(target, "size", cause, "leave it out"));
            }
            for volume in fresh.node.volumes.iter_mut().filter(|v| numbers.contains(&v.number)) {
                volume.options = volume.options.with(given(options)).map_err(wrong)?;
            }
        }
        OwnCommand::NetOptions { options, .. } => {
            for peer in peers {
                peer.net = peer.net.with(given(options)).map_err(wrong)?;
                if let Some((cause, help)) = peer.net.contradictions().into_iter().next() {
                    return Err(refusal(target, "options", &cause, help));
                }
            }
        }
        OwnCommand::PeerDeviceOptions { options, .. } => {
            for volume in peers.flat_map(|peer| &mut peer.volumes).filter(|(number, _)| numbers.contains(number)) {
                volume.1.options = volume.1.options.with(given(options)).map_err(wrong)?;
            }
        }
        other => unreachable!("{} changes no option", other.name()),
    }
    change(served, &snapshot, &running, fresh, false).await
}

fn given(options: &OptionWords) -> impl Iterator<Item = (&str, &str)> {
    options.iter().map(|(name, text)| (name.as_str(), text.as_str()))
}

fn bad_option(target: &Target, (name, bad): (String, config::value::BadValue)) -> Failure {
    refusal(target, &name, &format!("{name}: the value {}", bad.cause), bad.help.as_deref().unwrap_or_default())
}

fn refusal(target: &Target, option: &str, cause: &str, help: &str) -> Failure {
    Box::new(Response::Refused {
        object: target.to_string(),
        code: 0,
        rule: option.into(),
        state: String::new(),
        message: cause.into(),
        next_step: Some(format!("nothing was changed; {help}")),
    })
}

async fn change(
    served: &Served,
    snapshot: &Snapshot,
    running: &LocalResource,
    fresh: LocalResource,
    dry_run: bool,
) -> Result<Vec<Change>, Failure> {
    let changes = differences(snapshot, running, &fresh);
    if dry_run {
        return Ok(changes);
    }
    let order = engine_change(&settings::resource(running), &settings::resource(&fresh));
    if let Some(change) = order {
        run(served, served.name().into(), Command::ChangeOptions { change: Box::new(change) }).await?;
    }
    let before = settings::paths(running);
    let paths = settings::paths(&fresh).into_iter().filter(|(peer, path)| before.get(peer) != Some(path));
    served.handle.send(Order::Paths(paths.collect())).map_err(gone)?;
    served.set_local(fresh);
    Ok(changes)
}

/// `None`: the engine has it all already.
fn engine_change(running: &ResourceConfig, fresh: &ResourceConfig) -> Option<OptionChange> {
    let of = |v: &VolumeConfig| VolumeOptions { al_extents: v.al_extents, on_io_error: v.on_io_error };
    let volumes = fresh.volumes.iter().map(|(number, volume)| (*number, of(volume)));
    let peers = fresh.peers.iter().filter(|(id, peer)| running.peers.get(id) != Some(peer));
    let change = OptionChange {
        resource: (running.options() != fresh.options()).then(|| fresh.options()),
        volumes: volumes.filter(|(number, new)| running.volumes.get(number).map(of) != Some(*new)).collect(),
        peers: peers.map(|(id, peer)| (*id, peer.clone())).collect(),
    };
    let empty = change.resource.is_none() && change.volumes.is_empty() && change.peers.is_empty();
    (!empty).then_some(change)
}

fn differences(snapshot: &Snapshot, running: &LocalResource, fresh: &LocalResource) -> Vec<Change> {
    let name = &running.name;
    let mut changes: Vec<Change> = Vec::new();
    let mut add = |object: String, differences: Vec<Difference>, later: &dyn Fn(&str) -> Option<&'static str>| {
        changes.extend(differences.into_iter().map(|difference| Change {
            object: object.clone(),
            note: note(&difference, later(difference.name)),
            option: difference.name.into(),
            from: difference.from,
            to: difference.to,
        }));
    };
    add(name.clone(), running.options.differences(&fresh.options), &|_| None);
    for volume in running.volumes() {
        let Some(new) = fresh.volume(volume.number) else { continue };
        let status = snapshot.status.volumes.get(&volume.number);
        let attached = status.is_some_and(|v| v.disk != DiskState::Diskless);
        let later = |option: &str| (attached && option == "al-extents").then_some(NEXT_ATTACH);
        add(format!("{name}/{}", volume.number), volume.options.differences(&new.options), &later);
    }
    for peer in &running.peers {
        let Some(new) = fresh.peers.iter().find(|p| p.id == peer.id) else { continue };
        let status = snapshot.status.peers.get(&peer.id);
        let connecting = status.is_some_and(|p| p.connection != ConnectionState::StandAlone);
        let later = |option: &str| (connecting && FOR_A_CONNECT.contains(&option)).then_some(NEXT_CONNECT);
        add(format!("{}:{name}", peer.name), peer.net.differences(&new.net), &later);
        for (number, volume) in &peer.volumes {
            let Some(new) = new.volumes.get(number) else { continue };
            add(format!("{}:{name}/{number}", peer.name), volume.options.differences(&new.options), &|_| None);
        }
    }
    changes
}

/// Looked at when a connection is made.
const FOR_A_CONNECT: [&str; 6] =
    ["cram-hmac-alg", "shared-secret", "connect-int", "sndbuf-size", "rcvbuf-size", "socket-check-timeout"];

fn note(difference: &Difference, later: Option<&'static str>) -> Option<String> {
    match difference.support {
        Support::NotYet => Some("has no effect in this version".into()),
        Support::Except(words) if words.contains(&difference.to.as_str()) => {
            Some("has no effect in this version".into())
        }
        Support::NoEffect(why) => Some(format!("has no effect: {why}")),
        Support::Effective | Support::Except(_) => later.map(Into::into),
    }
}

/// For log lines and answers of programs that show no changes.
pub fn sentence(change: &Change) -> String {
    let Change { object, option, from, to, note } = change;
    let note = note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
    format!("{object}: {option}: {from} -> {to}{note}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Protocol;

    #[test]
    fn protocols_have_the_words_of_the_configuration() {
        for (protocol, word) in [(Protocol::A, "A"), (Protocol::B, "B"), (Protocol::C, "C")] {
            assert_eq!(settings::word_of(protocol).word(), word);
        }
    }
}
