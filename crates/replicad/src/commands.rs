//! What the operator's commands mean: each is one or more of the engine's, on one or more resources.
//!
//! A refusal of the engine goes out with its code, rule, state and next step. Commands on several resources run side
//! by side; what fails is told, the first failure is the answer.

use std::sync::Arc;
use std::time::Duration;

use config::{Disk, Peer};
use control::{Change, Command, Response, Target};
use engine::{Command as EngineCommand, Refusal};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use types::range::SECTOR_BYTES;
use types::{ConnectionState, DiskState, NodeId, Role, VolumeNumber};

use crate::attach::{self, AttachRefusal};
use crate::node::{Node, Served};
use crate::options;
use crate::report;
use crate::resource::{Gone, Snapshot};

/// How long a device may take to appear after a promotion: the kernel makes it, udev may be busy.
const DEVICE_PATIENCE: Duration = Duration::from_secs(20);
const DEVICE_POLL: Duration = Duration::from_millis(5);

/// The command failed: what to tell. Boxed, since it is as large as a whole answer.
pub type Failure = Box<Response>;
type Outcome = Result<(), Failure>;

/// Everything but `events`, which is a stream (`control_socket.rs`). `progress`: lines to show meanwhile.
pub async fn execute(node: &Arc<Node>, command: Command, progress: &mpsc::Sender<Response>) -> Response {
    if let Some(part) = command.part_too_much() {
        return too_much(&command, part);
    }
    let result = match &command {
        Command::Status { target } => status(node, target).await,
        Command::Role { target } => lines(node, target, |report, _| vec![report.role_line()]).await,
        Command::Cstate { target } => lines(node, target, |report, t| report.cstate_lines(t.peer.as_deref())).await,
        Command::Dstate { target } => lines(node, target, |report, t| report.dstate_lines(t.volume)).await,
        Command::GetGi { target } => identifiers(node, target, false).await,
        Command::ShowGi { target } => identifiers(node, target, true).await,
        Command::Events { .. } => unreachable!("the control socket streams events"),
        _ => on_each(node, command, progress).await,
    };
    result.unwrap_or_else(|failure| *failure)
}

// ------------------------------------------------------------------------------------------------------ choosing

pub fn chosen(node: &Node, target: &Target) -> Result<Vec<Arc<Served>>, Failure> {
    match &target.resource {
        None => Ok(node.resources.values().cloned().collect()),
        Some(name) => match node.resources.get(name) {
            Some(served) => Ok(vec![served.clone()]),
            None => Err(unknown(target, format!("{name}: no such resource on node {}", node.name))),
        },
    }
}

fn unknown(target: &Target, message: String) -> Failure {
    let next_step = Some("`replicactl status` lists what there is".into());
    Box::new(Response::Unknown { object: target.to_string(), message, next_step })
}

pub fn volumes(served: &Served, target: &Target) -> Result<Vec<VolumeNumber>, Failure> {
    let local = served.local();
    let all = local.volumes().iter().map(|volume| volume.number);
    let chosen: Vec<VolumeNumber> = all.filter(|number| target.volume.is_none_or(|v| v == number.get())).collect();
    match target.volume {
        Some(volume) if chosen.is_empty() => {
            Err(unknown(target, format!("resource {} has no volume {volume}", served.name())))
        }
        _ => Ok(chosen),
    }
}

pub fn peers(served: &Served, target: &Target) -> Result<Vec<Peer>, Failure> {
    match &target.peer {
        None => Ok(served.local().peers.clone()),
        Some(name) => match served.local().peer(name) {
            Some(peer) => Ok(vec![peer.clone()]),
            None => Err(unknown(target, format!("resource {} has no connection to {name}", served.name()))),
        },
    }
}

// ------------------------------------------------------------------------------------------------------ failing

pub fn gone(_: Gone) -> Failure {
    Box::new(Response::Error { message: "the resource is shutting down".into(), next_step: None })
}

fn too_much(command: &Command, part: &str) -> Response {
    Response::Refused {
        object: command.target().to_string(),
        code: 0,
        rule: "target".into(),
        state: String::new(),
        message: format!("{} is not for one {part}", command.name()),
        next_step: Some(format!("nothing was changed; name the target without the {part}")),
    }
}

pub fn refused(object: String, refusal: Refusal) -> Failure {
    Box::new(Response::Refused {
        object,
        code: refusal.code,
        rule: refusal.rule.into(),
        message: message_of(refusal.code, refusal.rule),
        state: refusal.state,
        next_step: (!refusal.next_step.is_empty()).then(|| refusal.next_step.into()),
    })
}

/// DRBD's sentences that programs look for (docs/cli.md "State change results"), otherwise the rule's name.
fn message_of(code: i32, rule: &str) -> String {
    let known = match code {
        -1 => "more than one Primary is not allowed",
        -2 => "Need access to UpToDate data",
        -4 => "a resync needs a local disk",
        -8 => "a resync or verify already runs",
        -10 => "the peer refused",
        -11 => "there is no disk",
        -12 => "Device is held open by someone",
        -5 => "a verify needs a disk on the peer",
        -14 => "Need a verify algorithm to start online verify",
        -15 => "needs a connection",
        -16 => "the disk is worse than Outdated",
        -18 => "in transition, try again",
        -19 => "Concurrent state changes detected and aborted",
        -23 => "timed out",
        _ => rule,
    };
    known.into()
}

fn refused_attach(object: String, refusal: AttachRefusal) -> Failure {
    Box::new(Response::Refused {
        object,
        code: refusal.code,
        rule: refusal.rule.into(),
        state: String::new(),
        message: refusal.message,
        next_step: Some(refusal.next_step),
    })
}

// ------------------------------------------------------------------------------------------------------ changes

async fn on_each(node: &Arc<Node>, command: Command, progress: &mpsc::Sender<Response>) -> Result<Response, Failure> {
    let command = Arc::new(command);
    let mut running = JoinSet::new();
    for served in chosen(node, command.target())? {
        let (node, command) = (node.clone(), command.clone());
        let progress = progress.clone();
        running.spawn(async move { on_one(&node, &served, &command, &progress).await });
    }
    let mut first: Option<Failure> = None;
    let mut changes = Vec::new();
    for outcome in running.join_all().await {
        match (outcome, &first) {
            (Ok(more), _) => changes.extend(more),
            (Err(failure), None) => first = Some(failure),
            (Err(failure), Some(_)) => {
                // If the client is gone, so is the wish to know.
                let _ = progress.send(Response::Progress { message: sentence(&failure) }).await;
            }
        }
    }
    match first {
        Some(failure) => {
            tell_changes(&changes, progress).await;
            Err(failure)
        }
        None if changes.is_empty() => Ok(Response::Done),
        None => Ok(Response::Changed { changes }),
    }
}

fn sentence(response: &Response) -> String {
    match response {
        Response::Refused { object, message, .. } => format!("{object}: {message}"),
        Response::Unknown { message, .. } | Response::Error { message, .. } | Response::TimedOut { message } => {
            message.clone()
        }
        other => format!("{other:?}"),
    }
}

/// Returns the options that were changed.
async fn on_one(
    node: &Node,
    served: &Served,
    command: &Command,
    progress: &mpsc::Sender<Response>,
) -> Result<Vec<Change>, Failure> {
    match command {
        Command::Adjust { dry_run, .. } => {
            let _changing = served.changing.lock().await;
            adjust(node, served, *dry_run, progress).await
        }
        Command::NetOptions { .. }
        | Command::DiskOptions { .. }
        | Command::PeerDeviceOptions { .. }
        | Command::ResourceOptions { .. } => {
            let _changing = served.changing.lock().await;
            options::set(served, command).await
        }
        other => state_change(served, other, progress).await.map(|()| Vec::new()),
    }
}

async fn state_change(served: &Served, command: &Command, progress: &mpsc::Sender<Response>) -> Outcome {
    match command {
        Command::WaitConnect { target, timeout_s } => {
            let peers = peer_ids(served, target)?;
            let done = |snapshot: &Snapshot| report::is_connected(snapshot, |id| peers.contains(&id));
            return wait(served, *timeout_s, "connected", done).await;
        }
        Command::WaitSync { target, timeout_s } => {
            let peers = peer_ids(served, target)?;
            volumes(served, target)?;
            let volume = target.volume.and_then(VolumeNumber::new);
            let done = |snapshot: &Snapshot| report::is_in_sync(snapshot, |id| peers.contains(&id), volume);
            return wait(served, *timeout_s, "in sync", done).await;
        }
        _ => {}
    }
    let _changing = served.changing.lock().await;
    match command {
        Command::Up { .. } => up(served).await,
        Command::Down { .. } => down(served).await,
        Command::Attach { target } => attach_all(served, &volumes(served, target)?, false).await,
        Command::Detach { target, force } => detach_all(served, &volumes(served, target)?, *force).await,
        Command::Connect { target, discard_my_data } => {
            let peers = peers(served, target)?;
            connect_all(served, &peers, *discard_my_data, target.peer.is_some()).await
        }
        Command::Disconnect { target, force } => disconnect_all(served, &peers(served, target)?, *force).await,
        Command::Promote { force, .. } => {
            run(served, served.name().to_string(), EngineCommand::Promote { force: *force }).await?;
            devices_are_there(served).await?;
            tell_what_is_not_served(served, progress).await
        }
        Command::Demote { force, .. } => demote(served, *force).await,
        other => on_volumes(served, other).await,
    }
}

fn peer_ids(served: &Served, target: &Target) -> Result<Vec<NodeId>, Failure> {
    Ok(peers(served, target)?.into_iter().map(|peer| peer.id).collect())
}

pub async fn run(served: &Served, object: String, command: EngineCommand) -> Outcome {
    served.handle.command(command).await.map_err(gone)?.map_err(|refusal| refused(object, refusal))
}

/// A promotion is done when what it makes can be opened: `promote && mount` must not race.
async fn devices_are_there(served: &Served) -> Outcome {
    let deadline = tokio::time::Instant::now() + DEVICE_PATIENCE;
    while let Some(missing) = served.missing_device() {
        if tokio::time::Instant::now() >= deadline {
            let text =
                format!("{} is Primary, but {} did not appear; see the daemon's log", served.name(), missing.display());
            return Err(Box::new(Response::Error { message: text, next_step: None }));
        }
        tokio::time::sleep(DEVICE_POLL).await;
    }
    Ok(())
}

/// A TCP address that cannot be had is no reason to refuse: it may be one that comes after the promotion. Nor is it
/// nothing.
async fn tell_what_is_not_served(served: &Served, progress: &mpsc::Sender<Response>) -> Outcome {
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    for (number, volume) in &snapshot.volumes {
        let Some(trouble) = &volume.nbd_trouble else { continue };
        let message = format!("{}/{number} is Primary, but {trouble}", served.name());
        // If the client is gone, so is the wish to know.
        let _ = progress.send(Response::Progress { message }).await;
    }
    Ok(())
}

/// Commands that concern volumes, or a volume towards a peer.
async fn on_volumes(served: &Served, command: &Command) -> Outcome {
    let target = command.target();
    for volume in volumes(served, target)? {
        let object = format!("{}/{volume}", served.name());
        match command {
            Command::Outdate { .. } => run(served, object, EngineCommand::Outdate { volume }).await?,
            Command::Invalidate { from_peer, .. } => {
                let from = match from_peer {
                    None => None,
                    peer => Some(peers(served, &Target { peer: peer.clone(), ..target.clone() })?[0].id),
                };
                run(served, object, EngineCommand::Invalidate { volume, from }).await?;
            }
            Command::NewCurrentUuid { clear_bitmap, .. } => {
                let clear_bitmap = *clear_bitmap;
                run(served, object, EngineCommand::NewCurrentUuid { volume, clear_bitmap }).await?;
            }
            Command::InvalidateRemote { .. }
            | Command::PauseSync { .. }
            | Command::ResumeSync { .. }
            | Command::Verify { .. } => {
                for peer in peers(served, target)? {
                    let object = format!("{}:{}/{volume}", peer.name, served.name());
                    let peer = peer.id;
                    let command = match command {
                        Command::InvalidateRemote { .. } => EngineCommand::InvalidateRemote { volume, peer },
                        Command::PauseSync { .. } => EngineCommand::PauseSync { volume, peer },
                        Command::Verify { start, stop, .. } => {
                            let [start, stop] = [start, stop].map(|s| s.map(|s| s.saturating_mul(SECTOR_BYTES)));
                            EngineCommand::Verify { volume, peer, start, stop }
                        }
                        _ => EngineCommand::ResumeSync { volume, peer },
                    };
                    run(served, object, command).await?;
                }
            }
            other => unreachable!("{} has its own branch", other.name()),
        }
    }
    Ok(())
}

async fn up(served: &Served) -> Outcome {
    let all: Vec<VolumeNumber> = served.local().volumes().iter().map(|volume| volume.number).collect();
    attach_all(served, &all, true).await?;
    let peers = served.local().peers.clone();
    connect_all(served, &peers, false, false).await
}

/// `lenient`: volumes that have a disk, or should have none, are no failure.
async fn attach_all(served: &Served, volumes: &[VolumeNumber], lenient: bool) -> Outcome {
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    for number in volumes {
        let attached = snapshot.volumes.get(number).is_some_and(|volume| volume.backing.is_some());
        let volume = served.local().volume(*number).expect("chosen out of these").clone();
        if lenient && (attached || volume.disk == Disk::None) {
            continue;
        }
        let object = format!("{}/{number}", served.name());
        if attached {
            return Err(refused(object, already_attached()));
        }
        let named = object.clone();
        let opened = tokio::task::spawn_blocking(move || attach::open(&named, &volume)).await;
        let opened = opened.expect("opening does not panic").map_err(|r| refused_attach(object.clone(), r))?;
        served.handle.attach(*number, opened).await.map_err(gone)?.map_err(|refusal| refused(object, refusal))?;
    }
    Ok(())
}

fn already_attached() -> Refusal {
    let next_step = "detach it first";
    Refusal { code: 124, rule: "ERR_DISK_CONFIGURED", state: "the volume has a disk".into(), next_step }
}

/// `named`: the operator named the peer, so "already connected" is worth saying.
async fn connect_all(served: &Served, peers: &[Peer], discard_my_data: bool, named: bool) -> Outcome {
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    for peer in peers {
        let state = snapshot.status.peers.get(&peer.id).map(|status| status.connection);
        if !named && !discard_my_data && state != Some(ConnectionState::StandAlone) {
            continue;
        }
        let object = format!("{}:{}", peer.name, served.name());
        run(served, object, EngineCommand::Connect { peer: peer.id, discard_my_data }).await?;
    }
    Ok(())
}

async fn disconnect_all(served: &Served, peers: &[Peer], force: bool) -> Outcome {
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    for peer in peers {
        if snapshot.status.peers.get(&peer.id).is_some_and(|s| s.connection == ConnectionState::StandAlone) {
            continue;
        }
        let object = format!("{}:{}", peer.name, served.name());
        run(served, object, EngineCommand::Disconnect { peer: peer.id, force }).await?;
    }
    Ok(())
}

async fn detach_all(served: &Served, volumes: &[VolumeNumber], force: bool) -> Outcome {
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    for volume in volumes {
        if snapshot.status.volumes.get(volume).is_some_and(|status| status.disk == DiskState::Diskless) {
            continue;
        }
        let object = format!("{}/{volume}", served.name());
        run(served, object, EngineCommand::Detach { volume: *volume, force }).await?;
    }
    Ok(())
}

/// Who holds a device open keeps the role; only the driver knows who does.
async fn demote(served: &Served, force: bool) -> Outcome {
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    if snapshot.status.role == Role::Primary
        && !force
        && let Some(state) = served.held(&snapshot).await
    {
        let next_step = "unmount it and disconnect the NBD clients";
        let refusal = Refusal { code: -12, rule: "SS_DEVICE_IN_USE", state, next_step };
        return Err(refused(served.name().to_string(), refusal));
    }
    run(served, served.name().to_string(), EngineCommand::Demote).await
}

async fn down(served: &Served) -> Outcome {
    let snapshot = served.handle.snapshot().await.map_err(gone)?;
    if snapshot.status.role == Role::Primary {
        demote(served, false).await?;
    }
    let peers = served.local().peers.clone();
    disconnect_all(served, &peers, false).await?;
    let all: Vec<VolumeNumber> = served.local().volumes().iter().map(|volume| volume.number).collect();
    detach_all(served, &all, false).await
}

/// Changes the options that differ, attaches and connects what is missing.
async fn adjust(
    node: &Node,
    served: &Served,
    dry_run: bool,
    progress: &mpsc::Sender<Response>,
) -> Result<Vec<Change>, Failure> {
    let fresh = options::configured(node, served).await?;
    let changes = options::adjust(served, fresh, dry_run).await?;
    if !dry_run && let Err(failure) = up(served).await {
        // What was changed stays so; who sees the failure has to know.
        tell_changes(&changes, progress).await;
        return Err(failure);
    }
    Ok(changes)
}

async fn tell_changes(changes: &[Change], progress: &mpsc::Sender<Response>) {
    for change in changes {
        // If the client is gone, so is the wish to know.
        let _ = progress.send(Response::Progress { message: options::sentence(change) }).await;
    }
}

async fn wait(served: &Served, timeout_s: Option<u64>, what: &str, done: impl Fn(&Snapshot) -> bool) -> Outcome {
    let waiting = async {
        let mut changes = served.handle.subscribe();
        loop {
            let snapshot = served.handle.snapshot().await.map_err(gone)?;
            if done(&snapshot) {
                return Ok(());
            }
            match changes.recv().await {
                // Whatever was missed, the next snapshot has it.
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Err(gone(Gone)),
            }
        }
    };
    let Some(seconds) = timeout_s else { return waiting.await };
    match tokio::time::timeout(Duration::from_secs(seconds), waiting).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let message = format!("{} is not {what} after {seconds} s", served.name());
            Err(Box::new(Response::TimedOut { message }))
        }
    }
}

// ------------------------------------------------------------------------------------------------------ questions

async fn status(node: &Node, target: &Target) -> Result<Response, Failure> {
    let mut status = Vec::new();
    for served in chosen(node, target)? {
        status.push(served.report(&*served.handle.snapshot().await.map_err(gone)?));
    }
    Ok(Response::Status { status })
}

async fn lines(
    node: &Node,
    target: &Target,
    of: impl Fn(&control::ResourceReport, &Target) -> Vec<String>,
) -> Result<Response, Failure> {
    let mut lines = Vec::new();
    for served in chosen(node, target)? {
        peers(&served, target)?;
        volumes(&served, target)?;
        lines.extend(of(&served.report(&*served.handle.snapshot().await.map_err(gone)?), target));
    }
    Ok(Response::Text { lines })
}

/// drbdmeta's line of generation identifiers and flags, one for each volume and peer; or the same in words.
async fn identifiers(node: &Node, target: &Target, explain: bool) -> Result<Response, Failure> {
    use metadata::{DeviceFlags as D, PeerFlags as P};
    const DEVICE: [D; 7] = [
        D::CONSISTENT,
        D::WAS_UP_TO_DATE,
        D::PRIMARY_INDICATOR,
        D::CRASHED_PRIMARY,
        D::AL_CLEAN,
        D::AL_DISABLED,
        D::LOST_QUORUM,
    ];
    const PEER: [P; 5] = [P::CONNECTED, P::OUTDATED, P::FENCING, P::FULL_SYNC, P::DEVICE_SEEN];
    let mut lines = Vec::new();
    for served in chosen(node, target)? {
        let snapshot = served.handle.snapshot().await.map_err(gone)?;
        for number in volumes(&served, target)? {
            let Some(volume) = snapshot.status.volumes.get(&number).filter(|v| v.disk > DiskState::Attaching) else {
                let message = format!("{}/{number} has no disk attached", served.name());
                let next_step = Some("attach it, or ask `replicactl get-gi` while the daemon is stopped".into());
                return Err(Box::new(Response::Error { message, next_step }));
            };
            for peer in peers(&served, target)? {
                let towards = snapshot.status.peers.get(&peer.id).and_then(|status| status.volumes.get(&number));
                let bitmap = towards.map_or(types::Uuid::ZERO, |p| p.bitmap_uuid);
                let history = |index: usize| volume.history.get(index).copied().unwrap_or_default();
                let uuids = [volume.current_uuid, bitmap, history(0), history(1)];
                let own = D(volume.flags);
                let theirs = P(towards.map_or(0, |p| p.peer_flags));
                if !explain {
                    let uuids = uuids.map(|uuid| uuid.to_string()).join(":");
                    let flags = DEVICE.map(|f| own.contains(f)).into_iter().chain(PEER.map(|f| theirs.contains(f)));
                    let flags: Vec<&str> = flags.map(|on| if on { "1" } else { "0" }).collect();
                    lines.push(format!("{uuids}:{}", flags.join(":")));
                    continue;
                }
                lines.push(format!("{}/{number} towards {}:", served.name(), peer.name));
                let names = ["current", "bitmap (since when this peer misses changes)", "history", "older history"];
                lines.extend(names.iter().zip(uuids).map(|(name, uuid)| format!("  {uuid}  {name}")));
                let mut on: Vec<&str> = D::NAMED.iter().filter(|(f, _)| own.contains(*f)).map(|(_, n)| *n).collect();
                on.extend(P::NAMED.iter().filter(|(f, _)| theirs.contains(*f)).map(|(_, n)| *n));
                lines.push(format!("  flags: {}", if on.is_empty() { "none".into() } else { on.join(", ") }));
            }
        }
    }
    Ok(Response::Text { lines })
}
