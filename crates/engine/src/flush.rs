//! The application's flushes: what was completed before is durable, here and by the protocol on the peers (rule FL-1).

use alloc::vec::Vec;

use types::{DiskState, IoError, LinkId, NodeId, RequestId, Time, VolumeNumber};

use crate::api::{DiskOp, Effect, Protocol};
use crate::planted::{Bug, planted};
use crate::request::Local;
use crate::slab::Key;
use crate::volume::Parked;
use crate::{Engine, IoKind};

/// A flush of the application: durable here, and the epochs of peers under protocol B and C acknowledged (rule FL-1).
pub(crate) struct Flush {
    pub request: RequestId,
    pub volume: VolumeNumber,
    pub since: Time,
    pub local: Local,
    /// Peer, link and the last barrier that must be acknowledged.
    pub waits: Vec<(NodeId, LinkId, u32)>,
    /// A peer that it waited for was lost.
    pub unheard: bool,
}

impl Engine {
    pub(crate) fn start_flush(&mut self, number: VolumeNumber, parked: Parked) {
        self.close_epoch();
        let own = self.volume(number).disk == DiskState::UpToDate;
        let waits = self
            .peers
            .values()
            .filter(|p| p.is_connected() && !(own && p.config.protocol == Protocol::A))
            .filter(|_| !planted(Bug::FlushForgetsPeers))
            .filter_map(|p| Some((p.id, p.link_id()?, p.last_open_barrier()?)))
            .collect();
        let writable = self.volume(number).is_writable();
        let local = if writable { Local::Pending } else { Local::None };
        let key = self.flushes.insert(Flush {
            request: parked.request,
            volume: number,
            since: parked.since,
            local,
            waits,
            unheard: false,
        });
        if writable {
            self.disk(number, IoKind::Flush(key), DiskOp::Flush);
        }
        self.retire = true;
    }

    pub(crate) fn local_flush_done(&mut self, key: Key, result: Result<(), IoError>) {
        let flush = self.flushes.get_mut(key).expect("a flush stays until its local part is settled");
        let number = flush.volume;
        flush.local = match result {
            Ok(()) => Local::Ok,
            Err(error) => Local::Failed(error),
        };
        if result.is_err() {
            self.local_flush_failed(number);
        }
        self.retire = true;
    }

    pub(crate) fn flush_barrier_acked(&mut self, peer: NodeId, barrier: u32) {
        let keys: Vec<Key> = self.flushes.iter().map(|(key, _)| key).collect();
        for key in keys {
            let flush = self.flushes.get_mut(key).expect("listed above");
            flush.waits.retain(|(p, _, b)| !(*p == peer && *b == barrier));
        }
        self.retire = true;
    }

    pub(crate) fn complete_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let keys: Vec<Key> = self.flushes.iter().map(|(key, _)| key).collect();
        for key in keys {
            let flush = self.flushes.get(key).expect("listed above");
            if flush.local == Local::Pending || !flush.waits.is_empty() {
                continue;
            }
            let volume = self.volume(flush.volume);
            let settled = volume.backing.as_ref().is_none_or(|b| b.is_settled());
            let confirmed = flush.local == Local::Ok || volume.generation_unconfirmed.is_empty();
            if !settled || !confirmed {
                continue;
            }
            let flush = self.flushes.remove(key).expect("listed above");
            // Without good data of its own the peers' epochs are the durability that there is.
            let own = self.volume(flush.volume).disk == DiskState::UpToDate;
            let elsewhere = self.up_to_date_peer(flush.volume).is_some();
            let result = match flush.local {
                _ if elsewhere => Ok(()),
                Local::Failed(error) => Err(error),
                _ if flush.unheard && !own => Err(IoError::Io),
                _ => Ok(()),
            };
            if result.is_ok() {
                let took = self.now.since(flush.since);
                self.volume_mut(flush.volume).latency.flush.add(took);
            }
            self.emit(Effect::Complete { request: flush.request, result });
        }
    }
}
