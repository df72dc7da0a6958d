//! Where NBD clients of one volume come in: its socket in the run directory, and a TCP address where one is configured.
//!
//! Opened and closed by `devices`; every connection goes to the resource thread. Touches the socket's file and the
//! address, nothing else. While the doors are open, an address that cannot be had (in use; or not on this host yet, as
//! one that a cluster manager moves after the promotion) is tried again every [`LISTEN_RETRY`]: the resource thread is
//! told, so that `status` says it, and the unix socket serves meanwhile.
//!
//! A client is dead when it has answered nothing for [`DEAD_AFTER`], whether it was idle (keepalive) or had something
//! to take (`TCP_USER_TIMEOUT`). Then its socket fails and it no longer holds the device.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::task::JoinHandle;
use types::VolumeNumber;

use crate::log::RefusalLog;
use crate::resource::{Order, ResourceHandle};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;
/// Pause after a failed accept (usually: no file descriptors left).
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// Between two attempts to get the address. A floating address is served that much later.
const LISTEN_RETRY: Duration = Duration::from_secs(2);

/// How long a TCP client may be out of reach. Shorter: a switch that restarts costs clients their device. Longer: a
/// machine that lost its power keeps this node Primary for as long.
const DEAD_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
const _: () = assert!(
    KEEPALIVE_TIME.as_secs() + KEEPALIVE_INTERVAL.as_secs() * KEEPALIVE_RETRIES as u64 == DEAD_AFTER.as_secs(),
    "idle clients and busy ones are dead after the same time"
);

/// Which volume, and who serves it.
#[derive(Clone)]
pub struct Served {
    pub resource: String,
    pub volume: VolumeNumber,
    pub handle: ResourceHandle,
}

/// The open doors of one volume.
pub struct Doors {
    served: Served,
    /// Of the unix socket, if it could be made.
    path: Option<PathBuf>,
    tcp: bool,
    accepting: Vec<JoinHandle<()>>,
}

impl Doors {
    /// The unix socket comes last: when it is there, TCP listens or the resource thread knows why not.
    pub fn open(served: Served, path: &Path, listen: Option<SocketAddr>) -> Doors {
        let mut doors = Doors { served: served.clone(), path: None, tcp: listen.is_some(), accepting: Vec::new() };
        if let Some(address) = listen {
            let listener = served.listen(address, None);
            doors.accepting.push(tokio::spawn(serve_tcp(served.clone(), address, listener)));
        }
        match bind_unix(path) {
            Ok(listener) => {
                doors.path = Some(path.to_path_buf());
                doors.accepting.push(tokio::spawn(accept_all(served, Listener::Unix(listener))));
            }
            Err(error) => tracing::error!("{served}: cannot listen on {}: {error}", path.display()),
        }
        doors
    }

    /// Nothing listens any more on return: the next promotion finds the address free.
    pub async fn close(self) {
        for task in self.accepting {
            task.abort();
            // Ended by the line above, and its listener with it.
            let _ = task.await;
        }
        if self.tcp {
            self.served.tell(None);
        }
        let Some(path) = self.path else { return };
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

impl std::fmt::Display for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.resource, self.volume)
    }
}

impl Served {
    /// One attempt. `before`: what went wrong at the last one, so that the same is not said twice.
    fn listen(&self, address: SocketAddr, before: Option<String>) -> Result<TcpListener, String> {
        let trouble = match bind_tcp(address) {
            Ok(listener) => {
                tracing::info!("{self}: NBD on {address}, for everybody who can reach it");
                self.tell(None);
                return Ok(listener);
            }
            Err(error) => trouble(address, &error),
        };
        if before.as_ref() != Some(&trouble) {
            tracing::error!("{self}: {trouble}");
            self.tell(Some(trouble.clone()));
        }
        Err(trouble)
    }

    fn tell(&self, trouble: Option<String>) {
        // A thread that has ended shows no status.
        let _ = self.handle.send(Order::NbdAddress { volume: self.volume, trouble });
    }
}

/// For the log and for `status`: what, why, and what to do about it.
fn trouble(address: SocketAddr, error: &io::Error) -> String {
    let next_step = match error.kind() {
        io::ErrorKind::AddrInUse => format!("`ss -ltnp 'sport = :{}'` shows who has the port", address.port()),
        io::ErrorKind::AddrNotAvailable => "add the address to this host, or correct `device`".to_string(),
        _ => "correct `device`".to_string(),
    };
    format!("not served on {address}: {error}; {next_step}; trying again every {} s", LISTEN_RETRY.as_secs())
}

async fn serve_tcp(served: Served, address: SocketAddr, mut listener: Result<TcpListener, String>) {
    let listener = loop {
        match listener {
            Ok(listener) => break listener,
            Err(before) => {
                tokio::time::sleep(LISTEN_RETRY).await;
                listener = served.listen(address, Some(before));
            }
        }
    };
    accept_all(served, Listener::Tcp(listener)).await;
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// A connection as the ring wants it, and where a TCP client comes from.
    async fn accept(&self) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
        match self {
            Listener::Unix(listener) => {
                let stream = listener.accept().await?.0.into_std()?;
                stream.set_nonblocking(false)?;
                Ok((stream.into(), None))
            }
            Listener::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok((prepare(stream)?, Some(from)))
            }
        }
    }
}

async fn accept_all(served: Served, listener: Listener) {
    let refusals = RefusalLog::default();
    loop {
        match listener.accept().await {
            Ok((socket, from)) => {
                let order = Order::NbdClient { volume: served.volume, socket, from };
                if served.handle.send(order).is_err() {
                    return;
                }
            }
            Err(error) => {
                refusals.note(format_args!("{served}: cannot accept an NBD client: {error}"));
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Small answers leave at once; a client that is gone is found out. Blocking again: io_uring waits by itself.
fn prepare(stream: TcpStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    Ok(stream.into())
}

/// Connections of the time before the last demotion must not keep the address from us; another listener does.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A socket left by a daemon that died is in the way; the run directory's lock says that nobody else uses it.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tcp_client_is_fast_and_cannot_stay_dead() {
        let listener = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let from = client.local_addr().unwrap();
        let (socket, accepted_from) = Listener::Tcp(listener).accept().await.unwrap();
        assert_eq!(accepted_from, Some(from));
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap() && !socket.nonblocking().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_TIME);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(DEAD_AFTER));
    }

    /// On one thread nothing else gets a turn between `close` and what follows it.
    #[tokio::test]
    async fn closed_doors_leave_the_address_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r0.0.nbd");
        let (handle, _mailbox) = crate::resource::mailbox("r0").unwrap();
        let served = Served { resource: "r0".into(), volume: VolumeNumber::new(0).unwrap(), handle };
        let free = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        for _ in 0..3 {
            let doors = Doors::open(served.clone(), &path, Some(address));
            TcpStream::connect(address).await.expect("it listens as soon as it is open");
            assert!(path.exists() && bind_tcp(address).is_err());
            doors.close().await;
            assert!(!path.exists());
            drop(bind_tcp(address).expect("nothing listens any more"));
        }
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_had_says_what_to_do() {
        let taken = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let text = trouble(address, &bind_tcp(address).unwrap_err());
        assert!(text.starts_with(&format!("not served on {address}: ")), "{text}");
        assert!(text.contains(&format!("`ss -ltnp 'sport = :{}'`", address.port())), "{text}");
        // Of the documentation's network: on no host.
        let elsewhere = "192.0.2.1:10809".parse().unwrap();
        let text = trouble(elsewhere, &bind_tcp(elsewhere).unwrap_err());
        assert!(text.contains("add the address to this host") && text.ends_with("trying again every 2 s"), "{text}");
    }
}
