//! What the machine can do without us: direct writes and reads of a file, and the same with a round trip of 4 KiB to
//! a second file behind a TCP connection on loopback.

use anyhow::{Context, Result, ensure};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

pub const REQUEST_BYTES: usize = 4096;
const COPY_BYTES: usize = 1 << 20;

/// Memory that direct I/O takes.
struct Aligned {
    start: *mut u8,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        // Safety: the layout is not empty; the result is checked.
        let start = unsafe { alloc_zeroed(Self::layout(len)) };
        assert!(!start.is_null(), "no memory for {len} bytes");
        Aligned { start, len }
    }
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, REQUEST_BYTES).expect("a power of two and a small size")
    }
    fn bytes(&mut self) -> &mut [u8] {
        // Safety: allocated with this length, initialised, and borrowed as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // Safety: allocated with this layout, freed once.
        unsafe { dealloc(self.start, Self::layout(self.len)) }
    }
}

/// Past the page cache where the file system allows it, as the daemon does.
fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
    direct.or_else(|_| options.open(path)).with_context(|| format!("cannot open {}", path.display()))
}

/// A stride that is prime to the count visits all blocks, in no order that helps.
pub fn offset(at: u64, size_bytes: u64) -> u64 {
    let blocks = size_bytes / REQUEST_BYTES as u64;
    at * 7919 % blocks * REQUEST_BYTES as u64
}

pub struct Disks {
    here: File,
    there: std::path::PathBuf,
    size_bytes: u64,
}

impl Disks {
    /// Two files that are written once, so that a later write finds its blocks allocated, as on a disk.
    pub fn new(dir: &Path, size_bytes: u64) -> Result<Disks> {
        for name in ["probe-here", "probe-there"] {
            fill(&open(&dir.join(name))?, size_bytes)?;
        }
        Ok(Disks { here: open(&dir.join("probe-here"))?, there: dir.join("probe-there"), size_bytes })
    }

    pub fn writes_on_one(&self, count: u64) -> Result<f64> {
        let mut buffer = Aligned::new(REQUEST_BYTES);
        per_second(count, |at| Ok(self.here.write_all_at(buffer.bytes(), offset(at, self.size_bytes))?))
    }

    pub fn reads(&self, count: u64) -> Result<f64> {
        let mut buffer = Aligned::new(REQUEST_BYTES);
        per_second(count, |at| Ok(self.here.read_exact_at(buffer.bytes(), offset(at, self.size_bytes))?))
    }

    /// Local write and round trip with remote write at the same time: the limit of protocol C.
    pub fn writes_on_two(&self, count: u64) -> Result<f64> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut stream = TcpStream::connect(listener.local_addr()?)?;
        stream.set_nodelay(true)?;
        let (peer, file, size_bytes) = (listener.accept()?.0, open(&self.there)?, self.size_bytes);
        let answers = std::thread::spawn(move || answer(peer, &file, count, size_bytes));
        let mut buffer = Aligned::new(REQUEST_BYTES);
        let result = per_second(count, |at| {
            stream.write_all(buffer.bytes())?;
            self.here.write_all_at(buffer.bytes(), offset(at, self.size_bytes))?;
            stream.read_exact(&mut [0])?;
            Ok(())
        });
        answers.join().expect("the other end does not panic")?;
        result
    }
}

fn answer(mut peer: TcpStream, file: &File, count: u64, size_bytes: u64) -> Result<()> {
    peer.set_nodelay(true)?;
    let mut buffer = Aligned::new(REQUEST_BYTES);
    for at in 0..count {
        peer.read_exact(buffer.bytes())?;
        file.write_all_at(buffer.bytes(), offset(at, size_bytes))?;
        peer.write_all(&[1])?;
    }
    Ok(())
}

/// Requests per second.
pub fn per_second(count: u64, mut request: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for at in 0..count {
        request(at)?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn fill(file: &File, size_bytes: u64) -> Result<()> {
    let mut buffer = Aligned::new(COPY_BYTES);
    for at in (0..size_bytes).step_by(COPY_BYTES) {
        file.write_all_at(buffer.bytes(), at)?;
    }
    Ok(file.sync_all()?)
}

/// Writes a file, so that its blocks are allocated.
pub fn prepare(path: &Path, size_bytes: u64) -> Result<()> {
    fill(&open(path)?, size_bytes)
}

/// MiB per second of reading one file and writing the other, one piece after the other, as `dd` does.
pub fn copy(dir: &Path, size_bytes: u64) -> Result<f64> {
    let (from, to) = (open(&dir.join("probe-here"))?, open(&dir.join("probe-there"))?);
    let mut buffer = Aligned::new(COPY_BYTES);
    let start = Instant::now();
    for at in (0..size_bytes).step_by(COPY_BYTES) {
        from.read_exact_at(buffer.bytes(), at)?;
        to.write_all_at(buffer.bytes(), at)?;
    }
    to.sync_all()?;
    Ok((size_bytes >> 20) as f64 / start.elapsed().as_secs_f64())
}

/// MiB per second of copying single blocks from one sparse file to another. The first has them.
pub fn copy_scattered(dir: &Path, size_bytes: u64, offsets: &[u64]) -> Result<f64> {
    let (from, to) = (open(&dir.join("probe-here"))?, open(&dir.join("probe-there"))?);
    [&from, &to].into_iter().try_for_each(|file| file.set_len(size_bytes))?;
    let mut buffer = Aligned::new(REQUEST_BYTES);
    buffer.bytes().fill(1);
    offsets.iter().try_for_each(|offset| from.write_all_at(buffer.bytes(), *offset))?;
    let blocks = per_second(offsets.len() as u64, |at| {
        from.read_exact_at(buffer.bytes(), offsets[at as usize])?;
        Ok(to.write_all_at(buffer.bytes(), offsets[at as usize])?)
    })?;
    Ok(blocks * REQUEST_BYTES as f64 / f64::from(1 << 20))
}

/// MiB per second through a socket of loopback, `piece` bytes at a time, until the other end has all.
pub fn link(bytes: u64, piece: usize) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    sender.set_nodelay(true)?;
    let mut receiver = listener.accept()?.0;
    let reading = std::thread::spawn(move || -> Result<()> {
        let mut buffer = vec![0; piece];
        (0..bytes / piece as u64).try_for_each(|_| receiver.read_exact(&mut buffer))?;
        Ok(receiver.write_all(&[1])?)
    });
    let (buffer, start) = (vec![1; piece], Instant::now());
    (0..bytes / piece as u64).try_for_each(|_| sender.write_all(&buffer))?;
    sender.read_exact(&mut [0])?;
    let seconds = start.elapsed().as_secs_f64();
    reading.join().expect("the other end does not panic")?;
    Ok(bytes as f64 / f64::from(1 << 20) / seconds)
}

/// The probe's files.
pub fn remove(dir: &Path) -> Result<()> {
    for name in ["probe-here", "probe-there"] {
        std::fs::remove_file(dir.join(name)).with_context(|| format!("cannot remove {name}"))?;
    }
    Ok(())
}

/// An error if the first bytes of two files differ.
pub fn compare(one: &Path, other: &Path, size_bytes: u64) -> Result<()> {
    let (mut left, mut right) = (vec![0; COPY_BYTES], vec![0; COPY_BYTES]);
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (a, b) = (open(one)?, open(other)?);
    for at in (0..size_bytes).step_by(COPY_BYTES) {
        let len = (size_bytes - at).min(COPY_BYTES as u64) as usize;
        a.read_exact_at(&mut left[..len], at)?;
        b.read_exact_at(&mut right[..len], at)?;
        ensure!(left[..len] == right[..len], "{} and {} differ behind {at}", one.display(), other.display());
    }
    Ok(())
}
