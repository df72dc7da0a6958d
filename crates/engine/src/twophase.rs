//! Cluster-wide state changes: prepare, vote, commit or abort.
//!
//! One transaction at a time on a node, its own or a foreign one. Two that meet: the lower node id goes on, the other
//! one takes its own back and votes. What is asked and what follows from it is decided here; the states themselves
//! change in the rooms that own them. Two-phase is not atomic under partitions: a node that misses a COMMIT learns the
//! truth at the next handshake, so every change is safe when one side missed it (rule TP-3).

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use rand_chacha::rand_core::RngCore;
use types::{ConnectionState, DiskState, NodeId, NodeSet, ReplicationState, Role, Time, VolumeNumber};
use wire::message::{StateWord, TwopcDecision, TwopcHead, TwopcPrepare, TwopcReply, TwopcResize};
use wire::state_word::StateChange;
use wire::{Message, Socket};

use crate::Engine;
use crate::api::{CommandId, Refusal};
use crate::connect::{End, Phase};
use crate::handshake::Decision;
use crate::verify::VerifySpan;

/// Always set in version 2 of the layout. Source: docs/wire.md "Two-phase commit".
const FLAGS: u32 = 0xc000_0000;
/// "A Primary exists but it had no access to up-to-date data": nobody outdates himself for it.
const FLAG_NO_UP_TO_DATE_DATA: u32 = 0x2000_0000;
/// Attempts before a command that collides again and again is refused.
const TRIES_MAX: u32 = 12;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Connect {
        peer: NodeId,
    },
    Disconnect {
        peer: NodeId,
    },
    Promote {
        force: bool,
    },
    Demote,
    Attach {
        volume: VolumeNumber,
    },
    Detach {
        volume: VolumeNumber,
    },
    /// This node's data is thrown away and fetched from `peer`.
    Invalidate {
        volume: VolumeNumber,
        peer: NodeId,
    },
    InvalidateRemote {
        volume: VolumeNumber,
        peer: NodeId,
    },
    /// The initiator asks `peer` for digests and compares; the span is its own business.
    Verify {
        volume: VolumeNumber,
        peer: NodeId,
        span: VerifySpan,
    },
}

impl Change {
    fn volume(self) -> Option<VolumeNumber> {
        match self {
            Change::Attach { volume }
            | Change::Detach { volume }
            | Change::Invalidate { volume, .. }
            | Change::InvalidateRemote { volume, .. }
            | Change::Verify { volume, .. } => Some(volume),
            _ => None,
        }
    }

    fn target(self) -> Option<NodeId> {
        match self {
            Change::Connect { peer }
            | Change::Disconnect { peer }
            | Change::Invalidate { peer, .. }
            | Change::InvalidateRemote { peer, .. }
            | Change::Verify { peer, .. } => Some(peer),
            _ => None,
        }
    }

    /// What it asks for as a mask and a value of the state word.
    fn words(self, own_role: Role) -> (StateWord, StateWord) {
        let none = StateChange::EMPTY;
        let change = match self {
            Change::Connect { .. } => none.with_connection(ConnectionState::Connected).with_role(own_role),
            Change::Disconnect { .. } => none.with_connection(ConnectionState::Disconnecting),
            Change::Promote { force: false } => none.with_role(Role::Primary),
            Change::Promote { force: true } => none.with_role(Role::Primary).with_disk(DiskState::UpToDate),
            Change::Demote => none.with_role(Role::Secondary),
            Change::Attach { .. } => none.with_disk(DiskState::Negotiating),
            Change::Detach { .. } => none.with_disk(DiskState::Detaching),
            Change::Invalidate { .. } => none.with_replication(ReplicationState::StartingSyncT),
            Change::InvalidateRemote { .. } => none.with_replication(ReplicationState::StartingSyncS),
            Change::Verify { .. } => none.with_replication(ReplicationState::VerifyS),
        };
        (change.mask, change.value)
    }

    /// What a peer asks for. `None`: nothing that we know.
    fn of_peer(prepare: &TwopcPrepare, volume: Option<VolumeNumber>) -> Option<Change> {
        let peer = prepare.head.initiator;
        let change = StateChange { mask: prepare.mask, value: prepare.value };
        if let Some(conn) = change.conn() {
            return Some(match (conn, volume) {
                (n, None) if n == ConnectionState::Connected.to_wire() => Change::Connect { peer },
                (n, None) if n == ConnectionState::Disconnecting.to_wire() => Change::Disconnect { peer },
                (n, Some(volume)) if n == ReplicationState::StartingSyncT.to_wire() => {
                    Change::Invalidate { volume, peer }
                }
                (n, Some(volume)) if n == ReplicationState::StartingSyncS.to_wire() => {
                    Change::InvalidateRemote { volume, peer }
                }
                (n, Some(volume)) if n == ReplicationState::VerifyS.to_wire() => {
                    Change::Verify { volume, peer, span: VerifySpan::default() }
                }
                _ => return None,
            });
        }
        let disk = change.disk().ok()?;
        match (change.role().ok()?, disk, volume) {
            (Some(Role::Primary), disk, _) => Some(Change::Promote { force: disk.is_some() }),
            (Some(Role::Secondary), _, _) => Some(Change::Demote),
            (None, Some(DiskState::Negotiating), Some(volume)) => Some(Change::Attach { volume }),
            (None, Some(DiskState::Detaching), Some(volume)) => Some(Change::Detach { volume }),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Vote {
    Yes,
    No,
    Retry,
}

pub(crate) struct Wanted {
    pub change: Change,
    pub command: Option<CommandId>,
    not_before: Time,
    tries: u32,
}

struct Own {
    wanted: Wanted,
    head: TwopcHead,
    asked: Vec<NodeId>,
    missing: NodeSet,
    reachable: NodeSet,
    primaries: NodeSet,
    refused: bool,
    deadline: Time,
}

struct Foreign {
    head: TwopcHead,
    from: NodeId,
    volume: Option<VolumeNumber>,
    /// `None`: an empty transaction, which only collects who is there.
    change: Option<Change>,
    vote: Option<Vote>,
    decisions: Vec<(VolumeNumber, Decision)>,
    deadline: Time,
}

pub(crate) struct TwoPhase {
    wanted: VecDeque<Wanted>,
    own: Option<Own>,
    foreign: Option<Foreign>,
}

impl TwoPhase {
    pub fn new() -> TwoPhase {
        TwoPhase { wanted: VecDeque::new(), own: None, foreign: None }
    }

    /// No change is open or wanted.
    pub fn is_quiet(&self) -> bool {
        self.own.is_none() && self.foreign.is_none() && self.wanted.is_empty()
    }

    pub fn deadline(&self) -> Option<Time> {
        if self.is_quiet() {
            return None;
        }
        let idle = self.own.is_none() && self.foreign.is_none();
        let next = self.wanted.iter().map(|w| w.not_before).min().filter(|_| idle);
        self.open_deadline().or(next)
    }

    /// When an open change is given up.
    pub fn open_deadline(&self) -> Option<Time> {
        let own = self.own.as_ref().map(|o| o.deadline);
        let foreign = self.foreign.as_ref().map(|f| f.deadline);
        [own, foreign].into_iter().flatten().min()
    }
}

impl Engine {
    /// Asks the cluster for a change as soon as no other one is open.
    pub(crate) fn want_change(&mut self, change: Change, command: Option<CommandId>) {
        let not_before = self.now;
        self.twophase.wanted.push_back(Wanted { change, command, not_before, tries: 0 });
    }

    /// Part of `settle`: starts the next change. Returns whether it did anything.
    pub(crate) fn advance_twophase(&mut self) -> bool {
        if self.twophase.own.is_some() || self.twophase.foreign.is_some() {
            return false;
        }
        let now = self.now;
        let Some(index) = self.twophase.wanted.iter().position(|w| w.not_before <= now) else { return false };
        let wanted = self.twophase.wanted.remove(index).expect("position found it");
        self.prepare(wanted);
        true
    }

    fn prepare(&mut self, wanted: Wanted) {
        let change = wanted.change;
        if self.put_back(&wanted) {
            return;
        }
        if let Err(refusal) = self.check_own(change) {
            return self.change_refused(wanted, refusal);
        }
        let mut asked = self.peers_to_tell();
        asked.retain(|peer| !self.speaks_84(*peer) || crate::v84::needs_consent(change));
        if let Change::Connect { peer } = change {
            if !matches!(self.peer(peer).link.as_ref().map(|l| &l.phase), Some(Phase::Exchange { .. })) {
                return;
            }
            asked.push(peer);
        }
        let me = NodeSet::only(self.me);
        let direct: NodeSet = asked.iter().copied().collect::<NodeSet>().union(me);
        let head = TwopcHead {
            tid: self.transaction_id(),
            flags: FLAGS,
            initiator: self.me,
            target: change.target(),
            nodes_to_reach: direct.complement_to_wire(),
        };
        let (mask, value) = change.words(self.role);
        let own = Own {
            head,
            missing: asked.iter().copied().collect(),
            asked,
            reachable: me,
            primaries: if self.is_primary() { me } else { NodeSet::EMPTY },
            refused: false,
            deadline: self.now + self.config.twopc_timeout,
            wanted,
        };
        let asked = own.asked.clone();
        self.twophase.own = Some(own);
        self.timer_is_set();
        for peer in &asked {
            if self.speaks_84(*peer) {
                self.ask_84(*peer, change);
                continue;
            }
            let message = Message::TwopcPrepare(TwopcPrepare { head, mask, value });
            self.send_data(*peer, change.volume(), message, None);
            self.ping(*peer);
        }
        if let Change::Connect { peer } = change {
            self.send_device_packets(peer);
        }
        self.decide_own();
    }

    fn transaction_id(&mut self) -> u32 {
        loop {
            let tid = self.rng.next_u32();
            if tid != 0 {
                return tid;
            }
        }
    }

    pub(crate) fn voted(&mut self, peer: NodeId, reply: TwopcReply, message: &Message) {
        let Some(own) = &mut self.twophase.own else { return };
        if own.head.tid != reply.tid || !own.missing.contains(peer) {
            return;
        }
        own.missing = own.missing.without(peer);
        own.reachable = own.reachable.union(NodeSet::from_wire(reply.reachable_nodes));
        own.primaries = own.primaries.union(NodeSet::from_wire(reply.primary_nodes));
        match message {
            Message::TwopcYes(_) => {}
            Message::TwopcNo(_) => own.refused = true,
            _ => return self.take_back(true),
        }
        self.decide_own();
    }

    /// An 8.4 peer answered what it was asked; it has done it already if it agrees. `None`: ask again later.
    pub(crate) fn voted_84(&mut self, peer: NodeId, agrees: Option<bool>) {
        let Some(own) = self.twophase.own.as_mut().filter(|own| own.missing.contains(peer)) else { return };
        own.missing = own.missing.without(peer);
        own.reachable = own.reachable.with(peer);
        match agrees {
            Some(true) => {}
            Some(false) => own.refused = true,
            None => return self.take_back(true),
        }
        self.decide_own();
    }

    /// A change of this node's own is open.
    pub(crate) fn has_own_change(&self) -> bool {
        self.twophase.own.is_some()
    }

    /// All votes are in (and for a connect, all device packets): commit or give up.
    fn decide_own(&mut self) {
        let Some(own) = &self.twophase.own else { return };
        if !own.missing.is_empty() {
            return;
        }
        let (change, refused) = (own.wanted.change, own.refused);
        if let Change::Connect { peer } = change {
            if !refused && !self.has_heard_all(peer) {
                return;
            }
            return self.decide_connect(peer, refused);
        }
        let own = self.twophase.own.take().expect("looked at it just now");
        if refused {
            self.tell_decision(&own, false, 0);
            let refusal = Refusal {
                code: -10,
                rule: "SS_CW_FAILED_BY_PEER",
                state: format!("a peer refused {change:?}"),
                next_step: "see the peer's state and log: a Primary, an open device or a running resync refuses",
            };
            return self.change_refused(own.wanted, refusal);
        }
        if self.put_back(&own.wanted) {
            return self.tell_decision(&own, false, 0);
        }
        // Since it was asked a disk may have failed, a peer may have gone.
        if let Err(refusal) = self.check_own(change) {
            self.tell_decision(&own, false, 0);
            return self.change_refused(own.wanted, refusal);
        }
        let no_data = change == Change::Promote { force: true } && !self.all_up_to_date();
        self.tell_decision(&own, true, if no_data { FLAG_NO_UP_TO_DATE_DATA } else { 0 });
        self.change_committed(own.wanted);
    }

    fn decide_connect(&mut self, peer: NodeId, refused: bool) {
        let decisions = if self.has_heard_all(peer) {
            self.decide_all(peer)
        } else {
            Err((End::StandAlone, "the peer refused the connection".to_string()))
        };
        let own = self.twophase.own.take().expect("the caller looked at it");
        match decisions {
            Ok(decisions) if !refused => {
                self.tell_decision(&own, true, 0);
                self.connected(peer, decisions);
            }
            Ok(_) => {
                self.tell_decision(&own, false, 0);
                self.refuse_connection(peer, End::StandAlone, "the peer refused the connection");
            }
            Err((end, text)) => {
                self.tell_decision(&own, false, 0);
                self.refuse_connection(peer, end, &text);
            }
        }
    }

    fn refuse_connection(&mut self, peer: NodeId, end: End, text: &str) {
        if end == End::StandAlone {
            self.send_data(peer, None, Message::Disconnect, None);
        }
        self.end_connection(peer, end, ConnectionState::Disconnecting, text);
    }

    fn tell_decision(&mut self, own: &Own, commit: bool, extra_flags: u32) {
        let role_after = match own.wanted.change {
            Change::Promote { .. } => Role::Primary,
            Change::Demote => Role::Secondary,
            _ => self.role,
        };
        let me = NodeSet::only(self.me);
        let mut primaries = own.primaries.without(self.me);
        if role_after == Role::Primary {
            primaries = primaries.union(me);
        }
        let mut reachable = own.reachable;
        if let Change::Disconnect { peer } = own.wanted.change {
            reachable = reachable.without(self.me).with(peer);
        }
        let mut head = own.head;
        head.flags |= extra_flags;
        let decision = TwopcDecision {
            head,
            primary_nodes: if commit { primaries.to_wire() } else { 0 },
            reachable_nodes: if commit { reachable.to_wire() } else { 0 },
        };
        for peer in &own.asked {
            if self.speaks_84(*peer) {
                // It did what it agreed to at once.
                if !commit {
                    self.volume_numbers().into_iter().for_each(|number| self.send_state(*peer, number));
                }
                continue;
            }
            let message = if commit { Message::TwopcCommit(decision) } else { Message::TwopcAbort(decision) };
            self.send_data(*peer, own.wanted.change.volume(), message, None);
        }
    }

    /// Gives the own transaction up for now; it is tried again after a random pause.
    fn take_back(&mut self, tell: bool) {
        let Some(mut own) = self.twophase.own.take() else { return };
        if tell {
            self.tell_decision(&own, false, 0);
        }
        if let Change::Connect { peer } = own.wanted.change {
            // Its device packets are spent: a new link brings new ones.
            let pause = self.pause_before_retry(own.wanted.tries);
            let end = End::Retry(pause + Duration::from_millis(50));
            return self.end_connection(peer, end, ConnectionState::Unconnected, "the handshake has to start over");
        }
        own.wanted.tries += 1;
        if own.wanted.tries > TRIES_MAX {
            let refusal = Refusal {
                code: -19,
                rule: "SS_CONCURRENT_ST_CHG",
                state: format!("{:?} met other changes {TRIES_MAX} times", own.wanted.change),
                next_step: "try again when the other change is through",
            };
            return self.change_refused(own.wanted, refusal);
        }
        own.wanted.not_before = self.now + self.pause_before_retry(own.wanted.tries);
        self.twophase.wanted.push_front(own.wanted);
    }

    fn pause_before_retry(&mut self, tries: u32) -> Duration {
        let connections = self.peers.values().filter(|p| p.connection >= ConnectionState::Connecting).count() as u32;
        let limit = self.config.twopc_retry_timeout * connections.max(1) * (1 << tries.min(5));
        self.random_duration(limit) + Duration::from_millis(1)
    }

    // ------------------------------------------------------------------ participant

    pub(crate) fn prepared(&mut self, from: NodeId, volume: Option<VolumeNumber>, prepare: TwopcPrepare) {
        let head = prepare.head;
        if let Some(foreign) = &self.twophase.foreign {
            let known = foreign.head.tid == head.tid && foreign.head.initiator == head.initiator;
            match foreign.vote {
                Some(vote) if known => self.cast(from, volume, head, vote, None),
                None if known => {}
                _ => self.cast(from, volume, head, Vote::Retry, None),
            }
            return;
        }
        if self.twophase.own.is_some() {
            if self.me < head.initiator {
                return self.cast(from, volume, head, Vote::Retry, None);
            }
            self.take_back(true);
            if self.peers.get(&from).is_none_or(|p| p.link.is_none()) {
                return;
            }
        }
        let empty = prepare.mask.0 == 0;
        let change = Change::of_peer(&prepare, volume);
        let known_volume = volume.is_none_or(|v| self.volumes.contains_key(&v));
        if (change.is_none() && !empty) || !known_volume {
            self.warn(format!("node {from} asks for a change that we do not know: {prepare:?}"));
            return self.cast(from, volume, head, Vote::No, change);
        }
        let deadline = self.now + self.config.twopc_timeout;
        self.twophase.foreign =
            Some(Foreign { head, from, volume, change, vote: None, decisions: Vec::new(), deadline });
        self.timer_is_set();
        match change {
            Some(Change::Connect { peer }) if head.target == Some(self.me) => {
                if peer != from || self.peer(peer).is_connected() {
                    return self.protocol_error(from, "TWOPC_PREPARE of a connect that makes no sense here");
                }
                self.send_device_packets(peer);
                self.exchange_progress(peer);
            }
            _ if change.is_some_and(|change| !self.allows(change, from)) => self.vote(Vote::No),
            Some(Change::Disconnect { .. } | Change::Detach { .. }) if self.is_primary() && !self.all_settled() => {
                // The peer becomes Outdated by it: first this node's disk is on stable storage what the node says (GE-10).
                self.vote(Vote::Retry);
            }
            _ => self.vote(Vote::Yes),
        }
    }

    /// A kernel's `resize`. No size changes here: that is the answer, and the peer's command says so.
    pub(crate) fn resize_prepared(&mut self, from: NodeId, volume: Option<VolumeNumber>, resize: TwopcResize) {
        self.warn(format!(
            "node {from} asks for a size of {} bytes; online resize is not supported",
            resize.user_bytes
        ));
        self.cast(from, volume, resize.head, Vote::No, None);
    }

    /// A connect waits for the peer's states; they are in now.
    pub(crate) fn twophase_handshake_ready(&mut self, peer: NodeId) {
        let waits =
            self.twophase.foreign.as_ref().is_some_and(|f| {
                f.from == peer && f.vote.is_none() && matches!(f.change, Some(Change::Connect { .. }))
            });
        if !waits {
            return self.decide_own();
        }
        let (vote, decisions) = match self.decide_all(peer) {
            Ok(decisions) => (Vote::Yes, decisions),
            Err((End::Retry(_), text)) => {
                self.warn(text);
                (Vote::Retry, Vec::new())
            }
            Err((End::StandAlone, text)) => {
                self.peer_mut(peer).refused = Some(text);
                (Vote::No, Vec::new())
            }
        };
        if let Some(foreign) = &mut self.twophase.foreign {
            foreign.decisions = decisions;
        }
        self.vote(vote);
    }

    fn vote(&mut self, vote: Vote) {
        let Some(foreign) = &mut self.twophase.foreign else { return };
        foreign.vote = Some(vote);
        let (from, volume, head, change) = (foreign.from, foreign.volume, foreign.head, foreign.change);
        self.cast(from, volume, head, vote, change);
    }

    fn cast(&mut self, to: NodeId, volume: Option<VolumeNumber>, head: TwopcHead, vote: Vote, change: Option<Change>) {
        let me = NodeSet::only(self.me);
        let mut reachable = self.connected_peers().union(me);
        match change {
            Some(Change::Connect { peer }) => reachable = reachable.with(peer),
            Some(Change::Disconnect { peer }) => reachable = reachable.without(peer),
            _ => {}
        }
        let primary = self.is_primary();
        let good = primary && self.all_up_to_date();
        let reply = TwopcReply {
            tid: head.tid,
            initiator: head.initiator,
            reachable_nodes: reachable.to_wire(),
            primary_nodes: if primary { me.to_wire() } else { 0 },
            weak_nodes: if good { reachable.complement_to_wire() } else { 0 },
        };
        let message = match vote {
            Vote::Yes => Message::TwopcYes(reply),
            Vote::No => Message::TwopcNo(reply),
            Vote::Retry => Message::TwopcRetry(reply),
        };
        self.send(to, Socket::Control, volume, message);
    }

    pub(crate) fn aborted(&mut self, peer: NodeId, decision: TwopcDecision) {
        let ours = |f: &Foreign| f.from == peer && f.head.tid == decision.head.tid;
        if self.twophase.foreign.as_ref().is_some_and(ours) {
            self.twophase.foreign = None;
        }
    }

    pub(crate) fn committed(&mut self, peer: NodeId, decision: TwopcDecision) {
        let ours = |f: &Foreign| f.from == peer && f.head.tid == decision.head.tid && f.vote == Some(Vote::Yes);
        if !self.twophase.foreign.as_ref().is_some_and(ours) {
            return;
        }
        let foreign = self.twophase.foreign.take().expect("looked at it just now");
        match foreign.change {
            Some(Change::Connect { .. }) if foreign.head.target == Some(self.me) => {
                if self.claims_hold(peer) {
                    self.connected(peer, foreign.decisions);
                } else {
                    let end = End::Retry(Duration::from_millis(50));
                    let text = "what this node told of its data changed during the handshake";
                    self.end_connection(peer, end, ConnectionState::Unconnected, text);
                }
            }
            Some(Change::Disconnect { .. }) if foreign.head.target == Some(self.me) => {
                self.left_politely(peer);
                let end = End::Retry(Duration::from_secs(1));
                self.end_connection(peer, end, ConnectionState::TearDown, "the peer disconnected");
            }
            Some(Change::Promote { force }) => self.peer_promoted(foreign.head.initiator, force),
            Some(Change::Demote) => self.peer_demoted(foreign.head.initiator),
            Some(Change::Detach { volume }) => {
                self.set_peer_disk(foreign.head.initiator, volume, DiskState::Detaching, "the peer detaches");
            }
            Some(Change::Invalidate { volume, .. }) if foreign.head.target == Some(self.me) => {
                self.start_full_sync(peer, volume, true, "the peer invalidated its data");
            }
            Some(Change::InvalidateRemote { volume, .. }) if foreign.head.target == Some(self.me) => {
                self.start_full_sync(peer, volume, false, "the peer invalidated this node's data");
            }
            Some(Change::Verify { volume, span, .. }) if foreign.head.target == Some(self.me) => {
                self.begin_verify(peer, volume, false, span);
            }
            _ => {}
        }
    }

    // ------------------------------------------------------------------ losses and timers

    pub(crate) fn twophase_peer_lost(&mut self, peer: NodeId) {
        self.twophase.wanted.retain(|w| w.change != Change::Connect { peer });
        if self.twophase.foreign.as_ref().is_some_and(|f| f.from == peer) {
            self.twophase.foreign = None;
        }
        let Some(own) = &mut self.twophase.own else { return };
        if !own.asked.contains(&peer) {
            return;
        }
        own.asked.retain(|p| *p != peer);
        if own.wanted.change == (Change::Connect { peer }) {
            let own = self.twophase.own.take().expect("looked at it just now");
            self.tell_decision(&own, false, 0);
        } else if own.missing.contains(peer) {
            self.take_back(true);
        }
    }

    pub(crate) fn twophase_timers(&mut self) {
        if self.twophase.is_quiet() {
            return;
        }
        let now = self.now;
        if self.twophase.foreign.as_ref().is_some_and(|f| f.deadline <= now) {
            self.twophase.foreign = None;
        }
        if self.twophase.own.as_ref().is_some_and(|o| o.deadline <= now) {
            let own = self.twophase.own.take().expect("looked at it just now");
            self.tell_decision(&own, false, 0);
            let refusal = Refusal {
                code: -23,
                rule: "SS_TIMEOUT",
                state: format!("no answer from {:?}", own.missing),
                next_step: "see whether that node is stuck; disconnect it by force to go on without it",
            };
            self.change_refused(own.wanted, refusal);
        }
    }

    // ------------------------------------------------------------------ outcome of the own change

    fn change_refused(&mut self, wanted: Wanted, refusal: Refusal) {
        match wanted.change {
            Change::Promote { .. } | Change::Demote => self.role_change_refused(&refusal),
            Change::Attach { volume } => self.attach_refused(volume),
            _ => {}
        }
        if let Some(id) = wanted.command {
            self.refuse(id, refusal);
        }
    }

    fn change_committed(&mut self, wanted: Wanted) {
        match wanted.change {
            Change::Connect { .. } => unreachable!("a connect ends in decide_connect"),
            Change::Disconnect { peer } => {
                self.left_politely(peer);
                self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, "disconnect");
            }
            Change::Promote { force } => return self.promotion_committed(force, wanted.command),
            Change::Demote => return self.demotion_committed(wanted.command),
            Change::Attach { volume } => return self.attach_committed(volume),
            Change::Detach { volume } => return self.detach_committed(volume, wanted.command),
            Change::Invalidate { volume, peer } => self.start_full_sync(peer, volume, false, "invalidate"),
            Change::InvalidateRemote { volume, peer } => self.start_full_sync(peer, volume, true, "invalidate-remote"),
            Change::Verify { volume, peer, span } => self.begin_verify(peer, volume, true, span),
        }
        if let Some(id) = wanted.command {
            self.reply(id, Ok(()));
        }
    }

    fn all_up_to_date(&self) -> bool {
        self.volumes.keys().all(|v| self.has_data(*v))
    }
}
