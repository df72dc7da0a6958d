//! Deadlines: handshakes, pings, peers that do not answer, peer acks, transactions, the pace of a resync.

use core::time::Duration;

use types::{ConnectionState, NodeId, Time};

use crate::Engine;
use crate::connect::{End, Phase};
use crate::peer::{BARRIER_DELAY, Peer, PeerDevice};

/// How long changed bitmap pages wait for more. Source: docs/ondisk.md "Bitmap", as DRBD does in a resync.
const BITMAP_DELAY: Duration = Duration::from_secs(2);

/// Later than any deadline.
const NEVER: Time = Time(u64::MAX);

impl Engine {
    /// When the next `Tick` is due. `None`: nothing waits for time.
    pub fn next_deadline(&self) -> Option<Time> {
        let mut next = self.twophase.deadline().unwrap_or(NEVER).min(self.barriers_due.unwrap_or(NEVER));
        for volume in self.volumes.values() {
            next = next.min(volume.bitmap_due.unwrap_or(NEVER));
            next = next.min(volume.sweep.as_ref().map_or(NEVER, |s| s.due));
        }
        for peer in self.peers.values() {
            next = next.min(self.link_deadline(peer)).min(self.peer_ack_deadline(peer));
            for device in peer.volumes.values() {
                next = next.min(wake_at(device, peer).filter(|at| *at > self.now).unwrap_or(NEVER));
            }
        }
        (next < NEVER).then_some(next)
    }

    fn peer_ack_deadline(&self, peer: &Peer) -> Time {
        peer.peer_ack.map_or(NEVER, |p| p.since + self.config.peer_ack_delay)
    }

    fn link_deadline(&self, peer: &Peer) -> Time {
        let Some(link) = &peer.link else { return NEVER };
        let ping = match link.pings.front() {
            Some(sent) => *sent + ping_patience(peer),
            None if matches!(link.phase, Phase::Connected) => link.heard + peer.config.ping_int,
            None => NEVER,
        };
        link.deadline.unwrap_or(NEVER).min(ping).min(self.ko_deadline(peer))
    }

    /// When the oldest unanswered write or barrier is older than the peer may take.
    fn ko_deadline(&self, peer: &Peer) -> Time {
        let write = self.oldest_waiting(peer.id);
        let barrier = peer.closed_epochs.front().map(|e| e.sent);
        match (write.or(barrier), ko_patience(peer)) {
            (Some(at), Some(patience)) => barrier.map_or(at, |barrier| at.min(barrier)) + patience,
            _ => NEVER,
        }
    }

    /// When the oldest write was submitted that `peer` has not answered.
    fn oldest_waiting(&self, peer: NodeId) -> Option<Time> {
        for key in &self.transfer_log {
            if let Some(write) = self.writes.get(*key)
                && write.legs.iter().any(|l| l.peer == peer && l.is_waiting())
            {
                return Some(write.submitted);
            }
        }
        None
    }

    /// Whoever sets a timer says so, unless it is one of those that [`Self::timers_quiet_until`] knows to come.
    pub(crate) fn timer_is_set(&mut self) {
        self.timers_from = Time::ZERO;
    }

    /// After every input: what was due until now.
    pub(crate) fn run_timers(&mut self) {
        if self.now < self.timers_from {
            self.bitmap_timers();
            debug_assert!(!self.is_timer_due(), "a timer is due that nobody said was set");
            return;
        }
        self.run_due_timers();
        self.timers_from = self.timers_quiet_until();
    }

    fn is_timer_due(&self) -> bool {
        let due = |peer: &Peer| self.link_deadline(peer).min(self.peer_ack_deadline(peer)) <= self.now;
        let resync = |peer: &Peer| peer.volumes.values().any(is_paced);
        self.peers.values().any(|peer| due(peer) || resync(peer))
            || self.volumes.values().any(|volume| volume.sweep.as_ref().is_some_and(|s| s.due <= self.now))
            || self.twophase.open_deadline().is_some_and(|at| at <= self.now)
            || self.barriers_due.is_some_and(|at| at <= self.now)
    }

    /// Until when no timer can be due: none that runs now, and none that a request, an acknowledgement or a ping
    /// starts from now on without a word. The pace of a resync changes with every block: it is looked at each time.
    fn timers_quiet_until(&self) -> Time {
        let mut soonest = self.config.peer_ack_delay.min(BARRIER_DELAY);
        for peer in self.peers.values() {
            if peer.volumes.values().any(is_paced) {
                return Time::ZERO;
            }
            soonest = soonest.min(peer.config.ping_timeout).min(ko_patience(peer).unwrap_or(Duration::MAX));
        }
        let new = self.now + soonest;
        self.next_deadline().map_or(new, |at| at.min(new))
    }

    fn run_due_timers(&mut self) {
        let now = self.now;
        self.twophase_timers();
        self.bitmap_timers();
        self.sweep_timers();
        if self.barriers_due.is_some_and(|at| at <= now) {
            self.send_due_barriers();
        }
        for peer in self.peer_ids() {
            if self.peer_ack_deadline(self.peer(peer)) <= now {
                self.send_peer_ack(peer);
            }
            if self.link_deadline(self.peer(peer)) <= now {
                self.link_timers(peer);
            }
            for position in 0..self.volumes.len() {
                let entry = self.peer(peer);
                let (number, device) = entry.volumes.at(position);
                let wake = wake_at(device, entry);
                if wake.is_some_and(|at| at <= now) {
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
        let patience = ping_patience(self.peer(peer));
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
        if self.ko_deadline(self.peer(peer)) <= now {
            let end = End::Retry(Duration::ZERO);
            let text = "a write or barrier is not answered within timeout x ko-count";
            self.end_connection(peer, end, ConnectionState::Timeout, text);
        }
    }
}

/// A handshake does more than answer pings.
fn ping_patience(peer: &Peer) -> Duration {
    if peer.is_connected() { peer.config.ping_timeout } else { peer.config.ping_timeout * 4 }
}

/// How long a write or a barrier may be without an answer. `None`: for ever.
fn ko_patience(peer: &Peer) -> Option<Duration> {
    (peer.config.ko_count > 0).then(|| peer.config.timeout * peer.config.ko_count)
}

/// Blocks are asked for at a rate.
fn is_paced(device: &PeerDevice) -> bool {
    device.resync.is_some() || device.verify.is_some()
}

/// When the next block may be asked for.
fn wake_at(device: &PeerDevice, peer: &Peer) -> Option<Time> {
    let rate = u64::from(peer.config.resync.max_rate_kib) * 1024;
    let resync = device.resync.as_ref().and_then(|resync| resync.wake_at(rate));
    resync.or_else(|| device.verify.as_ref().and_then(|verify| verify.wake_at(rate, &peer.config)))
}
