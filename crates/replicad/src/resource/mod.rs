//! One resource: its thread, and the handle by which the control plane speaks with it.
//!
//! The thread owns everything of the resource: engine, ring, buffers, disks, sockets, application requests. The
//! control plane sends [`Order`]s and gets answers; it never touches any of it. Orders are bounded by who may send
//! them: each control connection, connector and device has at most one or two under way.

mod network;
mod thread;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use engine::{Command, DeviceShape, Refusal, ResourceConfig, Status};
use tokio::sync::{broadcast, mpsc as tokio_mpsc, oneshot};
use types::{NodeId, VolumeNumber};

use crate::attach::OpenedDisk;
use crate::links::{ConnectorHandle, Established, PathConfig};

/// Snapshots that a subscriber may be behind before it is cut.
pub const EVENTS_BEHIND_MAX: usize = 256;

/// The answer to a command.
pub type Answer = oneshot::Sender<Result<(), Refusal>>;

pub enum Order {
    Command {
        command: Command,
        answer: Answer,
    },
    /// Gives the disk to the engine.
    Attach {
        volume: VolumeNumber,
        disk: Box<OpenedDisk>,
        answer: Answer,
    },
    Status {
        answer: oneshot::Sender<Arc<Snapshot>>,
    },
    /// Where the peers are and how to reach them, from the next attempt on.
    Paths(BTreeMap<NodeId, PathConfig>),
    Established {
        peer: NodeId,
        sockets: Established,
    },
    /// An application connected to the volume over NBD. `from`: its address if it came over TCP.
    NbdClient {
        volume: VolumeNumber,
        socket: OwnedFd,
        from: Option<SocketAddr>,
    },
    /// Why the volume is not served on its TCP address, or that it is.
    NbdAddress {
        volume: VolumeNumber,
        trouble: Option<String>,
    },
    /// The kernel's device for the volume was made.
    UblkDevice {
        volume: VolumeNumber,
        device: Box<ublk_frontend::Device>,
    },
    /// Stop without another word to peers; what is under way is waited for.
    End,
}

/// What an operator may ask for, at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub status: Status,
    pub volumes: BTreeMap<VolumeNumber, VolumeUse>,
}

/// What only the driver knows of a volume.
#[derive(Clone, Debug, Default)]
pub struct VolumeUse {
    /// Where its data lies, while attached.
    pub backing: Option<PathBuf>,
    /// The device exists.
    pub device: bool,
    /// Applications that hold it.
    pub clients: usize,
    /// Those of them that came over TCP.
    pub remote_clients: Vec<SocketAddr>,
    /// Why NBD's TCP address does not serve it; for people.
    pub nbd_trouble: Option<String>,
}

/// What the thread wants from the control plane.
pub enum Wish {
    /// The device of a volume should exist, or not.
    Device { volume: VolumeNumber, shape: Option<DeviceShape> },
}

/// Everything that the thread uses of the world outside.
pub struct Outside {
    pub connectors: BTreeMap<NodeId, ConnectorHandle>,
    pub wishes: tokio_mpsc::UnboundedSender<Wish>,
    pub changes: broadcast::Sender<Arc<Snapshot>>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("resource {name}: {what}: {source}")]
    System { name: String, what: &'static str, source: std::io::Error },
}

/// The control plane's side. Cheap to clone.
#[derive(Clone)]
pub struct ResourceHandle {
    orders: mpsc::Sender<Order>,
    wake: Arc<OwnedFd>,
    changes: broadcast::Sender<Arc<Snapshot>>,
}

/// The thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("the resource is shutting down")]
pub struct Gone;

impl ResourceHandle {
    pub fn send(&self, order: Order) -> Result<(), Gone> {
        self.orders.send(order).map_err(|_| Gone)?;
        // The counter of an eventfd cannot overflow by ones; any other failure would be a closed descriptor.
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).map_err(|_| Gone)?;
        Ok(())
    }

    pub async fn command(&self, command: Command) -> Result<Result<(), Refusal>, Gone> {
        let (answer, answered) = oneshot::channel();
        self.send(Order::Command { command, answer })?;
        answered.await.map_err(|_| Gone)
    }

    pub async fn attach(&self, volume: VolumeNumber, disk: OpenedDisk) -> Result<Result<(), Refusal>, Gone> {
        let (answer, answered) = oneshot::channel();
        self.send(Order::Attach { volume, disk: Box::new(disk), answer })?;
        answered.await.map_err(|_| Gone)
    }

    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, Gone> {
        let (answer, answered) = oneshot::channel();
        self.send(Order::Status { answer })?;
        answered.await.map_err(|_| Gone)
    }

    /// A snapshot after every change of state from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Snapshot>> {
        self.changes.subscribe()
    }
}

/// Bound of one resource's payload memory. Bytes; the design's 64 MiB.
pub const BUFFER_BYTES: usize = 64 << 20;

/// The two ends between a thread that is to be started and its control plane. The handle exists first because the
/// connectors, which the thread owns, send to it.
pub struct Mailbox {
    orders: mpsc::Receiver<Order>,
    wake: Arc<OwnedFd>,
}

pub fn mailbox(name: &str) -> Result<(ResourceHandle, Mailbox), StartError> {
    use rustix::event::{EventfdFlags, eventfd};
    let wake = eventfd(0, EventfdFlags::CLOEXEC).map_err(|source| StartError::System {
        name: name.to_string(),
        what: "cannot make an eventfd",
        source: source.into(),
    })?;
    let (sender, orders) = mpsc::channel();
    let (changes, _) = broadcast::channel(EVENTS_BEHIND_MAX);
    let wake = Arc::new(wake);
    Ok((ResourceHandle { orders: sender, wake: wake.clone(), changes }, Mailbox { orders, wake }))
}

impl ResourceHandle {
    /// For [`Outside`].
    pub fn changes(&self) -> broadcast::Sender<Arc<Snapshot>> {
        self.changes.clone()
    }
}

/// Starts the thread. It ends the process if it panics: better to stop than to acknowledge a lie.
pub fn start(
    name: String,
    config: ResourceConfig,
    mailbox: Mailbox,
    outside: Outside,
) -> Result<std::thread::JoinHandle<()>, StartError> {
    let system = |what| {
        let name = name.clone();
        move |source| StartError::System { name, what, source }
    };
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| system("no random numbers")(std::io::Error::other(e.to_string())))?;
    // Made here so that a failure is an error of the start, not of the thread.
    let payloads = crate::payloads::Payloads::new(BUFFER_BYTES).map_err(system("no memory for buffers"))?;
    let failed = system("cannot start its thread");
    let short: String = format!("res-{name}").chars().take(15).collect();
    let body = move || {
        let abort = AbortOnPanic(name.clone());
        match thread::Resource::new(name, config, seed, payloads, mailbox, outside) {
            Ok(resource) => resource.run(),
            Err(error) => {
                tracing::error!("{error}");
                std::process::exit(1);
            }
        }
        std::mem::forget(abort);
    };
    std::thread::Builder::new().name(short).spawn(body).map_err(failed)
}

struct AbortOnPanic(String);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        tracing::error!(
            "resource {}: a broken invariant stopped it (the panic above has the values); \
             the daemon ends without acknowledging anything more",
            self.0
        );
        std::process::abort();
    }
}
