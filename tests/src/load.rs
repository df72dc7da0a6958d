//! An application that knows what it was promised: it writes stamped blocks all over the volume, and remembers for
//! each block the newest write that was acknowledged and the newest that was begun. After any accident the block must
//! hold one of those two or one between.

use crate::{Client, pattern};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

pub const BLOCK_BYTES: u64 = 4096;

/// Stamps of one block. 0: nothing was written.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Stamps {
    pub acknowledged: u64,
    pub begun: u64,
}

pub type Written = BTreeMap<u64, Stamps>;

pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    worker: Option<JoinHandle<Written>>,
}

impl Load {
    /// Runs until told to stop, or until the device fails it. Touches blocks of `first..first + blocks`.
    pub fn start(socket: &Path, first: u64, blocks: u64) -> Load {
        let mut client = Client::connect(socket).expect("the device can be opened");
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let worker = std::thread::spawn(move || {
            let mut written = Written::new();
            let mut stamp = 0;
            while !stopped.load(Ordering::Relaxed) {
                stamp += 1;
                // A stride that is prime to the count visits all.
                let block = first + stamp * 7919 % blocks;
                let stamps = written.entry(block).or_default();
                stamps.begun = stamp;
                if client.write(block * BLOCK_BYTES, &content(block, stamp)).is_err() {
                    break;
                }
                stamps.acknowledged = stamp;
                count.store(stamp, Ordering::Relaxed);
            }
            written
        });
        Load { stop, acknowledged, worker: Some(worker) }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until `more` further writes were acknowledged.
    pub fn wait_acknowledged(&self, more: u64) {
        let goal = self.acknowledged() + more;
        let so_far = || format!("{} of {goal} writes", self.acknowledged());
        crate::wait_for("writes under load", so_far, || (self.acknowledged() >= goal).then_some(()));
    }

    /// Ends the load; what it wrote.
    pub fn stop(mut self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.take().expect("stopped once").join().expect("the load does not panic")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The stamp and the block's number come first, so that a block can be told from another one's.
fn content(block: u64, stamp: u64) -> Vec<u8> {
    let mut bytes = pattern(BLOCK_BYTES as usize, stamp);
    bytes[..8].copy_from_slice(&stamp.to_le_bytes());
    bytes[8..16].copy_from_slice(&block.to_le_bytes());
    bytes
}

/// Panics if the device lost an acknowledged write, or holds what was never written there.
pub fn assert_kept(client: &mut Client, written: &Written) {
    let lost: Vec<String> = written.iter().filter_map(|(block, stamps)| fault(client, *block, *stamps)).collect();
    assert!(lost.is_empty(), "{} of {} blocks are wrong:\n{}", lost.len(), written.len(), lost.join("\n"));
}

fn fault(client: &mut Client, block: u64, stamps: Stamps) -> Option<String> {
    let bytes = client.read(block * BLOCK_BYTES, BLOCK_BYTES as u32).expect("the block can be read");
    let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    let whole = bytes == content(block, stamp) || (stamp == 0 && bytes.iter().all(|b| *b == 0));
    let expected = stamps.acknowledged..=stamps.begun;
    (!whole || !expected.contains(&stamp))
        .then(|| format!("block {block} holds stamp {stamp}, not one of {expected:?}"))
}
