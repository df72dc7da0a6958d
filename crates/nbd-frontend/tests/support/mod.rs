//! A blocking server over a disk in memory: one thread per connection, requests run one by one. For tests and the
//! example; the daemon drives the session from its ring instead.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, RwLock};

use nbd_frontend::{Event, Export, Request, Session, Want};
use types::{BlockOp, IoError};

/// What the clients made the disk do.
#[derive(Default, Debug)]
pub struct Counters {
    pub connections: AtomicUsize,
    pub flushes: AtomicUsize,
    pub fua_writes: AtomicUsize,
    pub discards: AtomicUsize,
    pub zeroes_unmap: AtomicUsize,
    pub zeroes_keep: AtomicUsize,
    /// Connections that ended with a reason, not by a client's farewell.
    pub ended_badly: AtomicUsize,
}

pub struct Disk {
    pub export: Export,
    pub bytes: RwLock<Vec<u8>>,
    pub counters: Counters,
}

impl Disk {
    pub fn new(export: Export) -> Arc<Disk> {
        let bytes = RwLock::new(vec![0; export.size_bytes as usize]);
        Arc::new(Disk { export, bytes, counters: Counters::default() })
    }

    fn run(&self, request: Request, payload: &mut Vec<u8>) -> Result<(), IoError> {
        let range = request.range.start() as usize..request.range.end() as usize;
        let counters = &self.counters;
        let mut bytes = self.bytes.write().unwrap();
        let zero = |bytes: &mut Vec<u8>| bytes[range.clone()].fill(0);
        match request.op {
            BlockOp::Read => {
                payload.clear();
                payload.extend_from_slice(&bytes[range]);
            }
            BlockOp::Write { fua } => {
                bytes[range].copy_from_slice(payload);
                counters.fua_writes.fetch_add(usize::from(fua), SeqCst);
            }
            BlockOp::Flush => drop(counters.flushes.fetch_add(1, SeqCst)),
            BlockOp::Discard => {
                zero(&mut bytes);
                counters.discards.fetch_add(1, SeqCst);
            }
            BlockOp::WriteZeroes { may_unmap, .. } => {
                zero(&mut bytes);
                let counter = if may_unmap { &counters.zeroes_unmap } else { &counters.zeroes_keep };
                counter.fetch_add(1, SeqCst);
            }
        }
        Ok(())
    }
}

/// Serves one connection until it ends.
fn serve(disk: &Disk, mut socket: impl Read + Write) -> io::Result<()> {
    disk.counters.connections.fetch_add(1, SeqCst);
    let mut session = Session::new();
    let mut pending = VecDeque::new();
    let mut payload = Vec::new();
    loop {
        socket.write_all(&session.take_output())?;
        while let Some(request) = pending.pop_front() {
            let result = disk.run(request, &mut payload);
            let answer = session.complete(request.tag, result).map_err(io::Error::other)?;
            socket.write_all(&answer.head)?;
            if answer.payload {
                socket.write_all(&payload)?;
            }
            pending.extend(answer.next);
        }
        match session.want() {
            Want::Bytes(wanted) => {
                let mut buffer = vec![0; wanted.min(64 << 10)];
                let got = socket.read(&mut buffer)?;
                if got == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let received = session.receive(&disk.export, &buffer[..got]);
                let (taken, event) = match received {
                    Ok(done) => done,
                    Err(reason) => {
                        socket.write_all(&session.take_output())?;
                        return Err(io::Error::other(reason));
                    }
                };
                assert_eq!(taken, got, "no more was read than was wanted");
                if let Some(Event::Request(request)) = event {
                    pending.push_back(request);
                }
            }
            Want::Payload { len, .. } => {
                payload.resize(len, 0);
                socket.read_exact(&mut payload)?;
                pending.push_back(session.payload_received());
            }
            Want::Nothing => panic!("nothing is in flight and nothing is wanted"),
            Want::Closed => return Ok(()),
        }
    }
}

fn serve_and_count(disk: &Disk, socket: impl Read + Write) {
    if let Err(reason) = serve(disk, socket) {
        disk.counters.ended_badly.fetch_add(1, SeqCst);
        eprintln!("nbd connection ended: {reason}");
    }
}

/// Serves on a unix socket until the process ends.
pub fn listen_unix(disk: &Arc<Disk>, path: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let disk = disk.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let disk = disk.clone();
            std::thread::spawn(move || serve_and_count(&disk, socket));
        }
    });
    Ok(())
}

/// Serves on TCP until the process ends. Returns the port.
pub fn listen_tcp(disk: &Arc<Disk>, address: &str) -> io::Result<u16> {
    let listener = TcpListener::bind(address)?;
    let port = listener.local_addr()?.port();
    let disk = disk.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let disk = disk.clone();
            std::thread::spawn(move || {
                // Without it each small reply waits for the delayed acknowledgement of the one before.
                let _ = socket.set_nodelay(true);
                serve_and_count(&disk, socket);
            });
        }
    });
    Ok(port)
}
