//! The cluster: one queue of events ordered by (time, sequence), one clock, one source of chance. Same seed, same
//! trace.
//!
//! The rooms beside this one add to [`World`]: `startup` builds it, `delivery` carries out the engine's effects,
//! `workload` is the application, `operator` the person at the prompt, `trouble` everything that breaks, `healer` the end
//! of all trouble; `action` is the door of these three; `checker` judges.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use engine::{Command, CommandId, DigestId, Effect, Engine, Input, LinkError, Protocol, Status};
use types::{IoId, LinkId, NodeId, PayloadId, Time, Uuid, VolumeNumber};
use wire::Socket;
use wire::digest::Digest;

use crate::action::{Act, Action, Order};
use crate::checker::Differences;
use crate::disk::Stamp;
use crate::exam::{Exam, Found, Watched};
use crate::network::{EndState, Frame, Network};
use crate::node::Node;
use crate::protocols::File;
use crate::reached::Reached;
use crate::rng::{Rng, Stream};
use crate::swarm::{MS, Options, SECOND};
use crate::truth::Truth;

/// Events of one run before it counts as a run that never ends.
const EVENTS_MAX: u64 = 3_000_000;
/// Above every sequence number of other events.
const ACTS_FROM: u64 = u64::MAX / 2;
const INSPECT_EVERY: u64 = 200 * MS;

pub enum Event {
    Tick {
        node: NodeId,
        life: u64,
    },
    DiskDone {
        node: NodeId,
        life: u64,
        volume: VolumeNumber,
        io: IoId,
    },
    Digested {
        node: NodeId,
        life: u64,
        id: DigestId,
        payload: PayloadId,
        value: Digest,
    },
    Frame {
        link: LinkId,
        to: NodeId,
        socket: Socket,
        frame: Frame,
    },
    LinkUp {
        link: LinkId,
        node: NodeId,
    },
    LinkDown {
        link: LinkId,
        node: NodeId,
        error: LinkError,
    },
    TryConnect {
        a: NodeId,
        b: NodeId,
    },
    /// The next step of a clean stop.
    Script {
        node: NodeId,
        life: u64,
    },
    Restart {
        node: NodeId,
    },
    /// A device is back: its requests of before come again.
    Reissue {
        node: NodeId,
        life: u64,
    },
    PathHeals {
        a: NodeId,
        b: NodeId,
    },
    Thaw {
        node: NodeId,
        life: u64,
    },
    Cut,
    Stall,
    Fault,
    Crash,
    /// Trouble where something has just happened.
    Ambush {
        node: NodeId,
    },
    /// The next action of a scenario.
    Act(Box<Action>),
    Operator,
    Keeper,
    Work,
    /// The judges look at everybody.
    Inspect,
    /// Trouble ends; from here on everything must become good.
    Heal,
    Settle,
}

impl Event {
    /// Whose daemon would have to run for it.
    fn for_daemon(&self) -> Option<NodeId> {
        match self {
            Event::Tick { node, .. } | Event::DiskDone { node, .. } | Event::Script { node, .. } => Some(*node),
            Event::Reissue { node, .. } | Event::Digested { node, .. } => Some(*node),
            Event::LinkUp { node, .. } | Event::LinkDown { node, .. } | Event::Frame { to: node, .. } => Some(*node),
            _ => None,
        }
    }
}

/// What a run came across.
#[derive(Clone, Default, Debug)]
pub struct Stats {
    pub events: u64,
    pub virtual_ns: u64,
    pub requests: u64,
    pub crashes: u64,
    pub power_losses: u64,
    pub clean_stops: u64,
    pub cuts: u64,
    pub stalls: u64,
    pub faults: u64,
    pub exchanges: u64,
    pub reissued: u64,
    /// Inspections, and how many of them found a pair that calls itself in sync and is quiet.
    pub inspections: u64,
    pub quiet_pairs: u64,
    pub links: u64,
    pub promotions: u64,
    pub resyncs: u64,
    pub split_brains: u64,
    pub forced_at_end: u64,
    /// Blocks that rotted and that a verify found.
    pub rotten_found: u64,
    pub commands: BTreeMap<&'static str, (u64, u64)>,
}

/// A run that went wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Complaint {
    pub at: u64,
    pub text: String,
}

pub struct World {
    pub options: Options,
    pub now: u64,
    /// Delays, what survives: see `rng`.
    pub nature: Rng,
    /// What the world does.
    pub whim: Rng,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub nodes: BTreeMap<NodeId, Node>,
    pub net: Network,
    pub frames_in_flight: u64,
    pub truths: BTreeMap<VolumeNumber, Vec<Truth>>,
    pub differences: Differences,
    /// Counts moments of the application; also the stamps.
    pub moment: Stamp,
    pub next_command: u64,
    pub healing: bool,
    pub healed_at: u64,
    pub settled: bool,
    /// An operator overrode the rules (`--force`): losses that follow are his.
    pub forced: bool,
    /// Copies that an operator gave up (invalidate, discard-my-data).
    pub given_up: BTreeSet<(NodeId, VolumeNumber)>,
    /// (n, m): n has begun a generation of its own since it was last in sync with m: these.
    pub apart: BTreeMap<(NodeId, NodeId, VolumeNumber), Vec<Uuid>>,
    /// Generations that a node goes by and that were not seen on its disk yet.
    pub unsettled: BTreeMap<(NodeId, VolumeNumber), Uuid>,
    pub split_brain: BTreeSet<(NodeId, NodeId)>,
    pub no_good_copy_expected: bool,
    /// Disks that were exchanged or re-labelled by hand: which blocks differ is known by generation at best, and judged
    /// again after a resync.
    pub untracked: BTreeSet<(NodeId, VolumeNumber)>,
    pub ambushed_at: u64,
    pub reconnected_at: u64,
    /// All actions come from a scenario.
    pub is_replay: bool,
    /// Every action so far.
    pub acts: Vec<Act>,
    pub complaint: Option<Complaint>,
    /// Verifies under way, by who drives them and with whom.
    pub verifies: BTreeMap<(NodeId, NodeId, VolumeNumber), Watched>,
    /// What the last verify found.
    pub found: Option<Found>,
    pub exam: Exam,
    pub stats: Stats,
    pub reached: Reached,
    pub file: File,
    /// Of each node towards each other: protocols and since which moment, as long as anything may be owed under them.
    pub protocols: BTreeMap<(NodeId, NodeId), Vec<(Stamp, Protocol)>>,
    trace: Option<Vec<String>>,
    effects: Vec<Effect>,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> World {
        World::with_options(Options::draw(seed), seed, trace)
    }

    /// The world of `seed` with other options.
    pub fn with_options(options: Options, seed: u64, trace: bool) -> World {
        let mut world = World::empty(options, seed, trace);
        world.set_up();
        world.schedule_the_world();
        world
    }

    /// Nothing happens but what `acts` say. `seed`: for delays.
    pub fn replay(options: Options, seed: u64, acts: Vec<Act>, trace: bool) -> World {
        let mut world = World::empty(options, seed, trace);
        world.is_replay = true;
        world.set_up();
        for (index, Act { at, action }) in acts.into_iter().enumerate() {
            // Behind everything else of the same moment: an ambush came after what tempted it.
            world.queue.insert((at, ACTS_FROM + index as u64), Event::Act(Box::new(action)));
        }
        world
    }

    fn empty(options: Options, seed: u64, trace: bool) -> World {
        let duration = options.duration;
        let mut world = World {
            file: File::new(&options),
            protocols: BTreeMap::new(),
            options,
            now: SECOND,
            nature: Rng::stream(seed, Stream::Nature),
            whim: Rng::stream(seed, Stream::World),
            queue: BTreeMap::new(),
            sequence: 0,
            nodes: BTreeMap::new(),
            net: Network::default(),
            frames_in_flight: 0,
            truths: BTreeMap::new(),
            differences: Differences::default(),
            moment: 0,
            next_command: 0,
            healing: false,
            healed_at: 0,
            settled: false,
            forced: false,
            given_up: BTreeSet::new(),
            apart: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            split_brain: BTreeSet::new(),
            no_good_copy_expected: false,
            untracked: BTreeSet::new(),
            ambushed_at: 0,
            reconnected_at: 0,
            is_replay: false,
            acts: Vec::new(),
            complaint: None,
            verifies: BTreeMap::new(),
            found: None,
            exam: Exam::NotBegun,
            stats: Stats::default(),
            reached: Reached::default(),
            trace: trace.then(Vec::new),
            effects: Vec::new(),
        };
        world.schedule(duration, Event::Heal);
        world.schedule(INSPECT_EVERY, Event::Inspect);
        world
    }

    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }
    pub fn volume_numbers(&self) -> Vec<VolumeNumber> {
        (0..self.options.volumes).map(|v| VolumeNumber::new(v).expect("few volumes")).collect()
    }
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("nodes are never removed")
    }
    pub fn status(&self, id: NodeId) -> Option<Status> {
        self.node(id).engine.as_ref().map(Engine::status)
    }

    pub fn schedule(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    /// One line of the story. The text is only made when somebody reads it.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let mut line = String::new();
            let (seconds, nanos) = (self.now / SECOND, self.now % SECOND);
            write!(line, "{seconds:>5}.{nanos:09} {}", text()).expect("a String takes everything");
            trace.push(line);
        }
    }
    pub fn is_tracing(&self) -> bool {
        self.trace.is_some()
    }
    pub fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    /// An operator says that this node's data does not count.
    pub(crate) fn give_up(&mut self, id: NodeId) {
        for volume in self.volume_numbers() {
            self.given_up.insert((id, volume));
        }
    }

    /// The first complaint ends the run.
    pub fn complain(&mut self, text: String) {
        self.say(|| format!("COMPLAINT {text}"));
        let at = self.now;
        self.complaint.get_or_insert(Complaint { at, text });
    }
    pub fn expect(&mut self, result: Result<(), String>) {
        if let Err(text) = result {
            self.complain(text);
        }
    }

    /// Until everything has settled or something is wrong.
    pub fn run(&mut self) -> Result<(), Complaint> {
        while self.complaint.is_none() && !self.settled {
            self.step();
        }
        self.stats.virtual_ns = self.now;
        match self.complaint.clone() {
            Some(complaint) => Err(complaint),
            None => Ok(()),
        }
    }

    pub fn step(&mut self) {
        let Some(((at, _), event)) = self.queue.pop_first() else {
            return self.complain("nothing will ever happen again".into());
        };
        self.now = at;
        self.stats.events += 1;
        if self.stats.events > EVENTS_MAX {
            return self.complain(format!("{EVENTS_MAX} events and no end"));
        }
        self.happen(event);
    }

    fn happen(&mut self, event: Event) {
        if let Some(node) = event.for_daemon().filter(|node| self.node(*node).is_frozen) {
            // Its timer is armed anew when it goes on.
            if !matches!(event, Event::Tick { .. }) {
                self.node_mut(node).asleep.push(event);
            }
            return;
        }
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::DiskDone { node, life, volume, io } => self.disk_done(node, life, volume, io),
            Event::Digested { node, life, id, payload, value } => self.digested(node, life, id, payload, value),
            Event::Frame { link, to, socket, frame } => self.frame_arrives(link, to, socket, frame),
            Event::LinkUp { link, node } => self.link_up(link, node),
            Event::LinkDown { link, node, error } => self.link_down(link, node, error),
            Event::TryConnect { a, b } => self.try_connect(a, b),
            Event::Script { node, life } => self.continue_script(node, life),
            Event::Restart { node } => self.restart(node),
            Event::Reissue { node, life } => self.reissue(node, life),
            Event::PathHeals { a, b } => self.path_heals(a, b),
            Event::Thaw { node, life } => self.thaw(node, life),
            Event::Cut => self.random_cut(),
            Event::Stall => self.random_stall(),
            Event::Fault => self.random_fault(),
            Event::Crash => self.random_crash(),
            Event::Ambush { node } => self.ambush(node),
            Event::Act(action) => self.act(*action),
            Event::Operator => self.random_command(),
            Event::Keeper => self.keep_a_primary(),
            Event::Work => self.work(),
            Event::Inspect => {
                self.schedule(INSPECT_EVERY, Event::Inspect);
                self.inspect();
            }
            Event::Heal => self.heal(),
            Event::Settle => self.settle(),
        }
    }

    fn tick(&mut self, id: NodeId, life: u64) {
        let now = self.now;
        let node = self.node_mut(id);
        if node.life != life || node.tick_at != Some(now) {
            return;
        }
        node.tick_at = None;
        self.input(id, Input::Tick);
    }

    /// Gives one input to an engine and carries out what follows.
    pub fn input(&mut self, id: NodeId, input: Input) {
        if self.is_tracing() && !matches!(input, Input::Tick) {
            self.say(|| format!("{id:?} <- {}", brief(&input)));
        }
        let now = Time(self.now);
        let mut effects = std::mem::take(&mut self.effects);
        let node = self.nodes.get_mut(&id).expect("nodes are never removed");
        let engine = node.engine.as_mut().expect("inputs are for running nodes");
        engine.handle(now, input, &mut effects);
        let mut releases = Vec::new();
        let mut later = Vec::new();
        for effect in effects.drain(..) {
            self.reached.effect(&effect);
            match effect {
                Effect::Release { payload } => releases.push(payload),
                Effect::Event(event) => {
                    self.generation_claimed(id, &event);
                    later.push(event);
                }
                effect => self.carry_out(id, effect),
            }
        }
        self.effects = effects;
        for payload in releases {
            let released = self.node_mut(id).release(payload);
            self.expect(released.map_err(|e| format!("{id:?}: {e}")));
        }
        for event in later {
            self.engine_event(id, event);
        }
        self.arm_timer(id);
    }

    pub(crate) fn arm_timer(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let Some(deadline) = node.engine.as_ref().and_then(Engine::next_deadline) else { return };
        let life = node.life;
        let at = deadline.0.max(self.now + 1);
        let node = self.node_mut(id);
        if node.tick_at.is_some_and(|armed| armed <= at) {
            return;
        }
        node.tick_at = Some(at);
        let delay = at - self.now;
        self.schedule(delay, Event::Tick { node: id, life });
    }

    pub fn command(&mut self, id: NodeId, command: Command, scripted: bool) {
        self.next_command += 1;
        let number = CommandId(self.next_command);
        let order = Order::of(&command);
        let since = self.now;
        let node = self.node_mut(id);
        node.demoting |= matches!(command, Command::Demote);
        node.promote_force |= matches!(command, Command::Promote { force: true });
        let entry = crate::node::CommandInFlight { order, since, scripted };
        node.commands.insert(number, entry);
        self.input(id, Input::Command { id: number, command });
    }

    fn try_connect(&mut self, a: NodeId, b: NodeId) {
        let now = self.now;
        let due = |w: Option<&u64>| w.is_some_and(|at| *at <= now);
        if !due(self.net.wants.get(&(a, b))) || !due(self.net.wants.get(&(b, a))) {
            return;
        }
        if !self.net.is_path_up(a, b) || !self.node(a).is_running() || !self.node(b).is_running() {
            return;
        }
        let coin = self.nature.chance(500);
        let delays = [0; 2].map(|_| self.nature.between(1, self.options.latency * 2));
        let (a, b) = crate::network::pair(a, b);
        let link = self.net.establish(a, b, coin, delays.map(|delay| now + delay));
        self.stats.links += 1;
        for (node, delay) in [a, b].into_iter().zip(delays) {
            self.schedule(delay, Event::LinkUp { link, node });
        }
    }

    fn link_up(&mut self, id: LinkId, node: NodeId) {
        let Some(link) = self.net.links.get_mut(&id) else { return };
        if link.end(node).state != EndState::Coming || !self.nodes[&node].is_running() {
            return;
        }
        link.end_mut(node).state = EndState::Up;
        let (peer, arbiter) = (link.other(node), link.arbiter == node);
        self.input(node, Input::LinkUp { peer, link: id, arbiter });
    }

    fn link_down(&mut self, id: LinkId, node: NodeId, error: LinkError) {
        let Some(link) = self.net.links.get_mut(&id) else { return };
        let before = link.end(node).state;
        link.end_mut(node).state = EndState::Down;
        let peer = link.other(node);
        self.net.forget_dead();
        if before != EndState::Down && self.node(node).is_running() {
            if before == EndState::Coming {
                // The engine never heard of it and still wants one.
                let now = self.now;
                self.net.wants.entry((node, peer)).or_insert(now);
                return self.schedule_connect(node, peer);
            }
            self.input(node, Input::LinkDown { peer, link: id, error });
        }
    }

    /// Tries when both wishes are due.
    pub fn schedule_connect(&mut self, a: NodeId, b: NodeId) {
        let (a, b) = crate::network::pair(a, b);
        let (Some(first), Some(second)) = (self.net.wants.get(&(a, b)), self.net.wants.get(&(b, a))) else { return };
        let at = (*first).max(*second).max(self.now);
        let delay = at - self.now + self.nature.between(0, self.options.latency * 4);
        self.schedule(delay, Event::TryConnect { a, b });
    }

    pub(crate) fn path_heals(&mut self, a: NodeId, b: NodeId) {
        self.net.down.remove(&crate::network::pair(a, b));
        self.say(|| format!("network {a:?} - {b:?} works again"));
        self.schedule_connect(a, b);
    }
}

/// An input as one readable line: a disk image is not.
fn brief(input: &Input) -> String {
    match input {
        Input::Command { id, command: Command::Attach { volume, disk } } => {
            let sb = &disk.superblock;
            format!("{id:?} attach {volume:?}: current {:?} flags {:?}", sb.current_uuid, sb.flags)
        }
        other => format!("{other:?}"),
    }
}
