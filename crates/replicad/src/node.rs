//! This node: its resources, started and stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use config::{Config, Device, LocalResource};
use control::ResourceReport;
use engine::Command;
use tokio::sync::mpsc;
use types::{ConnectionState, DiskState, Role, VolumeNumber};

use crate::devices::{Devices, nbd_path, ublk_is_held, ublk_path};
use crate::links::{ConnectorHandle, Listeners};
use crate::resource::{Gone, Order, Outside, ResourceHandle, Snapshot, StartError, VolumeUse};
use crate::{resource, settings};

/// For one resource to step down, say goodbye and detach when the daemon is told to end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);
/// An NBD client that has just hung up counts until its socket says so.
const HANG_UP_PATIENCE: Duration = Duration::from_millis(500);
/// A resource thread that does not answer for this long is stuck.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Addresses of clients in a message; of more, only the number.
const CLIENTS_NAMED_MAX: usize = 4;

/// One resource as the control plane sees it.
pub struct Served {
    name: String,
    /// As it runs, but for protocols that peers told since.
    local: RwLock<Arc<LocalResource>>,
    pub handle: ResourceHandle,
    /// Changes of one resource happen one after the other.
    pub changing: tokio::sync::Mutex<()>,
    run_dir: PathBuf,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    devices: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

pub struct Node {
    pub name: String,
    pub config_path: PathBuf,
    pub resources: BTreeMap<String, Arc<Served>>,
}

impl Node {
    /// Starts a thread for every resource. All are Secondary, without disk and unconnected until `up`. `zero_copy`: disks
    /// read into the application's pages, where the kernel can.
    pub fn start(
        config: &Config,
        locals: Vec<LocalResource>,
        name: String,
        config_path: PathBuf,
        run_dir: &Path,
        zero_copy: bool,
    ) -> Result<Node, StartError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let listeners = Listeners::default();
        let mut resources = BTreeMap::new();
        for local in locals {
            if local.peers.len() > 1 {
                tracing::warn!(
                    "{} has {} nodes: three and more replicate and resync, but what the crash of one leaves behind is not \
                     put right in every case yet; keep data that matters on two",
                    local.name,
                    local.peers.len() + 1
                );
            }
            let served = Served::start(local, &listeners, run_dir, zero_copy)?;
            resources.insert(served.name.clone(), Arc::new(served));
        }
        Ok(Node { name, config_path, resources })
    }

    /// Leaves the cluster in an orderly way where nobody holds the device, then ends all threads.
    pub async fn stop(&self) {
        let mut leaving = tokio::task::JoinSet::new();
        for served in self.resources.values() {
            let served = served.clone();
            leaving.spawn(async move { served.stop().await });
        }
        leaving.join_all().await;
    }

    /// Every resource thread answers.
    pub async fn is_alive(&self) -> bool {
        for served in self.resources.values() {
            match tokio::time::timeout(ANSWER_PATIENCE, served.handle.snapshot()).await {
                Ok(Ok(_)) => {}
                Ok(Err(Gone)) | Err(_) => {
                    tracing::error!("resource {} does not answer", served.name);
                    return false;
                }
            }
        }
        true
    }
}

impl Served {
    fn start(
        local: LocalResource,
        listeners: &Listeners,
        run_dir: &Path,
        zero_copy: bool,
    ) -> Result<Served, StartError> {
        let (handle, mailbox) = resource::mailbox(&local.name)?;
        let connectors = settings::paths(&local).into_iter().map(|(peer, path)| {
            let handle = handle.clone();
            let deliver = move |sockets| {
                // A thread that has ended needs no sockets.
                let _ = handle.send(Order::Established { peer, sockets });
            };
            (peer, ConnectorHandle::start(path, listeners.clone(), deliver))
        });
        // Sockets of a daemon that died: what exists here from now on, somebody serves.
        for volume in local.volumes() {
            let _ = std::fs::remove_file(nbd_path(run_dir, &local.name, volume.number));
        }
        let (wishes, wished) = mpsc::unbounded_channel();
        let outside = Outside { connectors: connectors.collect(), wishes, changes: handle.changes() };
        let thread = resource::start(local.name.clone(), settings::resource(&local), mailbox, outside)?;
        let kinds = local.volumes().iter().map(|volume| (volume.number, volume.device)).collect();
        let devices = Devices::new(local.name.clone(), run_dir.to_path_buf(), zero_copy, kinds, handle.clone());
        let devices = tokio::spawn(devices.serve(wished));
        Ok(Served {
            name: local.name.clone(),
            local: RwLock::new(Arc::new(local)),
            handle,
            changing: tokio::sync::Mutex::new(()),
            run_dir: run_dir.to_path_buf(),
            thread: Mutex::new(Some(thread)),
            devices: Mutex::new(Some(devices)),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn local(&self) -> Arc<LocalResource> {
        self.local.read().expect("no holder of this lock panics").clone()
    }

    /// Only options differ from what it was before.
    pub fn set_local(&self, local: LocalResource) {
        *self.local.write().expect("no holder of this lock panics") = Arc::new(local);
    }

    pub fn report(&self, snapshot: &Snapshot) -> ResourceReport {
        let path = |volume: VolumeNumber, device: Device| match device {
            Device::Ublk(number) if ublk_path(number).exists() => ublk_path(number).display().to_string(),
            Device::Nbd { .. } | Device::Ublk(_) => nbd_path(&self.run_dir, &self.name, volume).display().to_string(),
            Device::None => String::new(),
        };
        crate::report::report(&self.local(), snapshot, path)
    }

    /// The first device of a Primary that cannot be opened yet.
    pub fn missing_device(&self) -> Option<PathBuf> {
        self.local().volumes().iter().find_map(|volume| {
            let socket = nbd_path(&self.run_dir, &self.name, volume.number);
            match volume.device {
                Device::Nbd { .. } => (!socket.exists()).then_some(socket),
                // Without the driver there is a socket instead.
                Device::Ublk(number) => {
                    let path = ublk_path(number);
                    (!path.exists() && !socket.exists()).then_some(path)
                }
                Device::None => None,
            }
        })
    }

    /// Who holds a device of this resource open, in words.
    pub async fn held(&self, snapshot: &Snapshot) -> Option<String> {
        for (number, volume) in snapshot.volumes.iter().filter(|(_, volume)| volume.device) {
            if volume.clients > 0 {
                return Some(nbd_clients(*number, volume));
            }
            let Some(Device::Ublk(minor)) = self.local().volume(*number).map(|v| v.device) else { continue };
            // Opening a block device may wait for it.
            let held = tokio::task::spawn_blocking(move || ublk_is_held(minor)).await;
            if held.expect("it does not panic") {
                return Some(format!("{} is mounted or part of another device", ublk_path(minor).display()));
            }
        }
        None
    }

    async fn stop(&self) {
        let _changing = self.changing.lock().await;
        match tokio::time::timeout(LEAVE_PATIENCE, self.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(text)) => tracing::warn!("resource {} is left as it is: {text}", self.name),
            Err(_) => tracing::warn!("resource {}: gave up leaving after {LEAVE_PATIENCE:?}", self.name),
        }
        // A thread that has ended by itself needs no order.
        let _ = self.handle.send(Order::End);
        let thread = self.thread.lock().expect("no holder of this lock panics").take();
        if let Some(thread) = thread {
            // The thread aborts the process if it panics, so there is no result to look at.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        let devices = self.devices.lock().expect("no holder of this lock panics").take();
        if let Some(devices) = devices {
            // Ends because the thread has ended; removes the sockets.
            let _ = devices.await;
        }
    }

    /// Demote, disconnect, detach. Leaves everything to recovery while an application holds a device.
    async fn leave(&self) -> Result<(), String> {
        let gone = |_: Gone| "its thread has ended".to_string();
        let asked = Instant::now();
        let snapshot = loop {
            let snapshot = self.handle.snapshot().await.map_err(gone)?;
            match self.held(&snapshot).await {
                None => break snapshot,
                Some(_) if has_nbd_clients(&snapshot) && asked.elapsed() < HANG_UP_PATIENCE => {
                    tokio::time::sleep(HANG_UP_PATIENCE / 25).await;
                }
                Some(held) => return Err(format!("{held}; after the next start this node counts as crashed")),
            }
        };
        let refused = |refusal: engine::Refusal| format!("{} ({})", refusal.rule, refusal.state);
        if snapshot.status.role == Role::Primary {
            self.handle.command(Command::Demote).await.map_err(gone)?.map_err(refused)?;
        }
        for (peer, status) in &snapshot.status.peers {
            if status.connection != ConnectionState::StandAlone {
                let command = Command::Disconnect { peer: *peer, force: true };
                self.handle.command(command).await.map_err(gone)?.map_err(refused)?;
            }
        }
        for (volume, status) in &snapshot.status.volumes {
            if status.disk != DiskState::Diskless {
                let command = Command::Detach { volume: *volume, force: false };
                self.handle.command(command).await.map_err(gone)?.map_err(refused)?;
            }
        }
        Ok(())
    }
}

fn has_nbd_clients(snapshot: &Snapshot) -> bool {
    snapshot.volumes.values().any(|volume| volume.clients > 0)
}

/// Who they are decides where to go and stop them.
fn nbd_clients(number: VolumeNumber, volume: &VolumeUse) -> String {
    let text = format!("{} NBD clients use volume {number}", volume.clients);
    let remote = &volume.remote_clients;
    if remote.is_empty() {
        return text;
    }
    let named: Vec<String> = remote.iter().take(CLIENTS_NAMED_MAX).map(ToString::to_string).collect();
    let more = if remote.len() > named.len() { ", …" } else { "" };
    format!("{text}, from {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_from_elsewhere_are_named() {
        let text = |clients, ports: std::ops::Range<u16>| {
            let remote_clients = ports.map(|port| ([10, 0, 0, 7], port).into()).collect();
            nbd_clients(VolumeNumber::new(3).unwrap(), &VolumeUse { clients, remote_clients, ..VolumeUse::default() })
        };
        assert_eq!(text(2, 0..0), "2 NBD clients use volume 3");
        assert_eq!(text(2, 1..2), "2 NBD clients use volume 3, from 10.0.0.7:1");
        let many = "9 NBD clients use volume 3, from 10.0.0.7:1, 10.0.0.7:2, 10.0.0.7:3, 10.0.0.7:4, …";
        assert_eq!(text(9, 1..9), many);
    }
}
