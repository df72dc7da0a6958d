//! The smallest NBD client, for tests and benches: fixed newstyle, NBD_OPT_GO, simple replies, one request at a time.
//! For what the tools cannot say: which writes exactly were acknowledged. It shares nothing with the server: all
//! numbers are from the NBD protocol document again.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection, with the export that the server gives to who names none.
pub struct Client {
    stream: Box<dyn Stream>,
    pub size_bytes: u64,
    requests: u64,
}

/// For an answer. Far above anything that works; for tests that would hang otherwise.
const PATIENCE: Duration = Duration::from_secs(120);

/// Commands of a request.
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;

const OPT_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

/// Before the data of an option.
const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// An option of the negotiation, as sent.
pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    [&OPTION_MAGIC, &kind.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Data of GO and INFO: the export, and no request for more information.
pub fn go_data(export: &str) -> Vec<u8> {
    [&(export.len() as u32).to_be_bytes(), export.as_bytes(), &[0, 0]].concat()
}

/// The head of a request, as sent; the payload of a write follows it.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

impl Client {
    pub fn connect(path: &Path) -> io::Result<Client> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Client::negotiate(Box::new(stream))
    }

    pub fn over_tcp(stream: TcpStream) -> io::Result<Client> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Client::negotiate(Box::new(stream))
    }

    fn negotiate(stream: Box<dyn Stream>) -> io::Result<Client> {
        let mut client = Client { stream, size_bytes: 0, requests: 0 };
        if &client.take::<16>()? != b"NBDMAGICIHAVEOPT" {
            return Err(io::Error::other("this is no NBD server"));
        }
        client.take::<2>()?;
        // Fixed newstyle, no zeroes.
        client.stream.write_all(&3u32.to_be_bytes())?;
        client.stream.write_all(&option(OPT_GO, &go_data("")))?;
        loop {
            client.take::<12>()?;
            let kind = u32::from_be_bytes(client.take()?);
            let mut info = vec![0; u32::from_be_bytes(client.take()?) as usize];
            client.stream.read_exact(&mut info)?;
            match (kind, info.get(..2)) {
                (REPLY_ACK, _) => return Ok(client),
                (REPLY_INFO, Some([0, 0])) if info.len() >= 10 => {
                    client.size_bytes = u64::from_be_bytes(info[2..10].try_into().expect("8 bytes"));
                }
                (REPLY_INFO, _) => {}
                (other, _) => return Err(io::Error::other(format!("NBD_OPT_GO was answered with {other:#x}"))),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn request(&mut self, command: u16, offset: u64, len: u32, payload: &[u8]) -> io::Result<()> {
        self.requests += 1;
        let mut bytes = request(command, 0, self.requests, offset, len);
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes)
    }

    fn reply(&mut self) -> io::Result<()> {
        let magic = u32::from_be_bytes(self.take()?);
        let error = u32::from_be_bytes(self.take()?);
        let handle = u64::from_be_bytes(self.take()?);
        match (magic, error) {
            (SIMPLE_REPLY_MAGIC, 0) if handle == self.requests => Ok(()),
            (SIMPLE_REPLY_MAGIC, error) if handle == self.requests => Err(io::Error::from_raw_os_error(error as i32)),
            _ => Err(io::Error::other(format!("reply with magic {magic:#x} to request {handle}"))),
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.request(WRITE, offset, bytes.len() as u32, bytes)?;
        self.reply()
    }

    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.request(READ, offset, len, &[])?;
        self.reply()?;
        let mut bytes = vec![0; len as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A write of `len` bytes that stops after the first of them.
    pub fn begin_write(&mut self, offset: u64, len: u32, bytes: &[u8]) -> io::Result<()> {
        self.request(WRITE, offset, len, bytes)
    }

    /// A read whose answer nobody fetches.
    pub fn ask(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(READ, offset, len, &[])
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.request(FLUSH, 0, 0, &[])?;
        self.reply()
    }

    pub fn trim(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(TRIM, offset, len, &[])?;
        self.reply()
    }

    pub fn write_zeroes(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(WRITE_ZEROES, offset, len, &[])?;
        self.reply()
    }

    /// Leaves politely and waits until the server is through with us.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.request(DISCONNECT, 0, 0, &[])?;
        match self.stream.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::other("an answer to a disconnect")),
        }
    }
}
