//! Two connectors, or one and a hand-made peer, over loopback addresses.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use replicad::links::{ConnectorHandle, Established, Listeners, PathConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use wire::Socket;

/// Far above anything that works.
const PATIENCE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(1);

static TESTS: AtomicU8 = AtomicU8::new(1);

/// Two addresses that nobody else uses.
fn addresses() -> [SocketAddr; 2] {
    let (run, test) = (std::process::id(), TESTS.fetch_add(1, Ordering::Relaxed));
    [1, 2].map(|node| format!("127.{}.{}.{node}:7790", 1 + run % 250, 1 + u32::from(test)).parse().unwrap())
}

fn path(local: SocketAddr, remote: SocketAddr) -> PathConfig {
    PathConfig {
        peer: format!("{remote} of the test"),
        local,
        remote,
        connect_interval: Duration::from_millis(200),
        ping_timeout: Duration::from_millis(100),
        socket_check: Duration::from_millis(100),
        sndbuf_bytes: 0,
        rcvbuf_bytes: 0,
    }
}

fn connector(path: PathConfig, listeners: &Listeners) -> (ConnectorHandle, mpsc::UnboundedReceiver<Established>) {
    let (sender, established) = mpsc::unbounded_channel();
    let deliver = move |sockets| sender.send(sockets).unwrap();
    (ConnectorHandle::start(path, listeners.clone(), deliver), established)
}

async fn next(established: &mut mpsc::UnboundedReceiver<Established>) -> Established {
    tokio::time::timeout(PATIENCE, established.recv()).await.expect("no link").expect("the connector is gone")
}

fn stream(fd: OwnedFd) -> TcpStream {
    let stream = std::net::TcpStream::from(fd);
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

async fn assert_joined(from: OwnedFd, to: OwnedFd, what: &[u8]) {
    let (mut from, mut to) = (stream(from), stream(to));
    from.write_all(what).await.unwrap();
    let mut heard = vec![0; what.len()];
    to.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, what);
}

async fn connect_from(local: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(local.ip(), 0))?;
    socket.connect(to).await
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.expect("it stays open");
    matches!(read, Ok(0) | Err(_))
}

#[tokio::test]
async fn two_nodes_find_each_other_and_agree_on_the_sockets_again_and_again() {
    let [a, b] = addresses();
    let listeners = [Listeners::default(), Listeners::default()];
    let (alice, mut at_alice) = connector(path(a, b), &listeners[0]);
    let (bob, mut at_bob) = connector(path(b, a), &listeners[1]);
    for attempt in 0..5 {
        // One after the other, together, and with a head start for either.
        alice.connect(attempt, SOON * (attempt as u32 % 2) * 50);
        bob.connect(attempt, SOON * (attempt as u32 / 2 % 2) * 70);
        let (ours, theirs) = (next(&mut at_alice).await, next(&mut at_bob).await);
        assert_eq!((ours.attempt, theirs.attempt), (attempt, attempt));
        assert_ne!(ours.arbiter, theirs.arbiter, "exactly one accepted the control socket");
        assert_joined(ours.data, theirs.data, b"data").await;
        assert_joined(theirs.control, ours.control, b"control").await;
    }
}

#[tokio::test]
async fn of_crossed_connections_the_newer_stays() {
    let [own, peer] = addresses();
    let (handle, mut established) = connector(path(own, peer), &Listeners::default());
    handle.connect(1, Duration::ZERO);
    let mut older = loop {
        match connect_from(peer, own).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(SOON).await,
        }
    };
    older.write_all(&wire::first_packet(Socket::Data)).await.unwrap();
    let mut newer = connect_from(peer, own).await.unwrap();
    newer.write_all(&wire::first_packet(Socket::Data)).await.unwrap();
    assert!(is_closed(&mut older).await);
    let mut control = connect_from(peer, own).await.unwrap();
    control.write_all(&wire::first_packet(Socket::Control)).await.unwrap();
    newer.write_all(b"early").await.unwrap();

    let sockets = next(&mut established).await;
    assert!(sockets.arbiter);
    let mut heard = [0; 5];
    stream(sockets.data).read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"early", "what a quick peer says before the check ended is not lost");
}

#[tokio::test]
async fn a_socket_that_dies_during_the_check_is_replaced() {
    let [own, peer] = addresses();
    let listener = TcpListener::bind(peer).await.unwrap();
    let (handle, mut established) = connector(path(own, peer), &Listeners::default());
    handle.connect(1, Duration::ZERO);
    let first_packet = |mut stream: TcpStream| async {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).await.unwrap();
        (wire::parse_first_packet(bytes).unwrap(), stream)
    };
    // The lower address: its first socket is the control socket.
    let (kind, control) = first_packet(listener.accept().await.unwrap().0).await;
    assert_eq!(kind, Socket::Control);
    let (kind, data) = first_packet(listener.accept().await.unwrap().0).await;
    assert_eq!(kind, Socket::Data);
    drop(data);
    let (kind, data) = first_packet(listener.accept().await.unwrap().0).await;
    assert_eq!(kind, Socket::Data, "only the lost one is made again");
    let sockets = next(&mut established).await;
    assert!(!sockets.arbiter);
    drop((control, data));
}

#[tokio::test]
async fn nobody_else_gets_in_and_silence_and_garbage_do_not_keep_the_peer_out() {
    let [own, peer] = addresses();
    let (handle, mut established) = connector(path(own, peer), &Listeners::default());
    handle.connect(1, Duration::ZERO);
    let mut silent = loop {
        match connect_from(peer, own).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(SOON).await,
        }
    };
    let mut stranger = connect_from("127.0.0.1:0".parse().unwrap(), own).await.unwrap();
    stranger.write_all(&wire::first_packet(Socket::Data)).await.unwrap_or(());
    let mut garbage = connect_from(peer, own).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(is_closed(&mut stranger).await);
    assert!(is_closed(&mut garbage).await);
    assert!(is_closed(&mut silent).await);
    let (bob, mut at_bob) = connector(path(peer, own), &Listeners::default());
    bob.connect(1, Duration::ZERO);
    next(&mut established).await;
    next(&mut at_bob).await;
}

#[tokio::test]
async fn a_peer_nobody_wants_is_closed_at_once() {
    let [own, peer] = addresses();
    let (alice, mut at_alice) = connector(path(own, peer), &Listeners::default());
    let (bob, mut at_bob) = connector(path(peer, own), &Listeners::default());
    alice.connect(1, Duration::ZERO);
    bob.connect(1, Duration::ZERO);
    let _kept = (next(&mut at_alice).await, next(&mut at_bob).await);
    let mut late = connect_from(peer, own).await.unwrap();
    late.write_all(&wire::first_packet(Socket::Data)).await.unwrap();
    assert!(is_closed(&mut late).await);
    assert!(at_alice.try_recv().is_err());
}

#[tokio::test]
async fn two_peers_behind_one_address_and_a_taken_port_are_refused_with_the_reason() {
    let [own, peer] = addresses();
    let listeners = Listeners::default();
    let first = listeners.register(own, peer, "bob:r0", PATIENCE).unwrap();
    let other_port = SocketAddr::new(peer.ip(), 9999);
    let text = listeners.register(own, other_port, "carol:r0", PATIENCE).err().unwrap().to_string();
    assert!(text.contains("bob:r0") && text.contains("carol:r0") && text.contains("ports"), "{text}");
    let other_listener = SocketAddr::new(own.ip(), 7791);
    let second = listeners.register(other_listener, other_port, "carol:r0", PATIENCE).unwrap();
    drop((first, second));

    let taken = std::net::TcpListener::bind(SocketAddr::new(own.ip(), 9998)).unwrap();
    let text = listeners.register(taken.local_addr().unwrap(), peer, "bob:r0", PATIENCE).err().unwrap().to_string();
    assert!(text.contains("cannot listen on") && text.contains(":9998"), "{text}");
}
