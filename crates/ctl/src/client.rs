//! One conversation with the daemon: a request, then replies until the final one. Blocking.

use control::{FrameError, LineBuffer, Reply, Request, Response};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Why there was no answer.
pub enum ClientError {
    Connect {
        socket: PathBuf,
        source: io::Error,
    },
    Io(io::Error),
    /// The connection ended before the final reply.
    Ended,
    Frame(FrameError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Connect { socket, source } => {
                let socket = socket.display();
                match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => write!(
                        f,
                        "replicad is not running: nothing listens at {socket} ({source}); start it with `systemctl \
                         start replicad`, or give its directory with --run-dir"
                    ),
                    io::ErrorKind::PermissionDenied => {
                        write!(f, "not allowed to talk to replicad at {socket} ({source}); be root or in its group")
                    }
                    _ => write!(f, "cannot reach replicad at {socket}: {source}"),
                }
            }
            ClientError::Io(e) => write!(f, "the connection to replicad failed: {e}"),
            ClientError::Ended => {
                write!(f, "replicad closed the connection without an answer; its log says why (journalctl -u replicad)")
            }
            ClientError::Frame(e) => write!(f, "replicad sent {e}"),
        }
    }
}

pub struct Client {
    stream: UnixStream,
    lines: LineBuffer,
}

impl Client {
    /// Connects and sends the request.
    pub fn ask(run_dir: &Path, request: &Request) -> Result<Client, ClientError> {
        let socket = run_dir.join(control::SOCKET_NAME);
        let mut stream = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(source) => return Err(ClientError::Connect { socket, source }),
        };
        let line = control::encode_line(request).map_err(ClientError::Frame)?;
        stream.write_all(&line).map_err(ClientError::Io)?;
        Ok(Client { stream, lines: LineBuffer::new() })
    }

    /// The next reply. After the final one there is none to ask for.
    pub fn next(&mut self) -> Result<Response, ClientError> {
        let mut piece = [0u8; 16 << 10];
        loop {
            if let Some(line) = self.lines.next_line().map_err(ClientError::Frame)? {
                let reply: Reply = control::decode_line(&line).map_err(ClientError::Frame)?;
                return Ok(reply.response);
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ClientError::Ended),
                Ok(len) => self.lines.push(&piece[..len]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ClientError::Io(e)),
            }
        }
    }
}
