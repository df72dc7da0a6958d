//! Two engines joined by perfect links and perfect disks: the shortest way to see the whole thing move.

#[path = "harness/config.rs"]
mod config;
#[path = "harness/fresh_disk.rs"]
mod fresh_disk;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use engine::*;
use types::*;

use fresh_disk::fresh_disk;

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

const V0: VolumeNumber = VolumeNumber::new(0).unwrap();
const DEVICE_BYTES: u64 = 8 << 20;

struct Node {
    engine: Engine,
    inbox: VecDeque<Input>,
    data: Vec<u8>,
    meta: BTreeMap<u64, Box<[u8; 4096]>>,
    payloads: BTreeMap<PayloadId, Vec<u8>>,
    next_payload: u32,
    log: Vec<String>,
    replies: BTreeMap<CommandId, Result<(), Refusal>>,
    completions: BTreeMap<RequestId, Result<(), IoError>>,
    wants_link: bool,
}

impl Node {
    fn payload(&mut self, bytes: Vec<u8>) -> PayloadId {
        self.next_payload += 1;
        let id = PayloadId(self.next_payload);
        self.payloads.insert(id, bytes);
        id
    }
}

struct Pair {
    now: Time,
    nodes: [Node; 2],
    link: u64,
    linked: bool,
    trace: bool,
}

fn slice(range: ByteRange) -> std::ops::Range<usize> {
    range.start() as usize..range.end() as usize
}

impl Pair {
    fn new(protocol: Protocol) -> Pair {
        let make = |me: u8| Node {
            engine: Engine::new(config::resource(node(me), &[node(0), node(1)], 1, protocol), [me + 1; 32]),
            inbox: VecDeque::new(),
            data: vec![me; DEVICE_BYTES as usize],
            meta: BTreeMap::new(),
            payloads: BTreeMap::new(),
            next_payload: 0,
            log: Vec::new(),
            replies: BTreeMap::new(),
            completions: BTreeMap::new(),
            wants_link: false,
        };
        let trace = std::env::var_os("TRACE").is_some();
        Pair { now: Time::ZERO, nodes: [make(0), make(1)], link: 0, linked: false, trace }
    }

    fn attach_fresh(&mut self, me: usize) {
        self.command(me, Command::Attach { volume: V0, disk: Box::new(fresh_disk(DEVICE_BYTES)) }).unwrap();
    }

    fn command(&mut self, me: usize, command: Command) -> Result<(), Refusal> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let id = CommandId(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.nodes[me].inbox.push_back(Input::Command { id, command });
        self.run();
        self.nodes[me].replies.remove(&id).unwrap_or_else(|| panic!("no reply; {}", self.story()))
    }

    fn story(&self) -> String {
        format!("node 0:\n  {}\nnode 1:\n  {}", self.nodes[0].log.join("\n  "), self.nodes[1].log.join("\n  "))
    }

    fn handle(&mut self, me: usize, input: Input) {
        let mut effects = Vec::new();
        if self.trace {
            eprintln!("{:>12} n{me} <- {input:?}", self.now.0);
        }
        self.nodes[me].engine.handle(self.now, input, &mut effects);
        for effect in effects {
            if self.trace {
                eprintln!("{:>12} n{me} -> {effect:?}", self.now.0);
            }
            self.apply(me, effect);
        }
    }

    fn apply(&mut self, me: usize, effect: Effect) {
        let other = 1 - me;
        match effect {
            Effect::Reply { id, result } => {
                self.nodes[me].replies.insert(id, result);
            }
            Effect::Complete { request, result } => {
                self.nodes[me].completions.insert(request, result);
            }
            Effect::Release { payload } => {
                // Released after every effect of the batch: the bytes were copied by then.
                assert!(self.nodes[me].payloads.contains_key(&payload), "released twice: {payload:?}");
            }
            Effect::Copy { from, to } => {
                let bytes = self.nodes[me].payloads[&from].clone();
                self.nodes[me].payloads.insert(to, bytes);
            }
            Effect::Disk { volume, io, op } => {
                let node = &mut self.nodes[me];
                let mut payload = None;
                match op {
                    DiskOp::Read { range } => payload = Some(node.payload(node.data[slice(range)].to_vec())),
                    DiskOp::ReadInto { range, payload } => {
                        let bytes = node.data[slice(range)].to_vec();
                        node.payloads.insert(payload, bytes);
                    }
                    DiskOp::Write { range, payload, .. } => {
                        let bytes = node.payloads[&payload].clone();
                        node.data[slice(range)].copy_from_slice(&bytes);
                    }
                    DiskOp::Discard { range } | DiskOp::WriteZeroes { range, .. } => node.data[slice(range)].fill(0),
                    DiskOp::Flush => {}
                    DiskOp::MetaWrite { blocks, .. } => {
                        for block in blocks {
                            node.meta.insert(block.offset, block.bytes);
                        }
                    }
                }
                node.inbox.push_back(Input::DiskDone { volume, io, result: Ok(()), payload });
            }
            Effect::Digest { id, payload, algorithm } => {
                let digest = algorithm.digest(&self.nodes[me].payloads[&payload]);
                self.nodes[me].inbox.push_back(Input::DigestDone { id, digest });
            }
            Effect::Send { link, socket, volume, message, payload, .. } => {
                let payload = payload.map(|p| {
                    let bytes = self.nodes[me].payloads[&p].clone();
                    assert_eq!(bytes.len() as u64, message.payload_bytes());
                    self.nodes[other].payload(bytes)
                });
                if self.linked && link == LinkId(self.link) {
                    let input = Input::Received { peer: node(me as u8), link, socket, volume, message, payload };
                    self.nodes[other].inbox.push_back(input);
                }
            }
            Effect::Connect { .. } => self.nodes[me].wants_link = true,
            Effect::StopConnecting { .. } => self.nodes[me].wants_link = false,
            Effect::CloseLink { link, .. } => {
                if self.linked && link == LinkId(self.link) {
                    self.linked = false;
                    let input = Input::LinkDown { peer: node(me as u8), link, error: LinkError::Closed };
                    self.nodes[other].inbox.push_back(input);
                }
            }
            Effect::Event(event) => self.nodes[me].log.push(format!("{event:?}")),
            Effect::LinkContext { .. } | Effect::Device { .. } | Effect::CloseDisk { .. } => {}
        }
    }

    fn cut(&mut self) {
        self.linked = false;
        for me in [0, 1] {
            self.nodes[me].inbox.retain(|i| !matches!(i, Input::Received { .. }));
            let peer = node(1 - me as u8);
            let error = LinkError::Failed("cut".into());
            self.nodes[me].inbox.push_back(Input::LinkDown { peer, link: LinkId(self.link), error });
        }
    }

    /// Runs until nothing moves for a second of virtual time.
    fn run(&mut self) {
        let until = self.now + Duration::from_secs(3);
        for _ in 0..2_000_000 {
            if let Some(me) = (0..2).find(|n| !self.nodes[*n].inbox.is_empty()) {
                // Take turns.
                let me = if self.nodes[1 - me].inbox.len() > self.nodes[me].inbox.len() { 1 - me } else { me };
                let input = self.nodes[me].inbox.pop_front().unwrap();
                self.handle(me, input);
                continue;
            }
            if !self.linked && self.nodes[0].wants_link && self.nodes[1].wants_link {
                self.linked = true;
                self.link += 1;
                for me in [0usize, 1] {
                    self.nodes[me].wants_link = false;
                    let peer = node(1 - me as u8);
                    self.nodes[me].inbox.push_back(Input::LinkUp { peer, link: LinkId(self.link), arbiter: me == 0 });
                }
                continue;
            }
            let next = (0..2).filter_map(|n| self.nodes[n].engine.next_deadline()).min();
            match next {
                Some(at) if at <= until => {
                    self.now = self.now.max(at);
                    self.handle(0, Input::Tick);
                    self.handle(1, Input::Tick);
                }
                _ => {
                    self.now = until;
                    return;
                }
            }
        }
        panic!("it never comes to rest; {}", self.story());
    }

    fn connect(&mut self) {
        for me in 0..2 {
            self.command(me, Command::Connect { peer: node(1 - me as u8), discard_my_data: false }).unwrap();
        }
        self.run();
    }

    fn submit(&mut self, me: usize, request: u64, op: BlockOp, start: u64, len: u64, fill: u8) {
        let payload = op.has_payload().then(|| self.nodes[me].payload(vec![fill; len as usize]));
        let range = ByteRange::new(start, len).unwrap();
        self.nodes[me].inbox.push_back(Input::Submit { request: RequestId(request), volume: V0, op, range, payload });
    }

    fn assert_in_sync(&self) {
        let size = self.nodes[0].engine.status().volumes[&V0].size_bytes as usize;
        for me in 0..2 {
            let status = self.nodes[me].engine.status();
            let volume = &status.volumes[&V0];
            let device = &status.peers[&node(1 - me as u8)].volumes[&V0];
            assert_eq!(volume.disk, DiskState::UpToDate, "node {me}; {}", self.story());
            assert_eq!(device.replication, ReplicationState::Established, "node {me}; {}", self.story());
            assert_eq!(device.disk, DiskState::UpToDate, "node {me}; {}", self.story());
            assert_eq!(device.out_of_sync_bytes, 0, "node {me}; {}", self.story());
            assert_eq!(device.bitmap_uuid, Uuid::ZERO, "node {me}; {}", self.story());
        }
        assert!(self.nodes[0].data[..size] == self.nodes[1].data[..size], "data differs; {}", self.story());
    }
}

fn synced(protocol: Protocol) -> Pair {
    let mut pair = Pair::new(protocol);
    pair.attach_fresh(0);
    pair.attach_fresh(1);
    pair.connect();
    pair.command(0, Command::Promote { force: true }).unwrap();
    pair.run();
    pair.assert_in_sync();
    pair
}

const WRITE: BlockOp = BlockOp::Write { fua: false };

#[test]
fn two_fresh_nodes_connect_and_the_forced_one_syncs_the_other() {
    synced(Protocol::C);
}

#[test]
fn writes_reach_both_disks_under_every_protocol() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut pair = synced(protocol);
        for i in 0..40u64 {
            pair.submit(0, i, WRITE, i * 4096 * 3, 4096, 7 + i as u8);
        }
        pair.submit(0, 100, BlockOp::Flush, 0, 0, 0);
        pair.submit(0, 101, BlockOp::Discard, 1 << 20, 65536, 0);
        pair.submit(0, 102, BlockOp::WriteZeroes { may_unmap: false, fua: true }, 2 << 20, 65536, 0);
        pair.run();
        for i in (0..40).chain(100..103) {
            assert_eq!(
                pair.nodes[0].completions.get(&RequestId(i)),
                Some(&Ok(())),
                "{protocol:?} {i}; {}",
                pair.story()
            );
        }
        pair.assert_in_sync();
    }
}

#[test]
fn a_reconnect_after_writes_syncs_the_difference_only() {
    let mut pair = synced(Protocol::C);
    pair.command(1, Command::Disconnect { peer: node(0), force: false }).unwrap();
    for i in 0..10u64 {
        pair.submit(0, i, WRITE, i * 65536, 4096, 9);
    }
    pair.run();
    let before = pair.nodes[1].engine.status().peers[&node(0)].volumes[&V0].resynced_bytes;
    pair.command(1, Command::Connect { peer: node(0), discard_my_data: false }).unwrap();
    pair.run();
    pair.assert_in_sync();
    let after = pair.nodes[1].engine.status().peers[&node(0)].volumes[&V0].resynced_bytes;
    assert_eq!(after - before, 10 * 4096);
}

#[test]
fn a_cut_with_writes_in_flight_heals() {
    let mut pair = synced(Protocol::C);
    for i in 0..10u64 {
        pair.submit(0, i, WRITE, i * 65536, 4096, 9);
    }
    let input = pair.nodes[0].inbox.pop_front().unwrap();
    pair.handle(0, input);
    pair.cut();
    pair.run();
    for i in 0..10 {
        assert_eq!(pair.nodes[0].completions.get(&RequestId(i)), Some(&Ok(())), "{}", pair.story());
    }
    pair.assert_in_sync();
}

#[test]
fn roles_change_sides() {
    let mut pair = synced(Protocol::C);
    assert_eq!(pair.command(1, Command::Promote { force: false }).unwrap_err().rule, "SS_TWO_PRIMARIES");
    pair.submit(0, 1, WRITE, 0, 4096, 3);
    pair.command(0, Command::Demote).unwrap();
    pair.command(1, Command::Promote { force: false }).unwrap();
    pair.submit(1, 2, WRITE, 8192, 4096, 4);
    pair.run();
    pair.assert_in_sync();
}

#[test]
fn both_promoted_while_apart_is_a_split_brain_on_both() {
    let mut pair = synced(Protocol::C);
    pair.command(0, Command::Demote).unwrap();
    pair.command(1, Command::Disconnect { peer: node(0), force: false }).unwrap();
    pair.command(0, Command::Disconnect { peer: node(1), force: false }).unwrap();
    for me in 0..2 {
        pair.command(me, Command::Promote { force: false }).unwrap();
        pair.submit(me, 1, WRITE, 0, 4096, 20 + me as u8);
        pair.run();
        pair.command(me, Command::Demote).unwrap();
    }
    pair.connect();
    for me in 0..2 {
        let status = pair.nodes[me].engine.status();
        assert_eq!(status.peers[&node(1 - me as u8)].connection, ConnectionState::StandAlone, "{}", pair.story());
        assert!(pair.nodes[me].log.iter().any(|l| l.contains("SplitBrain")), "{}", pair.story());
    }
}

#[test]
fn detach_and_attach_on_a_secondary() {
    let mut pair = synced(Protocol::C);
    pair.command(1, Command::Detach { volume: V0, force: false }).unwrap();
    pair.submit(0, 1, WRITE, 0, 4096, 3);
    pair.run();
    assert_eq!(pair.nodes[1].engine.status().volumes[&V0].disk, DiskState::Diskless);
}

/// PROTOCOL_UPDATE from the peer, changed by `change`. Returns node 0 afterwards.
fn told(change: impl Fn(&mut wire::message::ProtocolOptions)) -> (Pair, ConnectionState) {
    let mut pair = synced(Protocol::C);
    let mut options = wire::message::ProtocolOptions {
        protocol: 3,
        after_sb_0pri: 0,
        after_sb_1pri: 0,
        after_sb_2pri: 0,
        connection_flags: 0,
        two_primaries: false,
        integrity_alg: String::new(),
    };
    change(&mut options);
    let (link, socket) = (LinkId(pair.link), wire::Socket::Data);
    let message = wire::Message::ProtocolUpdate(options);
    pair.handle(0, Input::Received { peer: node(1), link, socket, volume: None, message, payload: None });
    let connection = pair.nodes[0].engine.status().peers[&node(1)].connection;
    (pair, connection)
}

#[test]
fn a_protocol_that_the_peer_tells_is_taken_over() {
    let (pair, connection) = told(|options| options.protocol = 2);
    assert_eq!(connection, ConnectionState::Connected);
    assert_eq!(pair.nodes[0].engine.status().peers[&node(1)].protocol, Protocol::B);
}

#[test]
fn options_that_this_node_cannot_do_end_the_connection_with_their_name() {
    type Change = fn(&mut wire::message::ProtocolOptions);
    let cases: [(&str, Change); 5] = [
        ("option data-integrity-alg", |options| options.integrity_alg = "crc32c".into()),
        ("option allow-two-primaries", |options| options.two_primaries = true),
        ("option after-sb-0pri", |options| options.after_sb_0pri = 1),
        ("option after-sb-1pri", |options| options.after_sb_1pri = 1),
        ("option after-sb-2pri", |options| options.after_sb_2pri = 1),
    ];
    for (name, change) in cases {
        let (pair, connection) = told(change);
        assert_eq!(connection, ConnectionState::StandAlone, "{name}");
        assert!(pair.nodes[0].log.iter().any(|line| line.contains(name)), "{name}; {}", pair.story());
    }
    for number in [0, 4, u32::MAX] {
        let (pair, connection) = told(|options| options.protocol = number);
        assert_eq!(connection, ConnectionState::Connecting, "{number}");
        let text = format!("protocol {number}");
        assert!(pair.nodes[0].log.iter().any(|line| line.contains(&text)), "{}", pair.story());
    }
}

#[test]
fn a_change_that_names_what_is_not_there_changes_nothing() {
    let mut pair = synced(Protocol::C);
    let config = config::resource(node(0), &[node(0), node(1), node(2)], 2, Protocol::A);
    let volumes = |of: &[u16]| {
        let options = VolumeOptions { al_extents: 100, on_io_error: OnIoError::PassOn };
        of.iter().map(|v| (VolumeNumber::new(*v).unwrap(), options)).collect()
    };
    let known = BTreeMap::from([(node(1), config.peers[&node(1)].clone())]);
    for (change, rule) in [
        (OptionChange { peers: config.peers.clone(), ..OptionChange::default() }, "ERR_INVALID_PEER_NODE_ID"),
        (OptionChange { peers: known.clone(), volumes: volumes(&[0, 1]), resource: None }, "ERR_MINOR_INVALID"),
    ] {
        let refusal = pair.command(0, Command::ChangeOptions { change: Box::new(change) }).unwrap_err();
        assert_eq!(refusal.rule, rule);
        assert_eq!(pair.nodes[0].engine.status().peers[&node(1)].protocol, Protocol::C);
    }
    let change = OptionChange { peers: known, volumes: volumes(&[0]), resource: Some(config.options()) };
    pair.command(0, Command::ChangeOptions { change: Box::new(change) }).unwrap();
    for me in [0, 1] {
        assert_eq!(pair.nodes[me].engine.status().peers[&node(1 - me as u8)].protocol, Protocol::A);
    }
}

/// From there on a kernel marks its writes instead of sending them, and comes back without an exchange of bitmaps.
#[test]
fn a_peer_that_goes_ahead_is_disconnected_and_compared_again() {
    let mut pair = synced(Protocol::A);
    let word = wire::message::StateWord::default()
        .with_role(Role::Primary)
        .with_peer_role(Role::Secondary)
        .with_conn(ReplicationState::Ahead.to_wire())
        .with_disk(DiskState::UpToDate)
        .with_peer_disk(DiskState::UpToDate);
    let (link, socket, message) = (LinkId(pair.link), wire::Socket::Data, wire::Message::State(word));
    pair.handle(1, Input::Received { peer: node(0), link, socket, volume: Some(V0), message, payload: None });
    let status = pair.nodes[1].engine.status();
    assert_eq!(status.peers[&node(0)].connection, ConnectionState::Connecting, "{}", pair.story());
    let told = |line: &String| line.contains("volume 0: the peer went Ahead (on-congestion pull-ahead)");
    assert!(pair.nodes[1].log.iter().any(told), "{}", pair.story());
}

/// The kernel's command fails then, and the two stay together. Afterwards it takes its transaction back.
#[test]
fn a_kernels_resize_is_refused_and_the_connection_stays() {
    let mut pair = synced(Protocol::C);
    let head = wire::message::TwopcHead {
        tid: 0x27d4_310a,
        flags: 0x8000_0000,
        initiator: node(0),
        target: None,
        nodes_to_reach: !0b11,
    };
    let resize = wire::message::TwopcResize { head, user_bytes: DEVICE_BYTES, dds_flags: 0 };
    let decision = wire::message::TwopcDecision { head, primary_nodes: 0, reachable_nodes: 0 };
    let link = LinkId(pair.link);
    for message in [wire::Message::TwopcPrepareResize(resize), wire::Message::TwopcAbort(decision)] {
        let (socket, volume) = (wire::Socket::Data, Some(V0));
        pair.handle(1, Input::Received { peer: node(0), link, socket, volume, message, payload: None });
    }
    let answers = |input: &Input| matches!(input, Input::Received { message: wire::Message::TwopcNo(reply), .. } if reply.tid == head.tid);
    assert!(pair.nodes[0].inbox.iter().any(answers), "{}", pair.story());
    pair.run();
    pair.assert_in_sync();
    pair.submit(0, 1, WRITE, 0, 4096, 9);
    pair.run();
    pair.assert_in_sync();
}
