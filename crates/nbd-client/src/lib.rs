//! The smallest NBD client: fixed newstyle, NBD_OPT_GO, simple replies, one request at a time. For what the tools
//! cannot say: which writes exactly were acknowledged. Numbers: the NBD protocol document.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct Client {
    stream: Box<dyn Stream>,
    pub size_bytes: u64,
    requests: u64,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const OPT_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

impl Client {
    pub fn connect(path: &Path) -> io::Result<Client> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(crate::PATIENCE))?;
        Client::negotiate(Box::new(stream))
    }

    /// Over TCP, as a program in that namespace.
    pub fn connect_from(namespace: &str, address: SocketAddr) -> io::Result<Client> {
        let stream = crate::network::inside(namespace, || TcpStream::connect_timeout(&address, crate::PATIENCE))?;
        stream.set_read_timeout(Some(crate::PATIENCE))?;
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
        client.stream.write_all(&[b"IHAVEOPT", &OPT_GO.to_be_bytes()[..], &6u32.to_be_bytes(), &[0; 6]].concat())?;
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
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&self.requests.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes)
    }

    fn reply(&mut self) -> io::Result<()> {
        let magic = u32::from_be_bytes(self.take()?);
        let error = u32::from_be_bytes(self.take()?);
        let handle = u64::from_be_bytes(self.take()?);
        match (magic, error) {
            (0x6744_6698, 0) if handle == self.requests => Ok(()),
            (0x6744_6698, error) if handle == self.requests => Err(io::Error::from_raw_os_error(error as i32)),
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
