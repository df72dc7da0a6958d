//! Deadlines: handshakes, pings, peers that do not answer, peer acks, transactions, the pace of a resync.

use core::time::Duration;

use types::{ConnectionState, NodeId, Time};

use crate::Engine;
use crate::connect::{End, Phase};

/// How long changed bitmap pages wait for more. Source: docs/ondisk.md "Bitmap", as DRBD does in a resync.
const BITMAP_DELAY: Duration = Duration::from_secs(2);

impl Engine {
    /// When the next `Tick` is due. `None`: nothing waits for time.
    pub fn next_deadline(&self) -> Option<Time> {
        let mut next = self.twophase.deadline();
        let mut consider = |at: Option<Time>| {
            if let Some(at) = at {
                next = Some(next.map_or(at, |n| n.min(at)));
            }
        };
        for volume in self.volumes.values() {
            consider(volume.bitmap_due);
            consider(volume.sweep.as_ref().map(|s| s.due));
        }
        for peer in self.peers.values() {
            consider(self.link_deadline(peer.id));
            consider(peer.peer_ack.map(|p| p.since + self.config.peer_ack_delay));
            let rate = u64::from(peer.config.resync.max_rate_kib) * 1024;
            for device in peer.volumes.values() {
                consider(device.resync.as_ref().and_then(|r| r.wake_at(rate)).filter(|at| *at > self.now));
            }
        }
        next
    }

    fn link_deadline(&self, peer: NodeId) -> Option<Time> {
        let entry = self.peer(peer);
        let link = entry.link.as_ref()?;
        let ping = match link.pings.front() {
            Some(sent) => Some(*sent + self.ping_patience(peer)),
            None if matches!(link.phase, Phase::Connected) => Some(link.heard + entry.config.ping_int),
            None => None,
        };
        [link.deadline, ping, self.ko_deadline(peer)].into_iter().flatten().min()
    }

    /// A handshake does more than answer pings.
    fn ping_patience(&self, peer: NodeId) -> Duration {
        let entry = self.peer(peer);
        if entry.is_connected() { entry.config.ping_timeout } else { entry.config.ping_timeout * 4 }
    }

    /// When the oldest unanswered write or barrier is older than the peer may take.
    fn ko_deadline(&self, peer: NodeId) -> Option<Time> {
        let entry = self.peer(peer);
        if entry.config.ko_count == 0 {
            return None;
        }
        let patience = entry.config.timeout * entry.config.ko_count;
        let write = self
            .transfer_log
            .iter()
            .filter_map(|key| self.writes.get(*key))
            .find(|w| w.legs.iter().any(|l| l.peer == peer && l.is_waiting()))
            .map(|w| w.submitted);
        let barrier = entry.closed_epochs.front().map(|e| e.sent);
        [write, barrier].into_iter().flatten().min().map(|at| at + patience)
    }

    pub(crate) fn run_timers(&mut self) {
        let now = self.now;
        self.twophase_timers();
        self.bitmap_timers();
        self.sweep_timers();
        for peer in self.peer_ids() {
            if self.peer(peer).peer_ack.is_some_and(|p| p.since + self.config.peer_ack_delay <= now) {
                self.send_peer_ack(peer);
            }
            if self.link_deadline(peer).is_some_and(|at| at <= now) {
                self.link_timers(peer);
            }
            let rate = u64::from(self.peer(peer).config.resync.max_rate_kib) * 1024;
            for position in 0..self.volumes.len() {
                let (number, device) = self.peer(peer).volumes.at(position);
                let Some(resync) = &device.resync else { continue };
                if resync.wake_at(rate).is_some_and(|at| at <= now) {
                    self.volume_mut(number).pump = true;
                }
            }
        }
    }

    /// Bits that were set or cleared under the cover of the activity log reach the disk together.
    fn bitmap_timers(&mut self) {
        let now = self.now;
        for volume in self.volumes.values_mut() {
            let Some(backing) = &mut volume.backing else {
                volume.bitmap_due = None;
                continue;
            };
            match volume.bitmap_due {
                None if backing.writer.is_stale() => volume.bitmap_due = Some(now + BITMAP_DELAY),
                Some(at) if at <= now => {
                    volume.bitmap_due = None;
                    backing.writer.want_bitmap();
                }
                _ => {}
            }
        }
    }

    fn link_timers(&mut self, peer: NodeId) {
        let now = self.now;
        let patience = self.ping_patience(peer);
        let ping_int = self.peer(peer).config.ping_int;
        let Some(link) = self.peer_mut(peer).link.as_mut() else { return };
        if link.deadline.is_some_and(|at| at <= now) {
            let phase = alloc::format!("handshake not finished in time (waiting in {:?})", link.phase);
            if let Some(text) = self.peer(peer).refused.clone() {
                return self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, &text);
            }
            let end = End::Retry(Duration::from_secs(1));
            return self.end_connection(peer, end, ConnectionState::Timeout, &phase);
        }
        match link.pings.front().copied() {
            Some(sent) if sent + patience <= now => {
                if link.heard > sent {
                    // Something came on the control socket: the peer lives, its answer is on the way.
                    link.pings[0] = link.heard;
                } else {
                    let end = End::Retry(Duration::ZERO);
                    return self.end_connection(peer, end, ConnectionState::Timeout, "no answer to a ping in time");
                }
            }
            None if matches!(link.phase, Phase::Connected) && link.heard + ping_int <= now => {
                self.ping(peer);
            }
            _ => {}
        }
        if self.ko_deadline(peer).is_some_and(|at| at <= now) {
            let end = End::Retry(Duration::ZERO);
            let text = "a write or barrier is not answered within timeout x ko-count";
            self.end_connection(peer, end, ConnectionState::Timeout, text);
        }
    }
}
