//! Nodes with their disks, joined by sockets that carry encoded bytes. Nothing moves by itself: [`Cluster::deliver`],
//! [`Cluster::disk_done`], [`Cluster::run`] say what happens next. Every effect becomes a line of the transcript.
//!
//! Checked all the time: each payload is released exactly once and not used afterwards, each message survives the
//! codec unchanged, nothing is sent on a link that is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use engine::*;
use types::*;
use wire::digest::Digest;
use wire::{Context, Header, HeaderForm, Message, Socket};

use super::disk::{Disk, Stamp, sectors};
use super::names::Names;
use super::print;

/// Steps of one `run`. More means that two nodes talk in circles.
const STEPS_MAX: usize = 300_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    None,
    Events,
    All,
}

pub struct Frame {
    bytes: Vec<u8>,
    stamps: Option<Vec<Stamp>>,
}

struct DiskIo {
    volume: VolumeNumber,
    io: IoId,
    op: DiskOp,
    /// What a write writes: the engine may release the payload while the write is on its way.
    stamps: Option<Vec<Stamp>>,
}

struct Link {
    id: LinkId,
    context: Context,
}

pub struct Node {
    pub name: char,
    pub config: ResourceConfig,
    engine: Option<Engine>,
    lives: u8,
    pub disks: BTreeMap<VolumeNumber, Disk>,
    ios: VecDeque<DiskIo>,
    payloads: BTreeMap<PayloadId, Vec<Stamp>>,
    payloads_made: u32,
    links: BTreeMap<NodeId, Link>,
    /// Peers that the engine wants to reach, and from when on.
    wants: BTreeMap<NodeId, Time>,
    /// Digests that the engine asked for, not answered yet.
    digests: VecDeque<(DigestId, Digest)>,
    reads: BTreeMap<RequestId, PayloadId>,
    open_requests: BTreeSet<RequestId>,
}

pub struct Cluster {
    pub now: Time,
    pub nodes: Vec<Node>,
    wires: BTreeMap<(usize, usize, bool), VecDeque<Frame>>,
    links_made: u64,
    requests_made: u64,
    commands_made: u64,
    /// Pairs (lower index first) between which nothing passes.
    cuts: BTreeSet<(usize, usize)>,
    pub names: Names,
    pub verbosity: Verbosity,
    /// Not empty: only lines with one of these words, and answers to questions.
    pub only: Vec<String>,
    pub out: String,
}

fn is_control(socket: Socket) -> bool {
    socket == Socket::Control
}
fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Node {
    pub fn new(name: char, config: ResourceConfig) -> Node {
        Node {
            name,
            config,
            engine: None,
            lives: 0,
            disks: BTreeMap::new(),
            ios: VecDeque::new(),
            payloads: BTreeMap::new(),
            payloads_made: 0,
            links: BTreeMap::new(),
            wants: BTreeMap::new(),
            digests: VecDeque::new(),
            reads: BTreeMap::new(),
            open_requests: BTreeSet::new(),
        }
    }

    /// A process with a memory of its own.
    pub fn start(&mut self) {
        self.lives += 1;
        let mut seed = [self.config.node_id.get() + 1; 32];
        seed[1] = self.lives;
        self.engine = Some(Engine::new(self.config.clone(), seed));
    }

    fn payload(&mut self, stamps: Vec<Stamp>) -> PayloadId {
        self.payloads_made += 1;
        let id = PayloadId(self.payloads_made);
        self.payloads.insert(id, stamps);
        id
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap_or_else(|| panic!("{} is not running", self.name))
    }
    pub fn status(&self) -> Status {
        self.engine().status()
    }
    pub fn is_running(&self) -> bool {
        self.engine.is_some()
    }
}

impl Cluster {
    pub fn new(nodes: Vec<Node>) -> Cluster {
        Cluster {
            now: Time::ZERO,
            nodes,
            wires: BTreeMap::new(),
            links_made: 0,
            requests_made: 0,
            commands_made: 0,
            cuts: BTreeSet::new(),
            names: Names::default(),
            verbosity: Verbosity::All,
            only: Vec::new(),
            out: String::new(),
        }
    }

    pub fn index(&self, name: &str) -> usize {
        let found = self.nodes.iter().position(|n| n.name.to_string() == name);
        found.unwrap_or_else(|| panic!("no node {name:?} in this scenario"))
    }

    fn id(&self, node: usize) -> NodeId {
        self.nodes[node].config.node_id
    }

    fn by_id(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|n| n.config.node_id == id)
    }

    pub fn say(&mut self, least: Verbosity, line: String) {
        let chosen = self.only.is_empty() || self.only.iter().any(|word| line.contains(word));
        if least == Verbosity::None || (self.verbosity >= least && chosen) {
            self.out += line.trim_end();
            self.out.push('\n');
        }
    }

    // ------------------------------------------------------------------------------- inputs

    pub fn command(&mut self, me: usize, command: Command) {
        self.commands_made += 1;
        let id = CommandId(self.commands_made);
        self.handle(me, Input::Command { id, command });
    }

    /// Returns the number of the request, which is also the stamp of what it writes.
    pub fn submit(&mut self, me: usize, volume: VolumeNumber, op: BlockOp, range: ByteRange) {
        self.requests_made += 1;
        let request = RequestId(self.requests_made);
        let length = sectors(range).len();
        let node = &mut self.nodes[me];
        let stamp = if op.is_write() { request.0 as Stamp } else { Stamp::MAX };
        let payload = op.has_payload().then(|| node.payload(vec![stamp; length]));
        node.open_requests.insert(request);
        if op == BlockOp::Read {
            node.reads.insert(request, payload.expect("a read has a buffer"));
        }
        self.handle(me, Input::Submit { request, volume, op, range, payload });
    }

    fn handle(&mut self, me: usize, input: Input) {
        let mut effects = Vec::new();
        let now = self.now;
        self.nodes[me].engine.as_mut().unwrap_or_else(|| panic!("node {me} is not running")).handle(
            now,
            input,
            &mut effects,
        );
        // Buffers that an effect of the same batch still needs live until all were carried out.
        let mut released = Vec::new();
        for effect in effects {
            self.carry_out(me, effect, &mut released);
        }
        for payload in released {
            let known = self.nodes[me].payloads.remove(&payload);
            assert!(known.is_some(), "{}: {payload:?} was released twice", self.nodes[me].name);
        }
        if let Some((id, digest)) = self.nodes[me].digests.pop_front() {
            self.handle(me, Input::DigestDone { id, digest });
        }
    }

    pub fn link_up(&mut self, a: usize, b: usize, arbiter: usize) {
        self.links_made += 1;
        let id = LinkId(self.links_made);
        for (me, other) in [(a, b), (b, a)] {
            self.wires.insert((me, other, false), VecDeque::new());
            self.wires.insert((me, other, true), VecDeque::new());
            let peer = self.peer_as_seen(me, other);
            self.nodes[me].links.insert(peer, Link { id, context: Context::UNAGREED });
            self.nodes[me].wants.remove(&peer);
        }
        for (me, other) in [(a, b), (b, a)] {
            let peer = self.peer_as_seen(me, other);
            self.handle(me, Input::LinkUp { peer, link: id, arbiter: me == arbiter });
        }
    }

    /// The id that `me` has in its configuration for `other`: with two nodes the only peer, right or wrong.
    pub fn peer_as_seen(&self, me: usize, other: usize) -> NodeId {
        let id = self.id(other);
        let peers = &self.nodes[me].config.peers;
        if peers.contains_key(&id) { id } else { *peers.keys().next().expect("a peer") }
    }

    fn index_as_seen(&self, me: usize, peer: NodeId) -> usize {
        self.by_id(peer).unwrap_or_else(|| 1 - me)
    }

    fn link_gone(&mut self, me: usize, other: usize, error: LinkError) {
        let peer = self.peer_as_seen(me, other);
        let Some(link) = self.nodes[me].links.remove(&peer) else { return };
        if self.nodes[me].is_running() {
            self.handle(me, Input::LinkDown { peer, link: link.id, error });
        }
    }

    fn drop_wires(&mut self, a: usize, b: usize) {
        for control in [false, true] {
            self.wires.remove(&(a, b, control));
            self.wires.remove(&(b, a, control));
        }
    }

    /// What is on its way is lost; both ends notice.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert(pair(a, b));
        self.drop_wires(a, b);
        self.link_gone(a, b, LinkError::Failed("cut".into()));
        self.link_gone(b, a, LinkError::Failed("cut".into()));
    }
    pub fn heal(&mut self, a: usize, b: usize) {
        self.cuts.remove(&pair(a, b));
    }

    pub fn crash(&mut self, me: usize) {
        let node = &mut self.nodes[me];
        node.engine = None;
        node.ios.clear();
        node.payloads.clear();
        node.links.clear();
        node.wants.clear();
        node.digests.clear();
        node.reads.clear();
        node.open_requests.clear();
        node.disks.values_mut().for_each(Disk::crash);
        for other in (0..self.nodes.len()).filter(|n| *n != me) {
            self.drop_wires(me, other);
            self.link_gone(other, me, LinkError::Closed);
        }
    }

    pub fn attach(&mut self, me: usize, volume: VolumeNumber) {
        let disk = Box::new(self.nodes[me].disks[&volume].attached());
        self.command(me, Command::Attach { volume, disk });
    }

    // ------------------------------------------------------------------------------- effects

    fn carry_out(&mut self, me: usize, effect: Effect, released: &mut Vec<PayloadId>) {
        let name = self.nodes[me].name;
        match effect {
            Effect::Reply { result: Ok(()), .. } => self.say(Verbosity::Events, format!("{name}: done")),
            Effect::Reply { result: Err(r), .. } => {
                let state = self.names.rename(&r.state);
                self.say(Verbosity::None, format!("{name}: refused {} {} ({state})", r.code, r.rule));
            }
            Effect::Complete { request, result } => {
                let node = &mut self.nodes[me];
                assert!(node.open_requests.remove(&request), "{name}: {request:?} completed twice");
                let read = node.reads.remove(&request).map(|p| print_stamps(&node.payloads[&p]));
                // A failure is shown whatever the log level: a scenario must not rest on one unseen.
                let (least, result) = match (result, read) {
                    (Ok(()), Some(stamps)) => (Verbosity::Events, format!("ok: {stamps}")),
                    (Ok(()), None) => (Verbosity::Events, "ok".into()),
                    (Err(error), _) => (Verbosity::None, error.to_string()),
                };
                self.say(least, format!("{name}: request {} {result}", request.0));
            }
            Effect::Release { payload } => released.push(payload),
            Effect::Copy { from, to } => {
                let stamps = self.nodes[me].payloads[&from].clone();
                let old = self.nodes[me].payloads.insert(to, stamps);
                assert!(old.is_some(), "{name}: copied into {to:?}, which is gone");
            }
            Effect::Disk { volume, io, op } => {
                let text = print::disk_op(self.nodes[me].disks[&volume].layout(), &op, &mut self.names);
                self.say(Verbosity::All, format!("{name}: {}{text}", volume_prefix(Some(volume))));
                let node = &mut self.nodes[me];
                let stamps = match &op {
                    DiskOp::Write { payload, .. } => Some(node.payloads[payload].clone()),
                    _ => None,
                };
                node.ios.push_back(DiskIo { volume, io, op, stamps });
            }
            Effect::Digest { id, payload, algorithm } => {
                let bytes: Vec<u8> = self.nodes[me].payloads[&payload].iter().flat_map(|s| s.to_le_bytes()).collect();
                self.nodes[me].digests.push_back((id, algorithm.digest(&bytes)));
            }
            Effect::Send { peer, link, socket, volume, message, payload } => {
                self.send(me, peer, link, socket, volume, &message, payload);
            }
            Effect::LinkContext { peer, protocol, features, .. } => {
                let context = Context { features, protocol, integrity_digest_len: 0 };
                if let Some(link) = self.nodes[me].links.get_mut(&peer) {
                    link.context = context;
                }
                self.say(
                    Verbosity::All,
                    format!("{name}: agreed with {peer}: protocol {protocol} features {features:#x}"),
                );
            }
            Effect::Connect { peer, delay } => {
                let at = self.now + delay;
                self.nodes[me].wants.insert(peer, at);
                self.say(Verbosity::All, format!("{name}: try to reach {peer} after {delay:?}"));
            }
            Effect::StopConnecting { peer } => {
                self.nodes[me].wants.remove(&peer);
                self.say(Verbosity::All, format!("{name}: stop trying to reach {peer}"));
            }
            Effect::CloseLink { peer, link } => self.close(me, peer, link),
            Effect::Device { volume, device } => {
                let text = device.map_or("gone".into(), |d| format!("{} bytes", d.size_bytes));
                self.say(Verbosity::All, format!("{name}: device {volume} {text}"));
            }
            Effect::CloseDisk { volume } => self.say(Verbosity::All, format!("{name}: close disk {volume}")),
            Effect::Event(event) => {
                let text = print::event(&event, &mut self.names);
                self.say(Verbosity::Events, format!("{name}: * {text}"));
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of Effect::Send")]
    fn send(
        &mut self,
        me: usize,
        peer: NodeId,
        link: LinkId,
        socket: Socket,
        volume: Option<VolumeNumber>,
        message: &Message,
        payload: Option<PayloadId>,
    ) {
        let other = self.index_as_seen(me, peer);
        let (from, to) = (self.nodes[me].name, self.nodes[other].name);
        let text = print::message(message, &mut self.names);
        let arrow = if is_control(socket) { "=>" } else { "->" };
        self.say(Verbosity::All, format!("{from}{arrow}{to} {}{text}", volume_prefix(volume)));
        let stamps = payload.map(|p| self.nodes[me].payloads[&p].clone());
        let length = stamps.as_ref().map_or(0, |s| s.len() as u64 * types::range::SECTOR_BYTES);
        assert_eq!(length, message.payload_bytes(), "{from}: bulk data of {text}");
        let known = self.nodes[me].links.get(&peer).filter(|l| l.id == link);
        let context = known.unwrap_or_else(|| panic!("{from} sends {text} on a link that is gone")).context;
        let mut bytes = Vec::new();
        wire::encode(&context, volume, message, &mut bytes);
        if let Some(queue) = self.wires.get_mut(&(me, other, is_control(socket))) {
            queue.push_back(Frame { bytes, stamps });
        }
    }

    fn close(&mut self, me: usize, peer: NodeId, link: LinkId) {
        let other = self.index_as_seen(me, peer);
        let (name, there) = (self.nodes[me].name, self.nodes[other].name);
        self.say(Verbosity::All, format!("{name}: close link to {there}"));
        if self.nodes[me].links.get(&peer).is_some_and(|l| l.id == link) {
            self.nodes[me].links.remove(&peer);
        }
    }

    // ------------------------------------------------------------------------------- movement

    /// Delivers the next message of one socket. False: there is none.
    pub fn deliver(&mut self, from: usize, to: usize, socket: Socket) -> bool {
        let Some(frame) = self.wires.get_mut(&(from, to, is_control(socket))).and_then(VecDeque::pop_front) else {
            return false;
        };
        let peer = self.peer_as_seen(to, from);
        let Some(link) = self.nodes[to].links.get(&peer) else { return true };
        let (id, context) = (link.id, link.context);
        let first = frame.bytes[..8].try_into().expect("a header");
        let header_bytes = HeaderForm::classify(first).expect("a known header form").header_bytes();
        let header = Header::decode(&frame.bytes[..header_bytes]).expect("a header that decodes");
        let message = wire::decode(&context, &header, socket, &frame.bytes[header_bytes..]);
        let message = message.unwrap_or_else(|e| panic!("a message of node {from} does not decode: {e}"));
        let payload = frame.stamps.map(|stamps| self.nodes[to].payload(stamps));
        let volume = header.volume;
        self.handle(to, Input::Received { peer, link: id, socket, volume, message, payload });
        true
    }

    /// A closed end is seen by the other one after everything sent before.
    fn notice_closed(&mut self) -> bool {
        for me in 0..self.nodes.len() {
            for other in (0..self.nodes.len()).filter(|n| *n != me) {
                let (mine, theirs) = (self.peer_as_seen(me, other), self.peer_as_seen(other, me));
                let Some(link) = self.nodes[me].links.get(&mine) else { continue };
                let open_there = self.nodes[other].links.get(&theirs).is_some_and(|l| l.id == link.id);
                let pending =
                    [false, true].iter().any(|c| self.wires.get(&(other, me, *c)).is_some_and(|q| !q.is_empty()));
                if !open_there && !pending {
                    self.drop_wires(me, other);
                    self.link_gone(me, other, LinkError::Closed);
                    return true;
                }
            }
        }
        false
    }

    /// Completes the oldest disk operation. False: there is none.
    pub fn disk_done(&mut self, me: usize, result: Result<(), IoError>) -> bool {
        let node = &mut self.nodes[me];
        let Some(DiskIo { volume, io, op, stamps }) = node.ios.pop_front() else { return false };
        let mut payload = None;
        if matches!(op, DiskOp::Read { .. }) && result.is_err() {
            let DiskOp::Read { range } = op else { unreachable!() };
            payload = Some(node.payload(vec![Stamp::MAX; sectors(range).len()]));
        } else if result.is_ok() {
            let read = node.disks.get_mut(&volume).expect("a disk").carry_out(&op, stamps);
            match (&op, read) {
                (DiskOp::Read { .. }, Some(stamps)) => payload = Some(node.payload(stamps)),
                (DiskOp::ReadInto { payload, .. }, Some(stamps)) => {
                    let old = node.payloads.insert(*payload, stamps);
                    assert!(old.is_some(), "{} reads into {payload:?}, which is gone", node.name);
                }
                _ => {}
            }
        }
        self.handle(me, Input::DiskDone { volume, io, result, payload });
        true
    }

    fn auto_link(&mut self) -> bool {
        for b in 0..self.nodes.len() {
            for a in 0..b {
                let (at_a, at_b) = (self.peer_as_seen(a, b), self.peer_as_seen(b, a));
                let due = |at: Option<&Time>| at.is_some_and(|at| *at <= self.now);
                let wanted = due(self.nodes[a].wants.get(&at_a)) && due(self.nodes[b].wants.get(&at_b));
                if wanted && !self.cuts.contains(&(a, b)) {
                    self.link_up(a, b, b);
                    return true;
                }
            }
        }
        false
    }

    /// One round: every socket one message, every disk one operation. False: nothing to move.
    fn round(&mut self) -> bool {
        let mut moved = false;
        for me in 0..self.nodes.len() {
            for other in (0..self.nodes.len()).filter(|n| *n != me) {
                moved |= self.deliver(other, me, Socket::Data);
                moved |= self.deliver(other, me, Socket::Control);
            }
            moved |= self.disk_done(me, Ok(()));
        }
        moved || self.notice_closed() || self.auto_link()
    }

    pub fn step(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.round();
        }
    }

    /// Everything that needs no time.
    pub fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            if !self.round() {
                return;
            }
        }
        panic!("it never comes to rest:\n{}", self.out);
    }

    /// `for_how_long` of virtual time with perfect disks and links.
    pub fn run(&mut self, for_how_long: Duration) {
        let until = self.now + for_how_long;
        for _ in 0..STEPS_MAX {
            self.settle();
            let timers = self.nodes.iter().filter_map(|n| n.engine.as_ref()?.next_deadline());
            let attempts = self.nodes.iter().flat_map(|n| n.wants.values().copied()).filter(|at| *at > self.now);
            let next = timers.chain(attempts).min();
            match next {
                Some(at) if at <= until => self.tick_to(at),
                _ => {
                    self.now = until;
                    self.check_payloads();
                    return;
                }
            }
        }
        panic!("timers fire without end before {until:?}:\n{}", self.out);
    }

    pub fn tick_to(&mut self, at: Time) {
        self.now = self.now.max(at);
        for me in 0..self.nodes.len() {
            if self.nodes[me].is_running() {
                self.handle(me, Input::Tick);
            }
        }
    }

    /// With nothing on its way and no request open, no buffer may be left.
    fn check_payloads(&self) {
        for node in &self.nodes {
            let open = self.nodes.iter().any(|n| !n.open_requests.is_empty());
            assert!(
                open || node.payloads.is_empty(),
                "{} keeps {} payloads:\n{}",
                node.name,
                node.payloads.len(),
                self.out
            );
        }
    }

    pub fn pending_ios(&self, me: usize) -> usize {
        self.nodes[me].ios.len()
    }
}

fn volume_prefix(volume: Option<VolumeNumber>) -> String {
    match volume {
        Some(v) if v.get() != 0 => format!("v{v} "),
        _ => String::new(),
    }
}

/// Runs of equal stamps: "3 x8, 0 x8" is four KiB of write 3 and four of zeroes.
pub fn print_stamps(stamps: &[Stamp]) -> String {
    let runs: Vec<String> = stamps.chunk_by(|a, b| a == b).map(|run| format!("{} x{}", run[0], run.len())).collect();
    runs.join(", ")
}
