//! From "the operator wants it" to Connected and back: links, features, authentication, options, the exchange of
//! sizes, identifiers and states, and the connect transaction that ends it.
//!
//! The lower node id starts the connect transaction (docs/wire.md "Our handshake"): PREPARE, then its device packets.
//! The higher one answers with its own, and with its vote once it has decided every volume. Both sides decide from
//! the same data, so both must come to mirrored results; COMMIT makes them effective for all volumes at once.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use rand_chacha::rand_core::RngCore;
use types::{ConnectionState, DiskState, LinkId, NodeId, PayloadId, ReplicationState, Role, VolumeNumber};
use wire::message::{ConnectionFeatures, ProtocolOptions, QueueLimits, Sizes, SyncParam, Uuids, uuid_flag};
use wire::{Message, Socket, auth, version};

use crate::Engine;
use crate::api::{CommandId, Effect, Event, LinkError, Refusal};
use crate::epoch::Epochs;
use crate::generation::same_claims;
use crate::handshake::{Decision, RetryReason, Rule, Strategy};
use crate::peer::{Link, PeerDevice};
use crate::planted::{Bug, planted};
use crate::twophase::Change;
use crate::volume::Salvage;

/// After a failed handshake. Source: docs/wire.md "Timers".
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How far a handshake got.
#[derive(Debug)]
pub(crate) enum Phase {
    Features,
    /// Our challenge; whether the peer's response was right; whether we answered its challenge.
    Auth {
        challenge: [u8; 64],
        verified: bool,
        answered: bool,
    },
    Options,
    /// Device packets. `sent`: ours are out; `transaction`: the connect transaction is open.
    Exchange {
        sent: bool,
    },
    Connected,
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Try again after this.
    Retry(Duration),
    StandAlone,
}

impl Engine {
    // ------------------------------------------------------------------ commands

    pub(crate) fn connect(&mut self, id: CommandId, peer: NodeId, discard_my_data: bool) {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return self.refuse(id, unknown_peer(peer));
        };
        if discard_my_data && self.role == Role::Primary {
            return self.refuse(
                id,
                Refusal {
                    code: -123,
                    rule: "ERR_DISCARD_IMPOSSIBLE",
                    state: "role:Primary".to_string(),
                    next_step: "demote this node first: a Primary cannot discard its data",
                },
            );
        }
        let entry_state = entry.connection;
        if discard_my_data && entry.is_connected() {
            // It would strike at some later handshake, when this node's data may be the only good one.
            return self.refuse(
                id,
                Refusal {
                    code: -125,
                    rule: "ERR_NET_CONFIGURED",
                    state: format!("connection:Connected to node {peer}"),
                    next_step: "nothing is in conflict; to throw this node's data away use invalidate",
                },
            );
        }
        entry.wanted = true;
        entry.discard_my_data = discard_my_data;
        if entry_state == ConnectionState::StandAlone {
            self.set_connection(peer, ConnectionState::Unconnected, "connect");
            self.start_connecting(peer, Duration::ZERO);
        }
        self.reply(id, Ok(()));
    }

    pub(crate) fn disconnect(&mut self, id: CommandId, peer: NodeId, force: bool) {
        if !self.peers.contains_key(&peer) {
            return self.refuse(id, unknown_peer(peer));
        }
        if self.peer(peer).connection == ConnectionState::StandAlone {
            return self.reply(id, Ok(()));
        }
        if self.peer(peer).is_connected() && !force {
            return self.want_change(Change::Disconnect { peer }, Some(id));
        }
        self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, "disconnect");
        self.reply(id, Ok(()));
    }

    fn start_connecting(&mut self, peer: NodeId, delay: Duration) {
        self.set_connection(peer, ConnectionState::Connecting, "connecting");
        self.emit(Effect::Connect { peer, delay });
    }

    // ------------------------------------------------------------------ links

    pub(crate) fn link_up(&mut self, id: NodeId, link: LinkId, arbiter: bool) {
        let now = self.now;
        let offer = self.our_offer(id);
        let Some(peer) = self.peers.get_mut(&id) else {
            return self.emit(Effect::CloseLink { peer: id, link });
        };
        if peer.connection != ConnectionState::Connecting || peer.link.is_some() {
            return self.emit(Effect::CloseLink { peer: id, link });
        }
        let patience = peer.config.ping_timeout * 4;
        peer.link = Some(Link {
            id: link,
            arbiter,
            phase: Phase::Features,
            protocol: 0,
            features: 0,
            offered: 0,
            v84: None,
            auth: peer.config.auth.clone(),
            protocol_said: None,
            hashes: None,
            deadline: Some(now + patience),
            heard: now,
            pings: VecDeque::new(),
            pings_sent: 0,
            pings_answered: 0,
        });
        peer.refused = None;
        peer.open_epoch = None;
        peer.closed_epochs.clear();
        peer.next_barrier = 0;
        peer.dagtag_sent = None;
        peer.peer_ack = None;
        peer.flush_asked = None;
        peer.epochs = Epochs::new();
        peer.dagtag_received = 0;
        for device in peer.volumes.values_mut() {
            device.sizes = None;
            device.uuids = None;
            device.word = None;
            device.uuids_sent = None;
            device.disk_sent = None;
            device.sequence = 0;
            device.unflushed = false;
        }
        self.timer_is_set();
        self.send_data(id, None, Message::ConnectionFeatures(offer), None);
    }

    pub(crate) fn link_down(&mut self, peer: NodeId, link: LinkId, error: LinkError) {
        if self.peers.get(&peer).and_then(|p| p.link_id()) != Some(link) {
            return;
        }
        let (state, reason) = match error {
            LinkError::Closed => (ConnectionState::BrokenPipe, "the peer closed the connection".to_string()),
            LinkError::Failed(text) => (ConnectionState::NetworkFailure, text),
            LinkError::Protocol(text) => (ConnectionState::ProtocolError, text),
        };
        if let Some(text) = self.peer_mut(peer).refused.take() {
            // We said no: whoever closes first, this connection does not try again by itself.
            return self.lose_link(peer, End::StandAlone, ConnectionState::Disconnecting, text);
        }
        // A refused authentication shows as nothing but a closed socket; do not hammer the peer.
        let delay = if self.peer(peer).is_connected() { Duration::ZERO } else { RETRY_AFTER_FAILURE };
        self.lose_link(peer, End::Retry(delay), state, reason);
    }

    /// Something came that no correct peer sends now.
    pub(crate) fn protocol_error(&mut self, peer: NodeId, what: &str) {
        self.end_connection(peer, End::Retry(RETRY_AFTER_FAILURE), ConnectionState::ProtocolError, what);
    }

    /// Ends the connection from this side.
    pub(crate) fn end_connection(&mut self, peer: NodeId, end: End, state: ConnectionState, reason: &str) {
        if let Some(link) = self.peer(peer).link_id() {
            self.emit(Effect::CloseLink { peer, link });
        } else if end == End::StandAlone {
            self.emit(Effect::StopConnecting { peer });
        }
        self.lose_link(peer, end, state, reason.to_string());
    }

    /// The link is gone, for whatever reason: everything that depended on it ends here.
    fn lose_link(&mut self, peer: NodeId, end: End, state: ConnectionState, reason: String) {
        let was_connected = self.peer(peer).is_connected();
        let had_link = self.peer_mut(peer).link.take().is_some();
        self.set_connection(peer, state, &reason);
        if had_link {
            self.twophase_peer_lost(peer);
            self.remember_compared(peer);
            let lost = self.legs_lost(peer);
            self.peer_writes_lost(peer);
            self.served_lost(peer);
            self.resync_lost(peer);
            if was_connected {
                self.peer_data_lost(peer, &lost);
            }
            self.forget_peer_state(peer);
            if self.connected_peers().is_empty() {
                self.stop_negotiating();
            }
            for volume in self.volumes.values_mut() {
                if let Some(backing) = &mut volume.backing {
                    backing.writer.want_bitmap();
                }
            }
        }
        let entry = self.peer_mut(peer);
        match end {
            End::StandAlone => {
                entry.wanted = false;
                self.set_connection(peer, ConnectionState::StandAlone, &reason);
            }
            End::Retry(delay) => {
                self.set_connection(peer, ConnectionState::Unconnected, &reason);
                self.start_connecting(peer, delay);
            }
        }
        self.check_all_writes();
        self.pump_all();
    }

    // ------------------------------------------------------------------ what arrives

    pub(crate) fn received(
        &mut self,
        peer: NodeId,
        link: LinkId,
        socket: Socket,
        volume: Option<VolumeNumber>,
        message: Message,
        payload: Option<PayloadId>,
    ) {
        let now = self.now;
        let Some(entry) = self.peers.get_mut(&peer).filter(|p| p.link_id() == Some(link)) else {
            return self.release(payload);
        };
        let link = entry.link.as_mut().expect("filtered for it");
        if socket == Socket::Control {
            link.heard = now;
        }
        match (&link.phase, message) {
            (_, Message::Ping) => self.send(peer, Socket::Control, None, Message::PingAck),
            (_, Message::PingAck) => self.ping_acked(peer),
            (Phase::Features, Message::ConnectionFeatures(theirs)) => self.features(peer, theirs),
            (Phase::Auth { .. }, Message::AuthChallenge(challenge)) => self.challenged(peer, &challenge),
            (Phase::Auth { .. }, Message::AuthResponse(response)) => self.responded(peer, &response),
            (Phase::Auth { answered: false, .. }, _) => self.end_connection(
                peer,
                End::StandAlone,
                ConnectionState::Disconnecting,
                "the peer does not authenticate: configure the same shared-secret and cram-hmac-alg on both nodes",
            ),
            (Phase::Options, Message::Protocol(theirs)) => self.options(peer, &theirs),
            (Phase::Options, Message::AuthChallenge(_)) => self
                .protocol_error(peer, "the peer wants authentication: configure its shared-secret and cram-hmac-alg"),
            (Phase::Exchange { .. } | Phase::Connected, message) => {
                let v84 = link.v84.is_some();
                let message = self.with_resync_ids(peer, volume, message);
                if v84 {
                    return self.dispatch_84(peer, volume, message, payload);
                }
                self.dispatch(peer, volume, message, payload);
            }
            (phase, message) => {
                let text = format!("unexpected {} while in {phase:?}", name_of(&message));
                self.release(payload);
                self.protocol_error(peer, &text);
            }
        }
    }

    fn features(&mut self, peer: NodeId, theirs: ConnectionFeatures) {
        let mine = self.our_offer(peer);
        let agreed = version::negotiate(&mine, &theirs);
        let v84 = agreed.as_ref().is_ok_and(version::Agreed::is_v84);
        let (their_id, my_id) = (u32::from(peer.get()), u32::from(self.me.get()));
        if !v84 && (theirs.sender_node_id != their_id || theirs.receiver_node_id != my_id) {
            let text = format!(
                "node ids differ: the peer is {} and takes us for {}, configured are {their_id} and {my_id}",
                theirs.sender_node_id, theirs.receiver_node_id
            );
            return self.end_connection(peer, End::Retry(RETRY_AFTER_FAILURE), ConnectionState::ProtocolError, &text);
        }
        let agreed = match agreed {
            Ok(agreed) => agreed,
            Err(refusal) => {
                let text = refusal.to_string();
                return self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, &text);
            }
        };
        let mut challenge = [0u8; 64];
        self.rng.fill_bytes(&mut challenge);
        let entry = self.peer_mut(peer);
        let link = entry.link.as_mut().expect("a message came in on it");
        let with_auth = link.auth.is_some();
        link.protocol = agreed.protocol;
        link.features = agreed.features;
        link.offered = theirs.features;
        link.v84 = v84.then(|| crate::v84::LinkState::new(theirs.protocol_max));
        link.phase =
            if with_auth { Phase::Auth { challenge, verified: false, answered: false } } else { Phase::Options };
        let id = link.id;
        self.emit(Effect::LinkContext { peer, link: id, protocol: agreed.protocol, features: agreed.features });
        if with_auth {
            self.send_data(peer, None, Message::AuthChallenge(challenge.to_vec()), None);
        } else {
            self.send_options(peer);
        }
    }

    fn challenged(&mut self, peer: NodeId, theirs: &[u8]) {
        let me = Some(self.me).filter(|_| !self.speaks_84(peer));
        let entry = self.peer_mut(peer);
        let Some(link) = &mut entry.link else { return };
        let auth = link.auth.clone().expect("the phase is Auth");
        let Phase::Auth { challenge, answered, .. } = &mut link.phase else { return };
        if theirs.len() != 64 || *challenge == theirs[..64] || *answered {
            return self.end_connection(
                peer,
                End::StandAlone,
                ConnectionState::Disconnecting,
                "authentication failed: the peer's challenge is not valid, or our own sent back",
            );
        }
        *answered = true;
        let response = auth::response(auth.algorithm, &auth.secret, theirs, me);
        self.send_data(peer, None, Message::AuthResponse(response), None);
        self.authenticated(peer);
    }

    fn responded(&mut self, peer: NodeId, theirs: &[u8]) {
        let its_id = Some(peer).filter(|_| !self.speaks_84(peer));
        let entry = self.peer_mut(peer);
        let Some(link) = &mut entry.link else { return };
        let auth = link.auth.clone().expect("the phase is Auth");
        let Phase::Auth { challenge, verified, .. } = &mut link.phase else { return };
        if !auth::verify(auth.algorithm, &auth.secret, challenge, its_id, theirs) {
            return self.end_connection(
                peer,
                End::StandAlone,
                ConnectionState::Disconnecting,
                "authentication failed: the peer has another shared-secret or cram-hmac-alg; make them equal on both \
                 nodes, then connect again",
            );
        }
        *verified = true;
        self.authenticated(peer);
    }

    fn authenticated(&mut self, peer: NodeId) {
        let Some(link) = self.peer_mut(peer).link.as_mut() else { return };
        if matches!(link.phase, Phase::Auth { verified: true, answered: true, .. }) {
            link.phase = Phase::Options;
            self.send_options(peer);
        }
    }

    fn send_options(&mut self, peer: NodeId) {
        let options = self.our_options(peer);
        let entry = self.peer_mut(peer);
        if let Some(link) = &mut entry.link {
            link.protocol_said = Some(entry.config.protocol);
        }
        self.send_data(peer, None, Message::Protocol(options), None);
    }

    pub(crate) fn our_options(&self, peer: NodeId) -> ProtocolOptions {
        let entry = self.peer(peer);
        ProtocolOptions {
            protocol: entry.config.protocol as u32,
            after_sb_0pri: 0,
            after_sb_1pri: 0,
            after_sb_2pri: 0,
            connection_flags: u32::from(entry.discard_my_data),
            two_primaries: false,
            integrity_alg: String::new(),
        }
    }

    fn options(&mut self, peer: NodeId, theirs: &ProtocolOptions) {
        let mut mine = self.our_options(peer);
        if let Some(said) = self.peer(peer).link.as_ref().and_then(|link| link.protocol_said) {
            mine.protocol = said as u32;
        }
        if let Some(option) = difference(&mine, theirs) {
            let text = format!(
                "option {option} differs from the peer's (ours {mine:?}, theirs {theirs:?}): make them equal, then connect"
            );
            return self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, &text);
        }
        let deadline = self.now + self.peer(peer).config.ping_timeout * 10;
        let link = self.peer_mut(peer).link.as_mut().expect("a message came in on it");
        link.phase = Phase::Exchange { sent: false };
        link.deadline = Some(deadline);
        self.timer_is_set();
        self.correct_protocol(peer);
        if self.speaks_84(peer) {
            // An 8.4 peer decides by what it hears, and asks nobody.
            if self.claims_are_durable() {
                self.send_device_packets(peer);
            }
        } else if self.me < peer {
            self.want_change(Change::Connect { peer }, None);
        }
    }

    // ------------------------------------------------------------------ device packets

    /// Sends what the peer needs to decide every volume. Once a handshake.
    pub(crate) fn send_device_packets(&mut self, peer: NodeId) {
        let Some(Phase::Exchange { sent }) = self.peer_mut(peer).link.as_mut().map(|l| &mut l.phase) else { return };
        if core::mem::replace(sent, true) {
            return;
        }
        for volume in self.volume_numbers() {
            let sync_param = self.our_sync_param(peer);
            self.send_data(peer, Some(volume), Message::SyncParam(sync_param), None);
            self.send_sizes(peer, volume);
            self.send_uuids(peer, volume, 0, None);
            let sent = self.our_uuids(peer, volume, 0, None);
            let disk = self.volume(volume).disk;
            let device = self.device_mut(peer, volume);
            device.uuids_sent = Some(sent);
            device.disk_sent = Some(disk);
            self.send_state(peer, volume);
        }
    }

    pub(crate) fn our_sync_param(&self, peer: NodeId) -> SyncParam {
        let config = &self.peer(peer).config;
        let pacing = &config.resync;
        SyncParam {
            resync_rate_kib: pacing.resync_rate_kib,
            verify_alg: config.verify_alg.clone(),
            csums_alg: config.csums_alg.clone(),
            plan_ahead: pacing.plan_ahead_ds,
            delay_target: pacing.delay_target_ds,
            fill_target_sectors: pacing.fill_target_sectors,
            max_rate_kib: pacing.max_rate_kib,
        }
    }

    pub(crate) fn send_sizes(&mut self, peer: NodeId, number: VolumeNumber) {
        let volume = self.volume(number);
        let limits = volume.backing.as_ref().map(|b| b.limits).unwrap_or_default();
        let disk_bytes = match &volume.backing {
            Some(backing) => backing.data_bytes,
            // The least of what we heard from nodes that have a disk.
            None => volume.exposed_bytes,
        };
        let sizes = Sizes {
            disk_bytes,
            user_bytes: volume.config.size_max_bytes.unwrap_or(0),
            current_bytes: volume.exposed_bytes,
            io_bytes_max: limits.io_bytes_max,
            queue_order: 0,
            dds_flags: 0,
            limits: Some(QueueLimits {
                physical_block_bytes: limits.physical_block_bytes,
                logical_block_bytes: limits.logical_block_bytes,
                alignment_offset: 0,
                io_min: limits.physical_block_bytes,
                io_opt: 0,
                discard_enabled: u8::from(limits.discard),
                discard_zeroes_data: 0,
                write_same_capable: 0,
                bitmap_block_shift: 0,
            }),
        };
        self.send_data(peer, Some(number), Message::Sizes(sizes), None);
    }

    pub(crate) fn got_sizes(&mut self, peer: NodeId, number: VolumeNumber, sizes: Sizes) {
        let Some(device) = self.peer_mut(peer).volumes.get_mut(&number) else { return };
        device.sizes = Some(sizes);
        if self.peer(peer).is_connected() {
            self.agree_on_size(number);
        }
    }

    pub(crate) fn got_uuids(&mut self, peer: NodeId, number: VolumeNumber, uuids: Uuids) {
        let Some(device) = self.peer_mut(peer).volumes.get_mut(&number) else { return };
        device.current_uuid = uuids.current;
        let skip = Engine::is_skip_initial_sync(uuids.flags);
        let current = uuids.current;
        device.uuids = Some(uuids);
        if self.peer(peer).is_connected() {
            if skip {
                self.initial_sync_skipped(peer, number, current);
            }
            self.uuids_changed(peer, number);
        }
    }

    /// The peer's initial state of a volume is in: perhaps that was the last thing missing.
    pub(crate) fn exchange_progress(&mut self, peer: NodeId) {
        if self.has_heard_all(peer) {
            if self.speaks_84(peer) {
                return self.handshake_ready_84(peer);
            }
            self.twophase_handshake_ready(peer);
        }
    }

    /// Some peer was told our identifiers and states and nothing is decided yet.
    pub(crate) fn is_shaking_hands(&self) -> bool {
        self.peers.values().any(|p| matches!(p.link.as_ref().map(|l| &l.phase), Some(Phase::Exchange { sent: true })))
    }

    /// What the peer was told in this handshake is still so.
    pub(crate) fn claims_hold(&self, peer: NodeId) -> bool {
        self.peer(peer).volumes.iter().all(|(number, device)| {
            let volume = self.volume(*number);
            let now = self.our_uuids(peer, *number, 0, None);
            // Without a disk there is nothing to compare: what it shows may follow the peer in the meantime.
            let same = volume.backing.is_none() || device.uuids_sent.as_ref().is_some_and(|s| same_claims(s, &now));
            same && device.disk_sent == Some(volume.disk)
        })
    }

    /// What this node says of its generations would be the same after a power cut (rule GE-9).
    fn claims_are_durable(&self) -> bool {
        self.volumes.values().all(|v| v.backing.as_ref().is_none_or(|b| b.is_settled()))
    }

    /// A superblock is on disk: handshakes may have waited for it.
    pub(crate) fn advance_handshakes(&mut self) {
        if !self.claims_are_durable() {
            return;
        }
        for peer in self.peer_ids() {
            if self.speaks_84(peer) {
                self.send_device_packets(peer);
            }
            self.exchange_progress(peer);
        }
    }

    /// The peer's states of all our volumes are in, ours are out, and what we say of our data is safe (rule EP-5).
    pub(crate) fn has_heard_all(&self, peer: NodeId) -> bool {
        if self.volumes.values().any(|v| v.salvage != Salvage::Nothing) || !self.claims_are_durable() {
            return false;
        }
        let entry = self.peer(peer);
        let sent = matches!(entry.link.as_ref().map(|l| &l.phase), Some(Phase::Exchange { sent: true }));
        sent && entry.volumes.values().all(|d| d.word.is_some())
    }

    /// Decides every volume. `Err`: what to do with the connection, and why.
    pub(crate) fn decide_all(&mut self, peer: NodeId) -> Result<Vec<(VolumeNumber, Decision)>, (End, String)> {
        if !self.claims_hold(peer) {
            let text = "what this node told of its data changed during the handshake".to_string();
            return Err((End::Retry(RETRY_AFTER_FAILURE), text));
        }
        let mut decisions = Vec::new();
        for number in self.volume_numbers() {
            self.check_sizes(peer, number)?;
            self.check_shown_data(peer, number)?;
            let decision = self.decide(peer, number, true);
            self.report_decision(peer, number, &decision);
            match decision.strategy {
                Strategy::Retry(reason) => {
                    if reason == RetryReason::MissedEndWithoutBits {
                        self.end_missed_resync(peer, number);
                    }
                    return Err((
                        End::Retry(RETRY_AFTER_FAILURE),
                        self.peer(peer).volumes[&number].last_decision.clone(),
                    ));
                }
                Strategy::SplitBrain { .. } => {
                    self.event(Event::SplitBrain { peer, volume: number });
                    return Err((End::StandAlone, self.peer(peer).volumes[&number].last_decision.clone()));
                }
                Strategy::Unrelated | Strategy::Refuse(_) => {
                    return Err((End::StandAlone, self.peer(peer).volumes[&number].last_decision.clone()));
                }
                Strategy::NoSync | Strategy::Source(_) | Strategy::Target(_) => decisions.push((number, decision)),
            }
        }
        let its_role = self.peer(peer).volumes.values().find_map(|v| v.word?.role().ok());
        if self.is_primary() && its_role == Some(Role::Primary) {
            let text = "both nodes are Primary, which is not allowed: demote one of them, then connect again";
            return Err((End::StandAlone, text.to_string()));
        }
        Ok(decisions)
    }

    /// Rule SZ-1: a volume with usable data never shrinks because a smaller peer appears.
    fn check_sizes(&self, peer: NodeId, number: VolumeNumber) -> Result<(), (End, String)> {
        let volume = self.volume(number);
        let Some(sizes) = self.peer(peer).volumes[&number].sizes else { return Ok(()) };
        let agreed = self.agreed_size(number, Some((peer, sizes)));
        let has_data = volume.disk >= DiskState::Outdated || (volume.backing.is_none() && self.is_primary());
        if has_data && agreed < volume.exposed_bytes {
            let text = format!(
                "the peer's disk of volume {number} is too small: {} bytes, the volume has {}",
                sizes.disk_bytes, volume.exposed_bytes
            );
            return Err((End::StandAlone, text));
        }
        let peer_disk = self.peer(peer).volumes[&number].word.and_then(|w| w.disk().ok());
        let peer_has_data = peer_disk.is_some_and(|d| d >= DiskState::Outdated && d != DiskState::DUnknown);
        if peer_has_data && agreed < sizes.current_bytes {
            let text = format!(
                "our disk of volume {number} is too small: the volume has {} bytes on the peer, we can hold {agreed}",
                sizes.current_bytes
            );
            return Err((End::StandAlone, text));
        }
        Ok(())
    }

    /// Rule GE-7: a Primary that read its data from a peer goes on only with that data. Another generation means that
    /// somebody else was Primary meanwhile; a peer that was restarted may have lost what was in its cache.
    pub(crate) fn check_shown_data(&self, peer: NodeId, number: VolumeNumber) -> Result<(), (End, String)> {
        let volume = self.volume(number);
        let device = &self.peer(peer).volumes[&number];
        let has_disk = device.word.and_then(|w| w.disk().ok()).is_some_and(|d| d >= DiskState::Negotiating);
        let own = volume.disk == DiskState::UpToDate;
        if !self.is_primary() || own || !has_disk {
            return Ok(());
        }
        let shown = volume.exposed_uuid;
        if !shown.is_zero() && !device.current_uuid.same(shown) {
            let text = format!(
                "volume {number}: this Primary showed generation {shown}, the peer has {}: demote this node first",
                device.current_uuid
            );
            return Err((End::Retry(RETRY_AFTER_FAILURE), text));
        }
        if volume.missing_at.contains(peer) && !self.has_data(number) {
            let text = format!(
                "volume {number}: the peer may not have received all writes that this Primary had completed: demote this \
                 node first"
            );
            return Err((End::Retry(RETRY_AFTER_FAILURE), text));
        }
        let restarted = device.uuids.as_ref().is_some_and(|u| u.flags & uuid_flag::RECONNECT == 0);
        let missed = restarted && volume.unconfirmed_at.contains(peer) && !self.has_data(number);
        if missed && !planted(Bug::LostCacheAccepted) {
            let text = format!(
                "volume {number}: the peer was restarted and may have lost writes that this Primary had completed: \
                 demote this node first"
            );
            return Err((End::Retry(RETRY_AFTER_FAILURE), text));
        }
        Ok(())
    }

    /// The connect transaction is committed: every volume starts as decided.
    pub(crate) fn connected(&mut self, peer: NodeId, decisions: Vec<(VolumeNumber, Decision)>) {
        let now = self.now;
        let entry = self.peer_mut(peer);
        let link = entry.link.as_mut().expect("the transaction ran over it");
        link.phase = Phase::Connected;
        link.deadline = None;
        link.heard = now;
        entry.discard_my_data = false;
        let role = entry.volumes.values().find_map(|d| d.word).and_then(|w| w.role().ok()).unwrap_or(Role::Secondary);
        self.set_connection(peer, ConnectionState::Connected, "connected");
        self.set_peer_role(peer, role);
        for (number, decision) in decisions {
            let word = self.peer(peer).volumes[&number].word.expect("heard before deciding");
            let disk = word.disk().unwrap_or(DiskState::Diskless);
            self.set_peer_disk(peer, number, disk, "connected");
            self.agree_on_size(number);
            // A resync makes the two comparable only once both have each other's bits (`remember_compared`).
            let settled = decision.strategy == Strategy::NoSync && decision.rule != Rule::NoDisk;
            self.device_mut(peer, number).reconnect |= settled;
            self.start_as_decided(peer, number, &decision, "connected");
        }
        if self.peer(peer).role == Role::Primary && !self.speaks_84(peer) {
            for number in self.volume_numbers() {
                self.send_uuids(peer, number, 0, None);
            }
        }
        for number in self.volume_numbers() {
            self.send_state(peer, number);
        }
        // States first, then bitmaps: the peer must know which side it is on.
        for number in self.volume_numbers() {
            self.start_exchange(peer, number);
        }
        self.pump_all();
        self.retire = true;
    }

    /// A disk that was attached over this connection was compared as well: the next connect is a reconnect for it. Not
    /// before the link ends: until the peer has decided too, it goes by what it was told.
    fn remember_compared(&mut self, peer: NodeId) {
        use ReplicationState as R;
        for number in self.volume_numbers() {
            let mine = self.volume(number).disk;
            let device = self.device_mut(peer, number);
            let has_data = |disk| disk >= DiskState::Inconsistent && disk != DiskState::DUnknown;
            let undecided = matches!(device.replication, R::Off | R::WFBitMapS | R::WFBitMapT | R::WFSyncUUID);
            device.reconnect |= !undecided && has_data(mine) && has_data(device.disk);
        }
    }

    /// What the peer was to us while connected is unknown from here on.
    fn forget_peer_state(&mut self, peer: NodeId) {
        self.set_peer_role(peer, Role::Unknown);
        for number in self.volume_numbers() {
            self.set_replication(peer, number, ReplicationState::Off, "connection lost");
            let disk = self.peer(peer).volumes[&number].disk;
            if !matches!(disk, DiskState::DUnknown) {
                self.set_peer_disk(peer, number, DiskState::DUnknown, "connection lost");
            }
            let device = self.peer_mut(peer).volumes.get_mut(&number).expect("every peer has every volume");
            device.paused_by_peer = false;
            device.exchange = None;
            device.pending = 0;
            device.unacked = 0;
            device.source_since = None;
        }
        let entry = self.peer_mut(peer);
        entry.open_epoch = None;
        entry.closed_epochs.clear();
        entry.peer_ack = None;
        entry.flush_asked = None;
    }

    pub(crate) fn device_mut(&mut self, peer: NodeId, number: VolumeNumber) -> &mut PeerDevice {
        self.peer_mut(peer).volumes.get_mut(&number).expect("every peer has every volume")
    }
}

pub(crate) fn unknown_peer(peer: NodeId) -> Refusal {
    Refusal {
        code: -158,
        rule: "ERR_INVALID_PEER_NODE_ID",
        state: format!("node {peer} is not a peer of this resource"),
        next_step: "name a peer that the configuration has",
    }
}

/// The option in which two ends differ, if they do.
pub(crate) fn difference(mine: &ProtocolOptions, theirs: &ProtocolOptions) -> Option<&'static str> {
    [
        ("protocol", mine.protocol != theirs.protocol),
        ("after-sb-0pri", mine.after_sb_0pri != theirs.after_sb_0pri),
        ("after-sb-1pri", mine.after_sb_1pri != theirs.after_sb_1pri),
        ("after-sb-2pri", mine.after_sb_2pri != theirs.after_sb_2pri),
        ("allow-two-primaries", mine.two_primaries != theirs.two_primaries),
        ("data-integrity-alg", mine.integrity_alg != theirs.integrity_alg),
        ("discard-my-data (set on both)", mine.connection_flags & theirs.connection_flags & 1 != 0),
    ]
    .into_iter()
    .find_map(|(name, differs)| differs.then_some(name))
}

pub(crate) fn name_of(message: &Message) -> String {
    let text = format!("{message:?}");
    text.split(['(', ' ', '{']).next().unwrap_or("message").to_string()
}
