//! The smallest NBD client: fixed newstyle, NBD_OPT_GO, simple replies, one request at a time.
//! Numbers: the NBD protocol document.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub struct Client {
    stream: UnixStream,
    pub size_bytes: u64,
    requests: u64,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

impl Client {
    pub fn connect(path: &Path) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        let mut client = Client { stream, size_bytes: 0, requests: 0 };
        assert_eq!(&client.take::<16>(), b"NBDMAGICIHAVEOPT");
        client.take::<2>();
        // Fixed newstyle, no zeroes.
        client.send(&3u32.to_be_bytes());
        client.send(&[b"IHAVEOPT", &7u32.to_be_bytes()[..], &6u32.to_be_bytes(), &[0; 6]].concat());
        loop {
            client.take::<12>();
            let kind = u32::from_be_bytes(client.take());
            let mut info = vec![0; u32::from_be_bytes(client.take()) as usize];
            client.stream.read_exact(&mut info).unwrap();
            match (kind, info.get(..2)) {
                (1, _) => return client,
                (3, Some([0, 0])) => client.size_bytes = u64::from_be_bytes(info[2..10].try_into().unwrap()),
                (3, _) => {}
                (other, _) => panic!("NBD_OPT_GO was answered with {other:#x}"),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn request(&mut self, command: u16, offset: u64, len: usize, payload: &[u8]) {
        self.requests += 1;
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&self.requests.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&(len as u32).to_be_bytes());
        bytes.extend_from_slice(payload);
        self.send(&bytes);
    }

    /// The error number of the reply, 0 for success.
    fn reply(&mut self) -> u32 {
        assert_eq!(u32::from_be_bytes(self.take()), 0x6744_6698);
        let error = u32::from_be_bytes(self.take());
        assert_eq!(u64::from_be_bytes(self.take()), self.requests);
        error
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.request(WRITE, offset, bytes.len(), bytes);
        assert_eq!(self.reply(), 0, "write of {} bytes at {offset}", bytes.len());
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.request(READ, offset, len, &[]);
        assert_eq!(self.reply(), 0, "read of {len} bytes at {offset}");
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn flush(&mut self) {
        self.request(FLUSH, 0, 0, &[]);
        assert_eq!(self.reply(), 0, "flush");
    }

    /// Leaves politely and waits until the server is through with us.
    pub fn disconnect(mut self) {
        self.request(DISCONNECT, 0, 0, &[]);
        assert_eq!(self.stream.read(&mut [0]).unwrap(), 0);
    }
}
