//! The activity log as the engine uses it for each write, and what one of its transactions costs.

use super::{Operation, scattered};
use engine::activity::{ActivityLog, Hold};
use metadata::AlTransaction;
use std::hint::black_box;
use types::ExtentIndex;

/// DRBD's default `al-extents`, and the ring that goes with it.
const SLOTS: u16 = 1237;
const RING_BLOCKS: u32 = 8;

/// An extent that is in the log: reference taken and given back.
pub fn hot() -> Operation {
    let mut log = ActivityLog::new(SLOTS, RING_BLOCKS, 1);
    Box::new(move |number| {
        let extent = ExtentIndex(scattered(number, 1024) as u32);
        hold(&mut log, extent);
        log.release([extent]);
    })
}

/// An extent that is not, and pushes one out: with a transaction of its own, as at depth 1.
pub fn cold() -> Operation {
    let mut log = ActivityLog::new(SLOTS, RING_BLOCKS, 1);
    Box::new(move |number| {
        let extent = ExtentIndex(scattered(number, 1 << 20) as u32);
        hold(&mut log, extent);
        log.release([extent]);
    })
}

fn hold(log: &mut ActivityLog, extent: ExtentIndex) {
    match log.hold([extent]) {
        Hold::Hot => {}
        Hold::Pending(_) => {
            black_box(log.start_transaction());
            log.transaction_written();
        }
        Hold::Full => unreachable!("one reference at a time"),
    }
}

/// The block that goes to the disk: all of the context, one change.
pub fn encode() -> Operation {
    let context = (0..919).map(|slot| Some(ExtentIndex(slot * 3))).collect();
    let updates = vec![(17, Some(ExtentIndex(4711)))];
    let mut transaction = AlTransaction { number: 1, slot_count: SLOTS, context_first: 0, context, updates };
    Box::new(move |number| {
        transaction.number = number as u32;
        black_box(transaction.encode());
    })
}
