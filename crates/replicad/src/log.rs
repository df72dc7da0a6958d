//! One line for every event of the engine, with its reason; and few lines for what strangers do.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use engine::Event;
use types::range::SECTOR_BYTES;

pub const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

pub fn event(event: &Event) {
    match event {
        Event::Role { from, to, reason } => tracing::info!("role {from} -> {to}: {reason}"),
        Event::Disk { volume, from, to, reason } => {
            tracing::info!("volume {volume}: disk {from} -> {to}: {reason}");
        }
        Event::Connection { peer, from, to, reason } => {
            tracing::info!("peer {peer}: connection {from} -> {to}: {reason}");
        }
        Event::PeerRole { peer, from, to } => tracing::info!("peer {peer}: role {from} -> {to}"),
        Event::Replication { peer, volume, from, to, reason } => {
            tracing::info!("peer {peer}, volume {volume}: replication {from} -> {to}: {reason}");
        }
        Event::PeerDisk { peer, volume, from, to, reason } => {
            tracing::info!("peer {peer}, volume {volume}: peer disk {from} -> {to}: {reason}");
        }
        Event::Handshake { peer, volume, text } => tracing::info!("peer {peer}, volume {volume}: handshake: {text}"),
        Event::SplitBrain { peer, volume } => tracing::error!(
            "peer {peer}, volume {volume}: split brain: both sides wrote without the other; the connection is dropped. \
             Choose whose changes to give up and run there: replicactl connect --discard-my-data"
        ),
        Event::NewGeneration { volume, current, reason } => {
            tracing::info!("volume {volume}: new data generation {current}: {reason}");
        }
        Event::ResyncStarted { peer, volume, source, bits } => {
            let direction = if *source { "to" } else { "from" };
            tracing::info!("volume {volume}: resync {direction} peer {peer} of {bits} blocks");
        }
        Event::ResyncFinished { peer, volume, source, took, failed_blocks } => {
            let direction = if *source { "to" } else { "from" };
            tracing::info!("volume {volume}: resync {direction} peer {peer} took {took:?}, {failed_blocks} failed");
        }
        Event::VerifyStarted { peer, volume, driving, from, to } => {
            let by = if *driving { "with" } else { "by" };
            let sectors = (from / SECTOR_BYTES, to / SECTOR_BYTES);
            tracing::info!("volume {volume}: verify {by} peer {peer}, sectors {} to {}", sectors.0, sectors.1);
        }
        Event::VerifyFinished { peer, volume, driving, took, different, skipped, complete } => {
            let by = if *driving { "with" } else { "by" };
            let how = if *complete { "finished" } else { "was interrupted" };
            let line = format!(
                "volume {volume}: verify {by} peer {peer} {how} after {took:?}: {different} blocks of 4 KiB differ, \
                 {skipped} could not be compared"
            );
            if *different > 0 { tracing::error!("{line}") } else { tracing::info!("{line}") }
        }
        Event::Size { volume, bytes } => tracing::info!("volume {volume}: size is {bytes} bytes"),
        Event::Protocol { peer, from, to, reason } => {
            tracing::info!("peer {peer}: protocol {from:?} -> {to:?}: {reason}");
        }
        Event::Warning { text } => tracing::warn!("{text}"),
    }
}

/// For what strangers can cause as often as they like: at most one line per interval, which says how many were left
/// out.
#[derive(Default)]
pub struct RefusalLog {
    state: Mutex<(Option<Instant>, u64)>,
}

impl RefusalLog {
    pub fn note(&self, what: std::fmt::Arguments<'_>) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if state.0.is_some_and(|last| last.elapsed() < REFUSAL_INTERVAL) {
            state.1 += 1;
            return;
        }
        match std::mem::take(&mut state.1) {
            0 => tracing::warn!("{what}"),
            left_out => tracing::warn!("{what} ({left_out} similar lines left out)"),
        }
        state.0 = Some(Instant::now());
    }
}
