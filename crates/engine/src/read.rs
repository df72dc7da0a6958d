//! The application's reads: the own disk, or a peer's. An error is tried elsewhere (rule RD-1).

use types::{
    ByteRange, DiskState, IoError, LinkId, NodeId, NodeSet, PayloadId, ReplicationState, RequestId, Time, VolumeNumber,
};
use wire::Message;
use wire::message::BlockRequest;

use crate::api::{DiskOp, Effect};
use crate::slab::Key;
use crate::volume::Parked;
use crate::{Engine, IoKind};

pub(crate) struct Read {
    pub request: RequestId,
    pub volume: VolumeNumber,
    pub range: ByteRange,
    pub payload: PayloadId,
    pub since: Time,
    pub at: ReadAt,
    /// Peers that could not answer.
    pub tried: NodeSet,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReadAt {
    Disk,
    Peer(NodeId, LinkId),
}

impl Engine {
    pub(crate) fn start_read(&mut self, number: VolumeNumber, parked: Parked) {
        let payload = parked.payload.expect("a read brings its buffer: checked at submission");
        let key = self.reads.insert(Read {
            request: parked.request,
            volume: number,
            range: parked.range,
            payload,
            since: parked.since,
            at: ReadAt::Disk,
            tried: NodeSet::EMPTY,
        });
        self.route_read(key);
    }

    /// Rule RD-1: an UpToDate disk answers; a sync target's only where no slot has a bit; otherwise a peer.
    fn route_read(&mut self, key: Key) {
        let read = self.reads.get(key).expect("the caller holds it");
        let (number, range, payload, tried) = (read.volume, read.range, read.payload, read.tried);
        let volume = self.volume(number);
        let local = match (&volume.backing, volume.disk) {
            _ if tried.contains(self.me) => false,
            (Some(_), DiskState::UpToDate) => true,
            (Some(backing), DiskState::Inconsistent) if self.bits_are_exchanged(number) => {
                let blocks = range.blocks_touched(backing.block_bytes());
                !backing.bitmap.slots().any(|slot| backing.bitmap.any(slot, blocks.clone()))
            }
            _ => false,
        };
        if local {
            self.reads.get_mut(key).expect("the caller holds it").at = ReadAt::Disk;
            self.volume_mut(number).counters.read_bytes += range.len();
            return self.disk(number, IoKind::Read(key), DiskOp::ReadInto { range, payload });
        }
        let candidate = self.peers.values().find(|p| {
            p.is_connected()
                && !tried.contains(p.id)
                && p.volumes
                    .get(&number)
                    .is_some_and(|d| d.disk == DiskState::UpToDate && d.replication >= ReplicationState::Established)
        });
        let Some((peer, link)) = candidate.and_then(|p| Some((p.id, p.link_id()?))) else {
            return self.end_read(key, Err(IoError::Io));
        };
        self.reads.get_mut(key).expect("the caller holds it").at = ReadAt::Peer(peer, link);
        let request = BlockRequest { range, block_id: key, dagtag: None };
        self.send_data(peer, Some(number), Message::DataRequest(request), None);
    }

    /// The bits name all that differs from the source. Before the exchange, and after the link is lost, writes may have
    /// passed this disk by.
    fn bits_are_exchanged(&self, number: VolumeNumber) -> bool {
        self.peers.values().filter_map(|p| p.volumes.get(&number)).any(|d| d.is_target())
    }

    fn end_read(&mut self, key: Key, result: Result<(), IoError>) {
        let read = self.reads.remove(key).expect("the caller holds it");
        self.emit(Effect::Complete { request: read.request, result });
        self.release(Some(read.payload));
        let took = self.now.since(read.since);
        let volume = self.volume_mut(read.volume);
        volume.pump = true;
        if result.is_ok() {
            volume.latency.read.add(took);
        }
    }

    pub(crate) fn local_read_done(&mut self, key: Key, result: Result<(), IoError>) {
        let read = self.reads.get(key).expect("a read stays until it is answered");
        let (number, range) = (read.volume, read.range);
        if result.is_ok() {
            return self.end_read(key, Ok(()));
        }
        // The block is bad here: whoever repairs it needs the bit (rule BM-1).
        self.mark_all_but(number, NodeSet::EMPTY, range);
        self.local_io_failed(number, "read failed");
        let me = self.me;
        self.retry_read(key, me);
    }

    /// `at` could not answer: another way, or an error.
    pub(crate) fn retry_read(&mut self, key: Key, at: NodeId) {
        let read = self.reads.get_mut(key).expect("the caller holds it");
        read.tried = read.tried.with(at);
        self.route_read(key);
    }

    /// A peer answers a read with data. The driver's new buffer takes the place of the request's.
    pub(crate) fn remote_read_done(&mut self, peer: NodeId, key: Key, range: ByteRange, payload: Option<PayloadId>) {
        let ours =
            self.reads.get(key).is_some_and(|r| r.range == range && matches!(r.at, ReadAt::Peer(p, _) if p == peer));
        let Some(from) = payload.filter(|_| ours) else {
            self.release(payload);
            return self.protocol_error(peer, "DATA_REPLY answers no request of ours");
        };
        let read = self.reads.get(key).expect("looked at it just now");
        self.emit(Effect::Copy { from, to: read.payload });
        self.release(Some(from));
        self.end_read(key, Ok(()));
    }

    pub(crate) fn remote_read_failed(&mut self, peer: NodeId, key: Key) {
        if self.reads.get(key).is_some_and(|r| matches!(r.at, ReadAt::Peer(p, _) if p == peer)) {
            self.retry_read(key, peer);
        }
    }
}
