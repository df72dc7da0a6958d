//! One listening socket for each local address and port, shared by every peer configured there.
//!
//! An incoming connection belongs to the peer whose configured IP address it comes from; the source port says
//! nothing. Hence two peers behind one IP address need different local ports: [`Listeners::register`] refuses the
//! second one. Whoever connects from elsewhere, or sends no first packet, is closed with one log line per
//! [`crate::log::REFUSAL_INTERVAL`], so that a port scan cannot fill the log.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};
use wire::Socket;

use super::first_packet;
use crate::log::RefusalLog;

/// As in DRBD 9; not observable by peers.
const BACKLOG: u32 = 64;
/// Connections of one listener whose first packet is awaited; more are closed at once.
const UNDECIDED_MAX: usize = 64;
/// Connections that wait for one peer's connector; more are closed. Two are in use, the others are crossed ones.
const WAITING_MAX: usize = 8;
/// Pause after a failed accept (usually: no file descriptors left).
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// A connection from a peer, with its first packet read.
#[derive(Debug)]
pub struct Incoming {
    pub socket: Socket,
    pub stream: TcpStream,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address} for {peer}: {source}; is the address on this host and the port free?")]
    Bind { address: SocketAddr, peer: String, source: std::io::Error },
    #[error(
        "{peer} and {other} both connect from {ip} to {address} and cannot be told apart; \
         give them different ports in the configuration"
    )]
    Ambiguous { address: SocketAddr, ip: IpAddr, peer: String, other: String },
}

struct Route {
    peer: String,
    patience: Duration,
    incoming: mpsc::Sender<Incoming>,
}

type Routes = Arc<Mutex<BTreeMap<IpAddr, Route>>>;

struct Shared {
    routes: Routes,
    accepting: tokio::task::JoinHandle<()>,
}

/// All listening sockets of the daemon.
#[derive(Clone, Default)]
pub struct Listeners {
    by_address: Arc<Mutex<BTreeMap<SocketAddr, Shared>>>,
}

/// The right to receive one peer's connections; ends when dropped, with the last one the socket closes.
pub struct Registration {
    pub incoming: mpsc::Receiver<Incoming>,
    address: SocketAddr,
    ip: IpAddr,
    listeners: Listeners,
}

impl Listeners {
    /// Listens on `address` and hands over what comes from the IP address of `peer_address`. `patience`: how long a
    /// connection may take for its first packet.
    pub fn register(
        &self,
        address: SocketAddr,
        peer_address: SocketAddr,
        peer: &str,
        patience: Duration,
    ) -> Result<Registration, ListenError> {
        let ip = peer_address.ip().to_canonical();
        let mut by_address = self.by_address.lock().expect("no holder of this lock panics");
        let shared = match by_address.entry(address) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => {
                let listener =
                    bind(address).map_err(|source| ListenError::Bind { address, peer: peer.to_string(), source })?;
                let routes = Routes::default();
                e.insert(Shared { accepting: tokio::spawn(accept_all(listener, routes.clone())), routes })
            }
        };
        let mut routes = shared.routes.lock().expect("no holder of this lock panics");
        if let Some(other) = routes.get(&ip) {
            return Err(ListenError::Ambiguous { address, ip, peer: peer.to_string(), other: other.peer.clone() });
        }
        let (sender, incoming) = mpsc::channel(WAITING_MAX);
        routes.insert(ip, Route { peer: peer.to_string(), patience, incoming: sender });
        Ok(Registration { incoming, address, ip, listeners: self.clone() })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut by_address = self.listeners.by_address.lock().expect("no holder of this lock panics");
        let Some(shared) = by_address.get(&self.address) else { return };
        let mut routes = shared.routes.lock().expect("no holder of this lock panics");
        routes.remove(&self.ip);
        let last = routes.is_empty();
        drop(routes);
        if last && let Some(shared) = by_address.remove(&self.address) {
            shared.accepting.abort();
        }
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        socket2::SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept_all(listener: TcpListener, routes: Routes) {
    let undecided = Arc::new(Semaphore::new(UNDECIDED_MAX));
    let refusals = Arc::new(RefusalLog::default());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                refusals.note(format_args!("cannot accept connections: {error}"));
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let route = {
            let routes = routes.lock().expect("no holder of this lock panics");
            routes
                .get(&from.ip().to_canonical())
                .map(|route| (route.peer.clone(), route.patience, route.incoming.clone()))
        };
        let Some((peer, patience, incoming)) = route else {
            refusals.note(format_args!("closed a connection from {from}: no peer is configured with that address"));
            continue;
        };
        let Ok(permit) = undecided.clone().try_acquire_owned() else {
            refusals.note(format_args!("closed a connection from {from}: {UNDECIDED_MAX} others sent nothing yet"));
            continue;
        };
        let refusals = refusals.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(reason) = introduce(stream, patience, incoming).await {
                refusals.note(format_args!("closed a connection from {peer} ({from}): {reason}"));
            }
        });
    }
}

async fn introduce(mut stream: TcpStream, patience: Duration, incoming: mpsc::Sender<Incoming>) -> Result<(), String> {
    let socket = first_packet::read(&mut stream, patience).await.map_err(|e| e.to_string())?;
    incoming.try_send(Incoming { socket, stream }).map_err(|error| match error {
        TrySendError::Full(_) => "too many connections from there".to_string(),
        TrySendError::Closed(_) => "the resource is on its way down".to_string(),
    })
}
