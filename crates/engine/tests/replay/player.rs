//! One engine in the place of one node of a capture.
//!
//! The engine's clock is the capture's. A message of the other kernel is fed at its time; what the replaced kernel had
//! sent before must have left the engine by then, or it counts as late. Disk operations complete at once, and timers run
//! to the time of the next event. Writes to a connected peer come when the replaced kernel sent them, those without one
//! from the script.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use engine::*;
use types::*;
use wire::message::DataFlags;
use wire::version::FEATURES_OFFERED;
use wire::{Message, Socket};

use super::capture::{Event, Frame};
use super::compare::{differences, kind};
use super::fresh_disk::fresh_disk;
use super::identifiers::Identifiers;
use super::{Do, Run, V0};

/// Engine time of time 0: what scripts do before is at positive times too.
const ZERO: Duration = Duration::from_secs(100);

/// A place where the engine is not the kernel that it replaces.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Difference {
    /// The kernel sent it and we did not.
    Missing(String),
    /// We sent it and the kernel did not.
    Extra(String),
    /// The kernel sent once more what it had just sent.
    Repeated(String),
    /// Sent, but not before the other kernel's next message came.
    Late(String),
    /// Kind and name of the field.
    Field(String, String),
    /// A command that ended otherwise, a link that the engine did not want.
    Other(String),
}

pub struct Found {
    pub difference: Difference,
    pub text: String,
}

struct Sent {
    volume: Option<VolumeNumber>,
    message: Message,
    payload: Vec<u8>,
}

/// Link and socket. Answers to pings come from wherever they fit: they are counted on a lane of their own.
type LaneId = (usize, Socket, bool);

fn lane(link: usize, socket: Socket, message: &Message) -> LaneId {
    (link, socket, *message == Message::PingAck)
}

#[derive(Default)]
struct Lane {
    expected: VecDeque<Frame>,
    sent: VecDeque<Sent>,
    is_late: bool,
    /// What the kernel sent last, of what was compared.
    last: Option<Message>,
}

impl Lane {
    fn is_repeated(&self) -> bool {
        let next = self.expected.front().map(|frame| &frame.message);
        matches!(next, Some(Message::Uuids(_) | Message::State(_))) && next == self.last.as_ref()
    }

    fn would_match(&self, ids: &Identifiers) -> bool {
        let (Some(theirs), Some(ours)) = (self.expected.front(), self.sent.front()) else { return false };
        let expected = ids.clone().expected(&theirs.message, &ours.message);
        differences(&expected, &ours.message).is_empty()
    }
}

pub struct Player<'a> {
    run: &'a Run,
    peer: NodeId,
    now: Time,
    engine: Engine,
    ids: Identifiers,
    link: Option<usize>,
    wants_link: bool,
    lanes: BTreeMap<LaneId, Lane>,
    disk: Vec<u8>,
    payloads: BTreeMap<PayloadId, Vec<u8>>,
    numbers: u64,
    commands: BTreeMap<CommandId, Do>,
    reads: BTreeMap<RequestId, PayloadId>,
    own_challenge: Vec<u8>,
    /// What the replaced node wrote where, by blocks: as it sent it, at once or in a resync.
    data: BTreeMap<u64, Vec<Vec<u8>>>,
    /// May stand or be missing anywhere: kinds of rows of the table.
    may_miss: BTreeSet<String>,
    may_add: BTreeSet<String>,
    pub compared: usize,
    pub found: Vec<Found>,
    trace: bool,
}

fn slice(range: ByteRange) -> std::ops::Range<usize> {
    range.start() as usize..range.end() as usize
}

impl<'a> Player<'a> {
    pub fn new(run: &'a Run, config: ResourceConfig, tolerated: &[Difference]) -> Player<'a> {
        let me = config.node_id;
        let peer = *config.peers.keys().next().expect("a peer");
        let of = |f: fn(&Difference) -> Option<&String>| tolerated.iter().filter_map(f).cloned().collect();
        Player {
            run,
            peer,
            now: Time::ZERO,
            engine: Engine::new(config, [me.get() + 1; 32]),
            ids: Identifiers::new(),
            link: None,
            wants_link: false,
            lanes: BTreeMap::new(),
            disk: vec![0; run.device_bytes as usize],
            payloads: BTreeMap::new(),
            numbers: 0,
            commands: BTreeMap::new(),
            reads: BTreeMap::new(),
            own_challenge: Vec::new(),
            data: BTreeMap::new(),
            may_miss: of(|d| if let Difference::Missing(kind) = d { Some(kind) } else { None }),
            may_add: of(|d| if let Difference::Extra(kind) = d { Some(kind) } else { None }),
            compared: 0,
            found: Vec::new(),
            trace: std::env::var_os("TRACE").is_some(),
        }
    }

    pub fn play(&mut self, events: Vec<(f64, Event)>, script: &[(f64, Do)]) {
        let mut disk = fresh_disk(self.run.device_bytes);
        disk.limits = self.run.limits();
        self.handle(Input::Command { id: CommandId(0), command: Command::Attach { volume: V0, disk: Box::new(disk) } });
        for (_, event) in &events {
            let Event::Expected(Frame { message, payload, .. }) = event else { continue };
            if let Message::Data(head) | Message::RsDataReply(head) = message {
                for (block, bytes) in payload.chunks(4096).enumerate() {
                    let at = head.range.start() + block as u64 * 4096;
                    self.data.entry(at).or_default().push(bytes.to_vec());
                }
            }
        }
        let mut script = script.iter().peekable();
        for (at, event) in events {
            while let Some((when, what)) = script.next_if(|(when, _)| *when <= at) {
                self.advance(*when);
                self.act(*what);
            }
            if self.run.until.is_some_and(|until| at > until) {
                break;
            }
            self.advance(at);
            self.event(event);
        }
        let end = self.now.since(Time(ZERO.as_nanos() as u64)).as_secs_f64() + 0.2;
        self.advance(end);
        self.finish();
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            let at = self.now.since(Time(0)).as_secs_f64() - ZERO.as_secs_f64();
            println!("{at:10.6} {}", text());
        }
    }

    fn report(&mut self, difference: Difference, text: String) {
        self.say(|| format!("!! {difference:?} {text}"));
        self.found.push(Found { difference, text });
    }

    fn advance(&mut self, to: f64) {
        let to = Time(((ZERO.as_secs_f64() + to).max(0.0) * 1e9) as u64).max(self.now);
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= to) {
            self.now = self.now.max(at);
            self.handle(Input::Tick);
        }
        self.now = to;
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn payload(&mut self, bytes: Vec<u8>) -> PayloadId {
        let id = PayloadId(self.number() as u32);
        self.payloads.insert(id, bytes);
        id
    }

    // ------------------------------------------------------------------------------- towards the engine

    fn act(&mut self, what: Do) {
        self.say(|| format!("# {what:?}"));
        let peer = self.peer;
        let command = match what {
            Do::Connect => Command::Connect { peer, discard_my_data: false },
            Do::ConnectDiscarding => Command::Connect { peer, discard_my_data: true },
            Do::Disconnect => Command::Disconnect { peer, force: false },
            Do::DisconnectForced => Command::Disconnect { peer, force: true },
            Do::Promote | Do::PromoteRefused => Command::Promote { force: false },
            Do::PromoteForced => Command::Promote { force: true },
            Do::Demote | Do::Down => Command::Demote,
            Do::Outdate => Command::Outdate { volume: V0 },
            Do::SkipInitialSync => Command::NewCurrentUuid { volume: V0, clear_bitmap: true },
            Do::Write { at, len } => {
                let range = ByteRange::new(at, len).expect("a range");
                let data =
                    self.data.get(&at).and_then(|versions| versions.first().cloned()).filter(|d| d.len() as u64 == len);
                let data = data.unwrap_or_else(|| vec![1; len as usize]);
                return self.submit(BlockOp::Write { fua: false }, range, Some(data));
            }
            Do::Rewrite { at } => {
                let data = self.data[&at].last().cloned();
                let range = ByteRange::new(at, 4096).expect("a range");
                return self.submit(BlockOp::Write { fua: false }, range, data);
            }
            Do::Corrupt { at, len } => {
                return self.disk[slice(ByteRange::new(at, len).expect("a range"))].fill(0xee);
            }
            Do::Verify { start, stop } => {
                let [start, stop] = [start, stop].map(|sectors| sectors.map(|sectors| sectors * 512));
                Command::Verify { volume: V0, peer, start, stop }
            }
        };
        let id = CommandId(self.number());
        self.commands.insert(id, what);
        self.handle(Input::Command { id, command });
    }

    fn submit(&mut self, op: BlockOp, range: ByteRange, data: Option<Vec<u8>>) {
        let payload = data.map(|data| self.payload(data));
        let request = RequestId(self.number());
        if let (BlockOp::Read, Some(payload)) = (op, payload) {
            self.reads.insert(request, payload);
        }
        self.handle(Input::Submit { request, volume: V0, op, range, payload });
    }

    /// The application's request behind a message of the replaced node.
    fn submit_behind(&mut self, frame: &Frame) {
        let fua = |flags: DataFlags| flags.has(DataFlags::FUA);
        match frame.message {
            Message::Data(h) => self.submit(BlockOp::Write { fua: fua(h.flags) }, h.range, Some(frame.payload.clone())),
            Message::Trim(h) => self.submit(BlockOp::Discard, h.range, None),
            Message::Zeroes(h) => {
                let may_unmap = h.flags.has(DataFlags::DISCARD);
                self.submit(BlockOp::WriteZeroes { may_unmap, fua: fua(h.flags) }, h.range, None);
            }
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::LinkUp { link, arbiter } => {
                self.say(|| format!("link {link} up, arbiter {arbiter}"));
                if !std::mem::take(&mut self.wants_link) {
                    return self.report(Difference::Other("unwanted link".into()), format!("link {link}"));
                }
                self.ids.new_link();
                self.link = Some(link);
                self.handle(Input::LinkUp { peer: self.peer, link: LinkId(link as u64 + 1), arbiter });
            }
            Event::LinkDown { link } => {
                self.say(|| format!("link {link} down"));
                self.match_up(false);
                if self.link == Some(link) {
                    self.link = None;
                    let error = LinkError::Closed;
                    self.handle(Input::LinkDown { peer: self.peer, link: LinkId(link as u64 + 1), error });
                }
            }
            Event::Expected(frame) => {
                let submitted = self.run.writes_from_capture;
                if submitted {
                    self.submit_behind(&frame);
                }
                self.lanes.entry(lane(frame.link, frame.socket, &frame.message)).or_default().expected.push_back(frame);
                self.match_up(false);
            }
            Event::Peer(frame) => self.peer_sent(frame),
        }
    }

    fn peer_sent(&mut self, frame: Frame) {
        // Answers to the replaced kernel's pings; ours are answered at once. A kernel sends the other one only with a
        // feature that we do not offer.
        if matches!(frame.message, Message::PingAck | Message::EnableReplicationNext(_)) {
            return;
        }
        self.match_up(true);
        if self.link != Some(frame.link) {
            return self.say(|| format!("<- {:?} falls on a closed link", frame.message));
        }
        let mut message = self.ids.for_engine(&frame.message);
        match &mut message {
            Message::ConnectionFeatures(features) => features.features &= FEATURES_OFFERED,
            Message::AuthResponse(response) => {
                let secret = self.run.secret_of_peer.as_ref().expect("the peer's secret");
                let peer = Some(self.peer);
                *response = wire::auth::response(secret.algorithm, &secret.secret, &self.own_challenge, peer);
            }
            _ => {}
        }
        self.say(|| format!("<- {message:?}"));
        self.feed(frame.socket, frame.volume, message, frame.payload);
    }

    fn feed(&mut self, socket: Socket, volume: Option<VolumeNumber>, message: Message, payload: Vec<u8>) {
        let Some(link) = self.link else { return };
        let payload = (!payload.is_empty()).then(|| self.payload(payload));
        let link = LinkId(link as u64 + 1);
        self.handle(Input::Received { peer: self.peer, link, socket, volume, message, payload });
    }

    // ------------------------------------------------------------------------------- from the engine

    fn handle(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            self.engine.handle(self.now, input, &mut effects);
            let mut released = Vec::new();
            for effect in effects {
                self.carry_out(effect, &mut inputs, &mut released);
            }
            for payload in released {
                assert!(self.payloads.remove(&payload).is_some(), "{payload:?} was released twice");
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, inputs: &mut VecDeque<Input>, released: &mut Vec<PayloadId>) {
        match effect {
            Effect::Reply { id, result } => {
                let refused = result.is_err();
                let Some(what) = self.commands.remove(&id) else { return assert!(!refused, "attach: {result:?}") };
                if what == Do::Down {
                    let id = CommandId(self.number());
                    self.commands.insert(id, Do::Disconnect);
                    let command = Command::Disconnect { peer: self.peer, force: false };
                    inputs.push_back(Input::Command { id, command });
                }
                if refused != (what == Do::PromoteRefused) {
                    self.report(Difference::Other(format!("{what:?}")), format!("{result:?}"));
                }
            }
            Effect::Complete { request, result } => {
                self.reads.remove(&request);
                if result.is_err() {
                    self.report(Difference::Other("request failed".into()), format!("{result:?}"));
                }
            }
            Effect::Release { payload } => released.push(payload),
            Effect::Copy { from, to } => {
                let bytes = self.payloads[&from].clone();
                self.payloads.insert(to, bytes);
            }
            Effect::Disk { volume, io, op } => {
                let payload = self.disk(op);
                inputs.push_back(Input::DiskDone { volume, io, result: Ok(()), payload });
            }
            Effect::Digest { id, payload, algorithm } => {
                let digest = algorithm.digest(&self.payloads[&payload]);
                inputs.push_back(Input::DigestDone { id, digest });
            }
            Effect::Send { socket, volume, message, payload, .. } => {
                self.say(|| format!("        -> {message:?}"));
                let payload = payload.map(|p| self.payloads[&p].clone()).unwrap_or_default();
                let link = self.link.expect("nothing is sent without a link");
                if let Message::AuthChallenge(challenge) = &message {
                    self.own_challenge.clone_from(challenge);
                }
                if message == Message::Ping {
                    let (peer, link) = (self.peer, LinkId(link as u64 + 1));
                    let message = Message::PingAck;
                    inputs.push_back(Input::Received { peer, link, socket, volume: None, message, payload: None });
                }
                self.lanes.entry(lane(link, socket, &message)).or_default().sent.push_back(Sent {
                    volume,
                    message,
                    payload,
                });
            }
            Effect::Connect { .. } => self.wants_link = true,
            Effect::StopConnecting { .. } => self.wants_link = false,
            Effect::CloseLink { .. } => {
                self.say(|| "        closes the link".into());
                self.link = None;
            }
            Effect::Event(event) => self.say(|| format!("        * {event:?}")),
            Effect::LinkContext { .. } | Effect::Device { .. } | Effect::CloseDisk { .. } => {}
        }
    }

    fn disk(&mut self, op: DiskOp) -> Option<PayloadId> {
        match op {
            DiskOp::Read { range } => {
                let bytes = self.disk[slice(range)].to_vec();
                return Some(self.payload(bytes));
            }
            DiskOp::ReadInto { range, payload } => {
                let bytes = self.disk[slice(range)].to_vec();
                self.payloads.insert(payload, bytes);
            }
            DiskOp::Write { range, payload, .. } => {
                let bytes = &self.payloads[&payload];
                self.disk[slice(range)].copy_from_slice(bytes);
            }
            DiskOp::Discard { range } | DiskOp::WriteZeroes { range, .. } => self.disk[slice(range)].fill(0),
            DiskOp::Flush | DiskOp::MetaWrite { .. } => {}
        }
        None
    }

    // ------------------------------------------------------------------------------- comparison

    /// Compares what can be. `is_due`: the kernel had sent all of it by now.
    fn match_up(&mut self, is_due: bool) {
        let lanes: Vec<_> = self.lanes.keys().copied().collect();
        for at in lanes {
            while self.step(at, false) {}
            let lane = self.lanes.get_mut(&at).expect("a lane");
            if let (true, false, Some(frame)) = (is_due, lane.is_late, lane.expected.front()) {
                let (late, text) = (kind(&frame.message), format!("{:?}", frame.message));
                lane.is_late = true;
                self.report(Difference::Late(late), text);
            }
        }
    }

    fn finish(&mut self) {
        let lanes: Vec<_> = self.lanes.keys().copied().collect();
        for at in lanes {
            while self.step(at, true) {}
        }
        let open: Vec<Do> = self.commands.values().copied().collect();
        for what in open {
            self.report(Difference::Other(format!("{what:?}")), "no answer".into());
        }
    }

    /// Takes the next message from one side or both. False: nothing to decide now.
    fn step(&mut self, at: LaneId, is_over: bool) -> bool {
        let lane = self.lanes.get_mut(&at).expect("a lane");
        let (theirs, ours) = (lane.expected.front(), lane.sent.front());
        let (their_kind, our_kind) = (theirs.map(|f| kind(&f.message)), ours.map(|s| kind(&s.message)));
        match (their_kind, our_kind) {
            (None, None) => return false,
            (Some(t), o)
                if lane.is_repeated() && o.as_ref().is_none_or(|o| *o != t || !lane.would_match(&self.ids)) =>
            {
                let frame = lane.expected.pop_front().expect("a frame");
                self.report(Difference::Repeated(t), format!("{:?}", frame.message));
            }
            (Some(t), Some(o)) if t == o => {
                let (theirs, ours) = (lane.expected.pop_front(), lane.sent.pop_front());
                lane.is_late = false;
                lane.last = theirs.as_ref().map(|frame| frame.message.clone());
                self.compare(&theirs.expect("a frame"), &ours.expect("a message"));
            }
            (Some(t), _) if self.may_miss.contains(&t) => self.missing(at, t),
            (Some(_), Some(o)) if self.may_add.contains(&o) => self.extra(at, o),
            (Some(t), Some(o)) if lane.sent.iter().any(|s| kind(&s.message) == t) => self.extra(at, o),
            (Some(t), _) if is_over => self.missing(at, t),
            (None, Some(o)) if is_over && self.run.until.is_none() => self.extra(at, o),
            _ => return false,
        }
        true
    }

    fn extra(&mut self, at: LaneId, kind: String) {
        let sent = self.lanes.get_mut(&at).and_then(|l| l.sent.pop_front()).expect("a message");
        self.report(Difference::Extra(kind), format!("{:?}", sent.message));
    }

    fn missing(&mut self, at: LaneId, kind: String) {
        let frame = self.lanes.get_mut(&at).and_then(|l| l.expected.pop_front()).expect("a frame");
        self.report(Difference::Missing(kind), format!("{:?}", frame.message));
    }

    fn compare(&mut self, theirs: &Frame, ours: &Sent) {
        self.compared += 1;
        let kind = kind(&theirs.message);
        let expected = self.ids.expected(&theirs.message, &ours.message);
        let mut fields = differences(&expected, &ours.message);
        if theirs.volume != ours.volume {
            fields.push(("volume".into(), format!("{:?}", theirs.volume), format!("{:?}", ours.volume)));
        }
        if theirs.payload != ours.payload {
            fields.push(("data".into(), "...".into(), "...".into()));
        }
        for (mut field, kernel, ours) in fields {
            if matches!(theirs.message, Message::State(_)) || field == "node_mask" {
                field = format!("{field} {kernel}/{ours}");
            }
            let text = format!("kernel {kernel}, we {ours}: {:?}", theirs.message);
            self.report(Difference::Field(kind.clone(), field), text);
        }
    }
}
