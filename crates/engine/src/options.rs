//! Options that change while the resource runs: all that a command names, or nothing of it.
//!
//! What governs a write or a flush was copied into it when it was submitted (rule OP-1), so a change is for what comes
//! after it. Both ends of a connection go by one protocol: who changes it sends PROTOCOL_UPDATE, the other end takes it
//! over. Two changes may cross; then the arbiter's word counts, because it answers what it took over with the same
//! message: the last one that the other end hears is what the arbiter goes by (rules OP-1..OP-5, docs/protocol.md).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use types::{ConnectionState, NodeId};
use wire::Message;
use wire::message::ProtocolOptions;

use crate::Engine;
use crate::activity::SLOTS_MAX;
use crate::api::{CommandId, Event, OptionChange, PeerConfig, Protocol, Refusal, ResourceConfig, ResourceOptions};
use crate::connect::{End, Phase, difference, unknown_peer};
use crate::role::unknown_volume;

impl Protocol {
    pub(crate) fn from_wire(number: u32) -> Option<Protocol> {
        [Protocol::A, Protocol::B, Protocol::C].into_iter().find(|protocol| *protocol as u32 == number)
    }
}

impl ResourceConfig {
    pub fn options(&self) -> ResourceOptions {
        ResourceOptions {
            on_no_data: self.on_no_data,
            twopc_timeout: self.twopc_timeout,
            twopc_retry_timeout: self.twopc_retry_timeout,
            peer_ack_delay: self.peer_ack_delay,
            peer_ack_window_bytes: self.peer_ack_window_bytes,
            io_depth_max: self.io_depth_max,
        }
    }

    fn set_options(&mut self, options: ResourceOptions) {
        self.on_no_data = options.on_no_data;
        self.twopc_timeout = options.twopc_timeout;
        self.twopc_retry_timeout = options.twopc_retry_timeout;
        self.peer_ack_delay = options.peer_ack_delay;
        self.peer_ack_window_bytes = options.peer_ack_window_bytes;
        self.io_depth_max = options.io_depth_max;
    }
}

impl Engine {
    pub(crate) fn change_options(&mut self, id: CommandId, change: Box<OptionChange>) {
        if let Err(refusal) = self.check_options(&change) {
            return self.refuse(id, refusal);
        }
        let OptionChange { resource, volumes, peers } = *change;
        if let Some(options) = resource {
            self.config.set_options(options);
        }
        for (number, options) in volumes {
            let config = &mut self.volume_mut(number).config;
            config.al_extents = options.al_extents;
            config.on_io_error = options.on_io_error;
        }
        for (peer, config) in peers {
            self.change_peer(peer, config);
        }
        self.timer_is_set();
        // What waited for the old bounds may go on, or fail instead of waiting.
        self.pump_all();
        self.retire = true;
        self.reply(id, Ok(()));
    }

    /// Rule OP-4: nothing is changed before all of it was looked at.
    fn check_options(&self, change: &OptionChange) -> Result<(), Refusal> {
        for (number, options) in &change.volumes {
            if !self.volumes.contains_key(number) {
                return Err(unknown_volume(*number));
            }
            if !(1..=SLOTS_MAX).contains(&options.al_extents) {
                let state = format!("al-extents {} for volume {number}", options.al_extents);
                return Err(refusal(0, "al-extents", state, "an activity log has 1 to 65534 extents"));
            }
        }
        for (peer, config) in &change.peers {
            let Some(entry) = self.peers.get(peer) else { return Err(unknown_peer(*peer)) };
            let verifying = entry.volumes.iter().find(|(_, device)| device.is_verifying());
            if let Some((number, device)) = verifying.filter(|_| entry.config.verify_alg != config.verify_alg) {
                let state = format!("verify-alg towards node {peer}, volume {number}: {}", device.replication);
                let next = "change verify-alg when the verify is over, or disconnect first";
                return Err(refusal(149, "ERR_VERIFY_RUNNING", state, next));
            }
            let syncing = entry.volumes.iter().find(|(_, device)| device.is_syncing());
            if let Some((number, device)) = syncing.filter(|_| entry.config.csums_alg != config.csums_alg) {
                let state = format!("csums-alg towards node {peer}, volume {number}: {}", device.replication);
                let next = "change csums-alg when the resync is over, or disconnect first";
                return Err(refusal(148, "ERR_CSUMS_RESYNC_RUNNING", state, next));
            }
        }
        Ok(())
    }

    fn change_peer(&mut self, peer: NodeId, mut config: PeerConfig) {
        let now = self.now;
        let protocol = config.protocol;
        let told_before = self.our_sync_param(peer);
        let entry = self.peer_mut(peer);
        config.protocol = entry.config.protocol;
        if config.ping_timeout < entry.config.ping_timeout
            && let Some(link) = &mut entry.link
        {
            // Pings under way were sent to a peer that had longer to answer.
            link.pings.iter_mut().for_each(|sent| *sent = now);
        }
        entry.config = config;
        if self.set_protocol(peer, protocol, "command") {
            self.tell_protocol(peer);
        }
        let told = match self.peer(peer).link.as_ref().map(|link| &link.phase) {
            Some(Phase::Connected) => true,
            Some(Phase::Exchange { sent }) => *sent,
            _ => false,
        };
        let sync_param = self.our_sync_param(peer);
        if told && sync_param != told_before {
            for volume in self.volume_numbers() {
                self.send_data(peer, Some(volume), Message::SyncParam(sync_param.clone()), None);
            }
        }
    }

    /// Returns whether it was another one before.
    fn set_protocol(&mut self, peer: NodeId, to: Protocol, reason: &'static str) -> bool {
        let from = core::mem::replace(&mut self.peer_mut(peer).config.protocol, to);
        if from != to {
            self.event(Event::Protocol { peer, from, to, reason });
        }
        from != to
    }

    /// Before the peer has heard the options of the handshake there is nothing to correct: see `protocol_said`.
    fn tell_protocol(&mut self, peer: NodeId) {
        let phase = self.peer(peer).link.as_ref().map(|link| &link.phase);
        if matches!(phase, Some(Phase::Exchange { .. } | Phase::Connected)) {
            let options = self.our_options(peer);
            // What was written under the old protocol ends before.
            self.send_due_barriers();
            self.send_data(peer, None, Message::ProtocolUpdate(options), None);
        }
    }

    /// Rule OP-3: the handshake compared what both had said at its beginning; a change since then is told now.
    pub(crate) fn correct_protocol(&mut self, peer: NodeId) {
        let entry = self.peer(peer);
        let said = entry.link.as_ref().and_then(|link| link.protocol_said);
        if said.is_some_and(|said| said != entry.config.protocol) {
            self.tell_protocol(peer);
        }
    }

    /// PROTOCOL_UPDATE.
    pub(crate) fn protocol_updated(&mut self, peer: NodeId, theirs: &ProtocolOptions) {
        let Some(protocol) = Protocol::from_wire(theirs.protocol) else {
            let text = format!("PROTOCOL_UPDATE names protocol {}: there are 1 (A), 2 (B) and 3 (C)", theirs.protocol);
            return self.protocol_error(peer, &text);
        };
        let mine = ProtocolOptions { protocol: theirs.protocol, connection_flags: 0, ..self.our_options(peer) };
        if let Some(option) = difference(&mine, &ProtocolOptions { connection_flags: 0, ..theirs.clone() }) {
            let text = format!(
                "the peer changed option {option} to what this node cannot do ({theirs:?}): change it back there, then \
                 connect"
            );
            return self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, &text);
        }
        let changed = self.set_protocol(peer, protocol, "told by the peer");
        if changed && self.peer(peer).link.as_ref().is_some_and(|link| link.arbiter) {
            self.tell_protocol(peer);
        }
    }
}

fn refusal(code: i32, rule: &'static str, state: String, next_step: &'static str) -> Refusal {
    Refusal { code, rule, state, next_step }
}
