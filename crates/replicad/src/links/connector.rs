//! Makes the two sockets to one peer: connects, takes what the listener accepted, chooses, checks, hands over.
//!
//! One task a peer for the life of the resource. While nobody wants the peer it closes what comes in. The rules are
//! DRBD 9's (docs/wire.md "Establishing"): an active connection becomes the data socket if this node's address is the
//! greater one and no socket exists, else it becomes the missing one; an accepted connection is what its first packet
//! says and replaces an older one of its kind ("crossed"); once both exist, both must survive a short wait.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::Socket;

use super::address;
use super::listener::{Incoming, Listeners, Registration};

/// Upper bound of the pause after two connections crossed; the actual pause is random, so that the two ends part.
const CROSSED_PAUSE_MAX: Duration = Duration::from_secs(1);
/// DRBD waits this many ping timeouts for a first packet.
const FIRST_PACKET_PING_TIMEOUTS: u32 = 4;

/// Where one peer is and how patiently to reach it. Times: docs of crate `config`, section net.
#[derive(Clone, PartialEq, Debug)]
pub struct PathConfig {
    /// For log lines: resource and peer.
    pub peer: String,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub connect_interval: Duration,
    pub ping_timeout: Duration,
    /// How long both sockets must live before they are used.
    pub socket_check: Duration,
    /// 0: the kernel's choice. Bytes.
    pub sndbuf_bytes: u32,
    pub rcvbuf_bytes: u32,
}

/// Both sockets to a peer, checked. Bytes that the peer sent after its first packets are still unread in them.
#[derive(Debug)]
pub struct Established {
    /// Which [`ConnectorHandle::connect`] this answers: a late answer to an older one is recognised.
    pub attempt: u64,
    pub data: OwnedFd,
    pub control: OwnedFd,
    /// This node accepted the control socket.
    pub arbiter: bool,
}

#[derive(Clone)]
enum Wish {
    Connect {
        attempt: u64,
        delay: Duration,
    },
    Stop,
    /// Whatever was wished before goes on with this.
    Configure(PathConfig),
}

/// The resource thread's side of a connector. Dropping it ends the task.
pub struct ConnectorHandle {
    wishes: mpsc::UnboundedSender<Wish>,
}

impl ConnectorHandle {
    /// Starts the task; must be called inside a tokio runtime. `deliver` must not block.
    pub fn start(
        path: PathConfig,
        listeners: Listeners,
        deliver: impl Fn(Established) + Send + 'static,
    ) -> ConnectorHandle {
        let (wishes, wished) = mpsc::unbounded_channel();
        tokio::spawn(serve(path, listeners, wished, deliver));
        ConnectorHandle { wishes }
    }

    /// Reach the peer; replaces an attempt that runs.
    pub fn connect(&self, attempt: u64, delay: Duration) {
        // The task ends only when this handle is dropped or the runtime shuts down; then nobody waits for an answer.
        let _ = self.wishes.send(Wish::Connect { attempt, delay });
    }

    /// Another patience, other buffers; the addresses are those of before. An attempt that runs starts over with it.
    pub fn configure(&self, path: PathConfig) {
        // As above.
        let _ = self.wishes.send(Wish::Configure(path));
    }

    pub fn stop(&self) {
        // As above.
        let _ = self.wishes.send(Wish::Stop);
    }
}

async fn serve(
    mut path: PathConfig,
    listeners: Listeners,
    mut wished: mpsc::UnboundedReceiver<Wish>,
    deliver: impl Fn(Established),
) {
    let mut registration = None;
    let mut wish = Wish::Stop;
    loop {
        let before = wish.clone();
        wish = match wish {
            Wish::Configure(_) => unreachable!("it is carried out where it comes in"),
            Wish::Stop => match refuse_until_wish(&mut registration, &mut wished).await {
                Some(next) => next,
                None => return,
            },
            Wish::Connect { attempt, delay } => tokio::select! {
                biased;
                next = wished.recv() => match next {
                    Some(next) => next,
                    None => return,
                },
                established = reach(&path, &listeners, &mut registration, attempt, delay) => {
                    deliver(established);
                    Wish::Stop
                }
            },
        };
        while let Wish::Configure(new) = wish {
            path = new;
            wish = before.clone();
        }
    }
}

/// Nobody wants this peer: whatever it opens is closed, so that it tries again later.
async fn refuse_until_wish(
    registration: &mut Option<Registration>,
    wished: &mut mpsc::UnboundedReceiver<Wish>,
) -> Option<Wish> {
    loop {
        let incoming = async {
            match registration {
                Some(registration) => registration.incoming.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            wish = wished.recv() => return wish,
            closed = incoming => drop(closed),
        }
    }
}

async fn reach(
    path: &PathConfig,
    listeners: &Listeners,
    registration: &mut Option<Registration>,
    attempt: u64,
    delay: Duration,
) -> Established {
    tokio::time::sleep(jittered(delay)).await;
    let incoming = &mut listen(path, listeners, registration).await.incoming;
    let (data, control, arbiter) = Attempt::new(path).run(incoming).await;
    Established { attempt, data, control, arbiter }
}

/// An address that is not (yet) on this host is no reason to give up.
async fn listen<'a>(
    path: &PathConfig,
    listeners: &Listeners,
    registration: &'a mut Option<Registration>,
) -> &'a mut Registration {
    let mut said = String::new();
    while registration.is_none() {
        let patience = path.ping_timeout * FIRST_PACKET_PING_TIMEOUTS;
        match listeners.register(path.local, path.remote, &path.peer, patience) {
            Ok(done) => *registration = Some(done),
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    tracing::error!("{text} (trying again every {:?})", path.connect_interval);
                    said = text;
                }
                tokio::time::sleep(jittered(path.connect_interval)).await;
            }
        }
    }
    registration.as_mut().expect("the loop ends with a registration")
}

/// About a seventh more or less, as DRBD does, so that two nodes never keep in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + (fastrand::f64() - 0.5) * 2.0 / 7.0)
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// One search for a peer.
struct Attempt<'a> {
    path: &'a PathConfig,
    data: Option<TcpStream>,
    control: Option<TcpStream>,
    /// Of the present control socket: this node accepted it.
    arbiter: bool,
    next_try: Instant,
    /// When both sockets, if still there, count as good.
    good_at: Option<Instant>,
    /// Last connect error that was logged.
    said: String,
}

impl<'a> Attempt<'a> {
    fn new(path: &'a PathConfig) -> Attempt<'a> {
        Attempt {
            path,
            data: None,
            control: None,
            arbiter: false,
            next_try: Instant::now(),
            good_at: None,
            said: String::new(),
        }
    }

    async fn run(mut self, incoming: &mut mpsc::Receiver<Incoming>) -> (OwnedFd, OwnedFd, bool) {
        let mut connecting: Option<Connecting> = None;
        loop {
            let complete = self.data.is_some() && self.control.is_some();
            let good_at = self.good_at.unwrap_or(self.next_try);
            tokio::select! {
                Some(accepted) = incoming.recv() => self.accepted(accepted),
                result = async { connecting.as_mut().expect("guarded").await }, if connecting.is_some() => {
                    connecting = None;
                    self.connected(result).await;
                }
                () = closed_by_peer(&self.data) => self.lost(Socket::Data),
                () = closed_by_peer(&self.control) => self.lost(Socket::Control),
                () = tokio::time::sleep_until(self.next_try), if connecting.is_none() && !complete => {
                    connecting = Some(Box::pin(connect(self.path.clone())));
                }
                () = tokio::time::sleep_until(good_at), if complete => {
                    if let Some(done) = self.finish() {
                        return done;
                    }
                }
            }
        }
    }

    fn slot(&mut self, socket: Socket) -> &mut Option<TcpStream> {
        match socket {
            Socket::Data => &mut self.data,
            Socket::Control => &mut self.control,
        }
    }

    fn place(&mut self, socket: Socket, stream: TcpStream, accepted: bool) -> Option<TcpStream> {
        if socket == Socket::Control {
            self.arbiter = accepted;
        }
        let older = self.slot(socket).replace(stream);
        if self.data.is_some() && self.control.is_some() {
            self.good_at = Some(Instant::now() + self.path.socket_check);
        }
        older
    }

    fn accepted(&mut self, incoming: Incoming) {
        let older = self.place(incoming.socket, incoming.stream, true);
        let pause = match older {
            Some(_) => CROSSED_PAUSE_MAX.mul_f64(fastrand::f64()),
            None => Duration::ZERO,
        };
        self.next_try = Instant::now() + pause;
    }

    async fn connected(&mut self, result: io::Result<TcpStream>) {
        self.next_try = Instant::now() + jittered(self.path.connect_interval);
        let mut stream = match result {
            Ok(stream) => stream,
            Err(error) => return self.say(error),
        };
        let socket = match (&self.data, &self.control) {
            (None, None) => address::first_active_socket(&self.path.local, &self.path.remote),
            (None, Some(_)) => Socket::Data,
            (Some(_), None) => Socket::Control,
            // Both came in while this one was on its way.
            (Some(_), Some(_)) => return,
        };
        // Eight bytes into an empty send buffer: this does not wait.
        match stream.write_all(&wire::first_packet(socket)).await {
            Ok(()) => drop(self.place(socket, stream, false)),
            Err(error) => self.say(error),
        }
    }

    fn say(&mut self, error: io::Error) {
        let text = error.to_string();
        if text != self.said {
            tracing::info!("{}: cannot connect to {}: {text}", self.path.peer, self.path.remote);
            self.said = text;
        }
    }

    fn lost(&mut self, socket: Socket) {
        tracing::debug!("{}: the peer closed its {socket:?} socket again", self.path.peer);
        *self.slot(socket) = None;
        self.good_at = None;
    }

    /// The wait is over: gives the sockets away. `None` if one of them is of no use; the search goes on.
    fn finish(&mut self) -> Option<(OwnedFd, OwnedFd, bool)> {
        let (Some(data), Some(control)) = (self.data.take(), self.control.take()) else {
            unreachable!("only called with both sockets");
        };
        self.good_at = None;
        let prepared = prepare(&data, true, self.path).and_then(|()| prepare(&control, false, self.path));
        match prepared.and_then(|()| Ok((into_fd(data)?, into_fd(control)?))) {
            Ok((data, control)) => Some((data, control, self.arbiter)),
            Err(error) => {
                self.say(error);
                None
            }
        }
    }
}

/// Comes back when the peer closed; never while the socket is open, absent, or holds bytes of the peer.
async fn closed_by_peer(stream: &Option<TcpStream>) {
    let Some(stream) = stream else { return std::future::pending().await };
    if let Ok(1..) = stream.peek(&mut [0]).await {
        std::future::pending().await
    }
}

/// From the configured local address, any port: the peer sorts incoming connections by address.
async fn connect(path: PathConfig) -> io::Result<TcpStream> {
    let socket = if path.local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    set_buffers(SockRef::from(&socket), &path)?;
    let mut from = path.local;
    from.set_port(0);
    socket.bind(from)?;
    match tokio::time::timeout(path.connect_interval, socket.connect(path.remote)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")),
    }
}

fn set_buffers(socket: SockRef<'_>, path: &PathConfig) -> io::Result<()> {
    if path.sndbuf_bytes != 0 {
        socket.set_send_buffer_size(path.sndbuf_bytes as usize)?;
    }
    if path.rcvbuf_bytes != 0 {
        socket.set_recv_buffer_size(path.rcvbuf_bytes as usize)?;
    }
    Ok(())
}

/// Socket options of a connection in use. Source: docs/wire.md "Socket options".
fn prepare(stream: &TcpStream, keepalive: bool, path: &PathConfig) -> io::Result<()> {
    const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(23);
    const KEEPALIVE_RETRIES: u32 = 9;
    stream.set_nodelay(true)?;
    set_buffers(SockRef::from(stream), path)?;
    if keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_INTERVAL)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    }
    Ok(())
}

/// Out of tokio's hands and blocking again: io_uring waits by itself.
fn into_fd(stream: TcpStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}
