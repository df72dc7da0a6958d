//! A peer gone wild: an engine, connected or about to be, that gets any messages in any order, while its application
//! writes and its disk answers when it likes, with errors. Promises: no panic, whatever comes; each buffer is given back once
//! and not used afterwards.
//!
//! An input is a byte for what stands at the beginning, then operations (`Op`).

#[path = "../../engine/tests/harness/config.rs"]
mod config;
#[path = "../../engine/tests/harness/fresh_disk.rs"]
mod fresh_disk;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use engine::{Command, CommandId, DigestId, DiskOp, Effect, Engine, Input, LinkError, Protocol};
use fresh_disk::fresh_disk;
use types::{BlockOp, ByteRange, DiskState, IoError, IoId, LinkId, NodeId, PayloadId, RequestId, Time, VolumeNumber};
use wire::codec::packet_of;
use wire::digest::Digest;
use wire::packet::{PacketInfo, Scope};
use wire::{Context, Header, HeaderForm, Message, Socket, decode, encode, frame_parts};

const VOLUME: VolumeNumber = VolumeNumber::new(0).unwrap();
const A: NodeId = NodeId::new(0).unwrap();
const B: NodeId = NodeId::new(1).unwrap();
const DEVICE_BYTES: u64 = 8 << 20;
const SECTOR_BYTES: u64 = 512;
/// Longer inputs only repeat themselves.
const OPS_MAX: usize = 400;
const FEATURES: u32 = 0x3ff;

/// What an input says happens next. In bytes: the number, then its fields.
enum Op<'a> {
    /// Socket, packet number, payload in sectors, then length and bytes of the fixed part.
    Message {
        socket: Socket,
        command: u16,
        sectors: u16,
        fixed: &'a [u8],
    },
    Submit {
        op: BlockOp,
        sector: u16,
        sectors: u8,
    },
    /// The oldest or the newest operation of the disk comes back.
    Disk {
        newest: bool,
        ok: bool,
    },
    Tick {
        millis: u8,
    },
    Command(u8),
    LinkUp {
        arbiter: bool,
    },
    LinkDown,
}

impl<'a> Op<'a> {
    fn read(input: &mut &'a [u8]) -> Option<Op<'a>> {
        let [number] = take::<1>(input)?;
        Some(match number % 8 {
            0 | 1 => {
                let [low, high, sectors_low, sectors_high, len] = take::<5>(input)?;
                let (fixed, rest) = input.split_at(usize::from(len).min(input.len()));
                *input = rest;
                let socket = if number % 8 == 0 { Socket::Data } else { Socket::Control };
                let sectors = u16::from_le_bytes([sectors_low, sectors_high]);
                Op::Message { socket, command: u16::from_le_bytes([low, high]), sectors, fixed }
            }
            2 => {
                let [kind, low, high, sectors] = take::<4>(input)?;
                let fua = kind & 0x10 != 0;
                let op = match kind & 7 {
                    0 | 1 => BlockOp::Write { fua },
                    2 => BlockOp::Read,
                    3 => BlockOp::Flush,
                    4 => BlockOp::Discard,
                    _ => BlockOp::WriteZeroes { may_unmap: kind & 0x20 != 0, fua },
                };
                Op::Submit { op, sector: u16::from_le_bytes([low, high]), sectors }
            }
            3 => Op::Disk { newest: number & 0x80 != 0, ok: number & 0x60 != 0x60 },
            4 => Op::Tick { millis: take::<1>(input)?[0] },
            5 => Op::Command(take::<1>(input)?[0]),
            6 => Op::LinkUp { arbiter: number & 0x80 != 0 },
            _ => Op::LinkDown,
        })
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*head)
}

/// A and all that it has in hand.
struct World {
    engine: Engine,
    peer: NodeId,
    now: Time,
    links: u64,
    link: Option<LinkId>,
    context: Context,
    /// Not given back yet.
    buffers: BTreeSet<PayloadId>,
    made: u32,
    disk: VecDeque<(IoId, DiskOp)>,
    /// Digests that were asked for in the input that is being carried out.
    digests: VecDeque<(DigestId, Digest)>,
    requests: BTreeSet<RequestId>,
    /// For the peer, while there is one.
    sent: VecDeque<(Socket, Option<VolumeNumber>, Message, bool)>,
}

impl World {
    fn new(me: NodeId, protocol: Protocol) -> World {
        let mut config = config::resource(me, &[A, B], 1, protocol);
        for peer in config.peers.values_mut() {
            (peer.verify_alg, peer.csums_alg) = ("crc32c".into(), "crc32c".into());
        }
        let mut world = World {
            engine: Engine::new(config, [me.get() + 1; 32]),
            peer: if me == A { B } else { A },
            now: Time::ZERO,
            links: 0,
            link: None,
            context: Context { protocol: 124, features: FEATURES, integrity_digest_len: 0 },
            buffers: BTreeSet::new(),
            made: 0,
            disk: VecDeque::new(),
            digests: VecDeque::new(),
            requests: BTreeSet::new(),
            sent: VecDeque::new(),
        };
        world.command(Command::Attach { volume: VOLUME, disk: Box::new(fresh_disk(DEVICE_BYTES)) });
        world.finish_disk();
        world.command(Command::Connect { peer: world.peer, discard_my_data: false });
        world
    }

    fn buffer(&mut self) -> PayloadId {
        self.made += 1;
        self.buffers.insert(PayloadId(self.made));
        PayloadId(self.made)
    }

    fn assert_live(&self, payload: Option<PayloadId>, what: &str) {
        assert!(payload.is_none_or(|id| self.buffers.contains(&id)), "{what} uses {payload:?}, which was given back");
    }

    fn handle(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.engine.handle(self.now, input, &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
        if let Some((id, digest)) = self.digests.pop_front() {
            self.handle(Input::DigestDone { id, digest });
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Release { payload } => assert!(self.buffers.remove(&payload), "{payload:?} is given back twice"),
            Effect::Disk { io, op, .. } => {
                let used = match &op {
                    DiskOp::ReadInto { payload, .. } | DiskOp::Write { payload, .. } => Some(*payload),
                    _ => None,
                };
                self.assert_live(used, "the disk");
                self.disk.push_back((io, op));
            }
            Effect::Send { link, socket, volume, message, payload, .. } => {
                assert_eq!(Some(link), self.link, "{message:?} for a link that is gone");
                self.assert_live(payload, "a message");
                self.sent.push_back((socket, volume, message, payload.is_some()));
            }
            Effect::Digest { id, payload, algorithm } => {
                self.assert_live(Some(payload), "a digest");
                // All blocks hold the same: what the peer says decides whether they are equal.
                self.digests.push_back((id, algorithm.digest(&[])));
            }
            Effect::Copy { from, to } => {
                self.assert_live(Some(from), "a copy");
                self.assert_live(Some(to), "a copy");
            }
            Effect::Complete { request, .. } => {
                assert!(self.requests.remove(&request), "{request:?} is completed twice");
            }
            Effect::LinkContext { protocol, features, .. } => {
                self.context = Context { protocol, features, integrity_digest_len: 0 };
            }
            Effect::CloseLink { link, .. } => {
                assert_eq!(Some(link), self.link, "a link is closed twice");
                self.link = None;
            }
            _ => {}
        }
    }

    fn command(&mut self, command: Command) {
        self.made += 1;
        self.handle(Input::Command { id: CommandId(u64::from(self.made)), command });
    }

    fn disk_done(&mut self, newest: bool, ok: bool) {
        let taken = if newest { self.disk.pop_back() } else { self.disk.pop_front() };
        let Some((io, op)) = taken else { return };
        let result = if ok { Ok(()) } else { Err(IoError::Io) };
        let payload = (ok && matches!(op, DiskOp::Read { .. })).then(|| self.buffer());
        self.handle(Input::DiskDone { volume: VOLUME, io, result, payload });
    }

    fn finish_disk(&mut self) {
        while !self.disk.is_empty() {
            self.disk_done(false, true);
        }
    }

    fn link_up(&mut self, arbiter: bool) {
        if self.link.is_some() {
            return;
        }
        self.links += 1;
        self.link = Some(LinkId(self.links));
        self.context = Context::UNAGREED;
        let peer = self.peer;
        self.handle(Input::LinkUp { peer, link: LinkId(self.links), arbiter });
    }

    fn link_down(&mut self, error: LinkError) {
        let Some(link) = self.link.take() else { return };
        let peer = self.peer;
        self.handle(Input::LinkDown { peer, link, error });
    }

    fn received(&mut self, socket: Socket, volume: Option<VolumeNumber>, message: Message, payload: bool) {
        let Some(link) = self.link else { return };
        let payload = payload.then(|| self.buffer());
        let peer = self.peer;
        self.handle(Input::Received { peer, link, socket, volume, message, payload });
    }

    /// As the daemon reads it: what is no message ends the link.
    fn message(&mut self, socket: Socket, command: u16, sectors: u16, fixed: &[u8]) {
        let bulk = u32::from(sectors) * SECTOR_BYTES as u32;
        let header = Header { command, volume: Some(VOLUME), len: fixed.len() as u32 + bulk, form: HeaderForm::H100 };
        let read = frame_parts(&self.context, &header, socket).and_then(|parts| {
            let fixed = fixed.get(..parts.fixed_bytes).unwrap_or(fixed);
            decode(&self.context, &header, socket, fixed).map(|message| (message, parts.payload_bytes > 0))
        });
        match read {
            Ok((message, payload)) => {
                let whole = self.context.packet_info(command).is_some_and(|info| info.scope == Scope::Connection);
                self.received(socket, Some(VOLUME).filter(|_| !whole), message, payload);
            }
            Err(error) => self.link_down(LinkError::Protocol(error.to_string())),
        }
    }

    fn submit(&mut self, op: BlockOp, sector: u16, sectors: u8) {
        let len = if op == BlockOp::Flush { 0 } else { (u64::from(sectors) + 1) * SECTOR_BYTES };
        let start = if op == BlockOp::Flush { 0 } else { u64::from(sector % 8192) * SECTOR_BYTES };
        let range = ByteRange::new(start, len).expect("small numbers");
        let payload = op.has_payload().then(|| self.buffer());
        self.made += 1;
        let request = RequestId(u64::from(self.made));
        self.requests.insert(request);
        self.handle(Input::Submit { request, volume: VOLUME, op, range, payload });
    }

    fn chosen_command(&mut self, number: u8) {
        let (peer, high) = (self.peer, number & 0x80 != 0);
        self.command(match number & 15 {
            0 => Command::Promote { force: high },
            1 => Command::Demote,
            2 => Command::Detach { volume: VOLUME, force: high },
            // The driver has one disk open at most.
            3 if self.disk.is_empty() => Command::Attach { volume: VOLUME, disk: Box::new(fresh_disk(DEVICE_BYTES)) },
            4 => Command::Connect { peer, discard_my_data: high },
            5 => Command::Disconnect { peer, force: high },
            6 => Command::Invalidate { volume: VOLUME, from: high.then_some(peer) },
            7 => Command::InvalidateRemote { volume: VOLUME, peer },
            8 => Command::Outdate { volume: VOLUME },
            9 => Command::NewCurrentUuid { volume: VOLUME, clear_bitmap: high },
            10 => Command::PauseSync { volume: VOLUME, peer },
            11 => Command::ResumeSync { volume: VOLUME, peer },
            _ => Command::Verify { volume: VOLUME, peer, start: high.then_some(4096), stop: None },
        });
    }

    fn tick(&mut self, millis: u8) {
        self.now = self.now + Duration::from_millis(u64::from(millis) * u64::from(millis));
        if self.engine.next_deadline().is_some_and(|at| at <= self.now) {
            self.handle(Input::Tick);
        }
    }

    fn step(&mut self, op: &Op<'_>) {
        match op {
            Op::Message { socket, command, sectors, fixed } => self.message(*socket, *command, *sectors, fixed),
            Op::Submit { op, sector, sectors } => self.submit(*op, *sector, *sectors),
            Op::Disk { newest, ok } => self.disk_done(*newest, *ok),
            Op::Tick { millis } => self.tick(*millis),
            Op::Command(number) => self.chosen_command(*number),
            Op::LinkUp { arbiter } => self.link_up(*arbiter),
            Op::LinkDown => self.link_down(LinkError::Closed),
        }
    }
}

/// Both ends, while the other one behaves. What it says is written down as operations on A.
struct Pair {
    a: World,
    b: World,
    /// After the byte for the beginning.
    recorded: Vec<u8>,
}

/// What stands at the beginning.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// A link has just come up.
    Fresh,
    Primary,
    Secondary,
}

impl Beginning {
    fn of(choice: u8) -> (Beginning, Protocol) {
        let beginning = match choice % 4 {
            0 => Beginning::Fresh,
            1 => Beginning::Secondary,
            _ => Beginning::Primary,
        };
        (beginning, [Protocol::C, Protocol::B, Protocol::A, Protocol::C][usize::from(choice >> 2 & 3)])
    }
}

impl Pair {
    fn new(choice: u8) -> Pair {
        let (beginning, protocol) = Beginning::of(choice);
        let mut pair = Pair { a: World::new(A, protocol), b: World::new(B, protocol), recorded: Vec::new() };
        pair.a.link_up(true);
        pair.b.link_up(false);
        if beginning == Beginning::Fresh {
            return pair;
        }
        pair.settle();
        pair.a.command(Command::NewCurrentUuid { volume: VOLUME, clear_bitmap: true });
        pair.settle();
        let primary = if beginning == Beginning::Primary { &mut pair.a } else { &mut pair.b };
        primary.command(Command::Promote { force: false });
        pair.settle();
        for world in [&pair.a, &pair.b] {
            let status = world.engine.status();
            let seen = &status.peers[&world.peer].volumes[&VOLUME];
            assert_eq!((status.volumes[&VOLUME].disk, seen.disk), (DiskState::UpToDate, DiskState::UpToDate));
        }
        pair.recorded.clear();
        pair
    }

    /// Until nothing is on its way.
    fn settle(&mut self) {
        while !(self.a.sent.is_empty() && self.b.sent.is_empty() && self.a.disk.is_empty() && self.b.disk.is_empty()) {
            while !self.a.disk.is_empty() {
                self.recorded.push(3);
                self.a.disk_done(false, true);
            }
            self.b.finish_disk();
            while let Some((socket, volume, message, payload)) = self.a.sent.pop_front() {
                self.b.received(socket, volume, message, payload);
            }
            while let Some((socket, volume, message, payload)) = self.b.sent.pop_front() {
                self.record(socket, volume, &message);
                self.a.received(socket, volume, message, payload);
            }
        }
    }

    fn record(&mut self, socket: Socket, volume: Option<VolumeNumber>, message: &Message) {
        let context = self.a.context;
        let mut out = Vec::new();
        encode(&context, volume, message, &mut out);
        let form = HeaderForm::classify(*out.first_chunk().expect("a header")).expect("our own");
        let fixed = &out[form.header_bytes()..];
        let info: &PacketInfo = packet_of(&context, message).info();
        let Ok(len) = u8::try_from(fixed.len()) else { return };
        self.recorded.push(u8::from(socket == Socket::Control));
        self.recorded.extend(info.packet.number().to_le_bytes());
        self.recorded.extend(((message.payload_bytes() / SECTOR_BYTES) as u16).to_le_bytes());
        self.recorded.push(len);
        self.recorded.extend(fixed);
    }
}

pub fn run(input: &[u8]) {
    let Some((&choice, mut rest)) = input.split_first() else { return };
    let mut world = Pair::new(choice).a;
    for _ in 0..OPS_MAX {
        let Some(op) = Op::read(&mut rest) else { return };
        world.sent.clear();
        world.step(&op);
    }
}

/// What two that behave say to each other.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for choice in 0..16u8 {
        let mut pair = Pair::new(choice);
        let writer = u8::from(Beginning::of(choice).0 == Beginning::Primary);
        for step in 0..6u8 {
            if writer == 1 {
                pair.recorded.extend([2, step, step, 0, step]);
                pair.a.submit(if step == 2 { BlockOp::Read } else { BlockOp::Write { fua: false } }, step.into(), step);
            } else {
                pair.b.submit(BlockOp::Write { fua: step == 3 }, step.into(), step);
            }
            pair.settle();
            for world in [&mut pair.a, &mut pair.b] {
                world.tick(40);
            }
            pair.recorded.extend([4, 40]);
            pair.settle();
        }
        seeds.push([&[choice], &pair.recorded[..]].concat());
    }
    seeds
}
