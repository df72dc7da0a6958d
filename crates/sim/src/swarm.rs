//! What a seed has switched on. Swarm testing: a run with few kinds of trouble goes deeper than one with all of them,
//! so each seed draws its own mixture, around one of several leanings.

use engine::Protocol;
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Start {
    /// `create-md` on both sides, then promote --force: everything is synchronised once.
    Fresh,
    /// Both sides were in sync before the run began.
    InSync,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Protocol")]
pub(crate) enum ProtocolName {
    A,
    B,
    C,
}

/// Operations of a disk that may take longer than others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Stragglers {
    All,
    Metadata,
    Data,
}

/// What a run leans towards. The upper bits of a seed name one ([`seed_with`]); plain seeds take turns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Leaning {
    Anything,
    /// Power goes everywhere at once, again and again, and at the worst moments.
    Power,
    /// Links come and go, faster than anything can finish.
    Links,
    /// Nodes that stop and go on, streams that stall.
    Stalls,
    /// Somebody at the keyboard who tries everything.
    Operator,
    /// Disks that fail, hang, are exchanged.
    Disks,
    /// Fresh metadata, forced promotions, split brain.
    Force,
    /// Long resyncs that are disturbed.
    Resync,
    /// Everything happens at the same moment.
    Ambush,
    /// The Primary dies and stays away for a while: another node takes over.
    FailOver,
    /// A Primary that lives on its peers' disks, which lose power.
    Borrowed,
}

pub const LEANINGS: [Leaning; 11] = [
    Leaning::Anything,
    Leaning::Power,
    Leaning::Links,
    Leaning::Stalls,
    Leaning::Operator,
    Leaning::Disks,
    Leaning::Force,
    Leaning::Resync,
    Leaning::Ambush,
    Leaning::FailOver,
    Leaning::Borrowed,
];
const LEANING_SHIFT: u32 = 48;
/// A seed with this bit runs two nodes that speak the 8.4 dialect, otherwise like the seed without it.
pub const V84_SEED: u64 = 1 << 62;

/// The seed that draws like `seed` and leans to `leaning`.
pub fn seed_with(seed: u64, leaning: usize) -> u64 {
    assert!(seed >> LEANING_SHIFT == 0 && leaning < LEANINGS.len(), "seed {seed}, leaning {leaning}");
    seed | (leaning as u64 + 1) << LEANING_SHIFT
}

/// Index in [`LEANINGS`] of what `seed` leans to.
pub fn leaning_index(seed: u64) -> usize {
    match (seed & !V84_SEED) >> LEANING_SHIFT {
        0 => ((seed & !V84_SEED) % LEANINGS.len() as u64) as usize,
        n => (n as usize - 1) % LEANINGS.len(),
    }
}

/// Options that are given, whatever a seed draws: `{"pass_on": true}`.
#[derive(Clone, Default)]
pub struct Given(serde_json::Map<String, serde_json::Value>);

impl Given {
    pub fn parse(text: &str) -> Result<Given, String> {
        let given = Given(serde_json::from_str(text).map_err(|e| format!("options {text}: {e}"))?);
        given.over(&Options::calm()).map_err(|e| format!("options {text}: {e}"))?;
        Ok(given)
    }

    pub fn draw(&self, seed: u64) -> Options {
        let drawn = Options::draw(seed);
        if self.0.is_empty() { drawn } else { self.over(&drawn).expect("tried when it was parsed") }
    }

    fn over(&self, drawn: &Options) -> Result<Options, String> {
        let mut all = serde_json::to_value(drawn).expect("options are plain data");
        for (name, value) in &self.0 {
            *all.get_mut(name).ok_or_else(|| format!("there is no option {name}"))? = value.clone();
        }
        serde_json::from_value(all).map_err(|e| e.to_string())
    }
}

/// Means are virtual nanoseconds between two events; `None`: never.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    pub leaning: Leaning,
    /// The 8.4 dialect, between two nodes.
    pub v84: bool,
    pub nodes: u8,
    /// The last so many nodes have no disk.
    pub diskless: u8,
    /// Disks that say a flush is done and have done nothing. Never drawn: no promise holds on such a disk.
    pub lying_disks: bool,
    pub volumes: u16,
    pub volume_bytes: u64,
    pub al_extents: u16,
    /// Bitmap slots that no node owns: with one, a Secondary keeps an activity log of its own (rule AL-5).
    pub spare_slots: u8,
    pub start: Start,
    #[serde(with = "ProtocolName")]
    pub protocol: Protocol,
    pub external_metadata: bool,
    pub volatile_cache: bool,
    pub use_rle: bool,
    /// `on-io-error pass_on`, otherwise `detach`.
    pub pass_on: bool,
    /// `on-no-data-accessible suspend-io`, otherwise `io-error`.
    pub suspend_io: bool,
    /// Time of trouble before everything is healed.
    pub duration: u64,
    pub latency: u64,
    pub jitter: u64,
    /// Bytes per virtual second.
    pub bandwidth: u64,
    pub disk_latency: u64,
    pub cut_every: Option<u64>,
    pub half_open_per_mille: u32,
    pub down_time: u64,
    /// Stalls of a stream and frozen nodes.
    pub stall_every: Option<u64>,
    pub stall_time: u64,
    pub crash_every: Option<u64>,
    /// Share of crashes that look for a Primary.
    pub primary_per_mille: u32,
    pub restart_after: u64,
    pub power_loss_per_mille: u32,
    pub clean_stop_per_mille: u32,
    /// A crash of the daemon alone leaves the device waiting.
    pub keep_device_per_mille: u32,
    pub exchange_per_mille: u32,
    pub roll_back_per_mille: u32,
    /// How likely trouble strikes where something important has just happened.
    pub ambush_per_mille: u32,
    pub operator_every: Option<u64>,
    pub force_per_mille: u32,
    /// Share of commands about disks.
    pub disks_per_mille: u32,
    /// Share of commands drawn from all there are, whatever the state.
    pub senseless_per_mille: u32,
    /// Share of commands that change options.
    pub options_per_mille: u32,
    /// `csums-alg`: a resync compares before it fetches.
    pub csums: bool,
    /// Share of commands that start a verify. 0: no `verify-alg`.
    pub verify_per_mille: u32,
    pub fault_every: Option<u64>,
    /// Share of faults that stay.
    pub lasting_per_mille: u32,
    /// Share of these operations that take longer than others, and how much longer: others overtake them.
    pub stragglers: Stragglers,
    pub straggle_per_mille: u32,
    pub straggle_time: u64,
    /// Somebody else tries to become Primary too.
    pub rival_per_mille: u32,
    pub work_every: u64,
    /// How likely the application rests before it goes on, and how long.
    pub rest_per_mille: u32,
    pub rest_time: u64,
    pub requests_max: usize,
    pub io_bytes_max: u64,
    /// Hot regions: how many extents the workload prefers.
    pub hot_extents: u64,
    pub read_per_mille: u32,
    pub flush_per_mille: u32,
    pub fua_per_mille: u32,
    pub discard_per_mille: u32,
    pub ping_int: u64,
    pub timeout: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options::calm()
    }
}

impl Options {
    pub fn draw(seed: u64) -> Options {
        let rng = &mut Rng::stream(seed & !V84_SEED, crate::rng::Stream::Options);
        let leaning = LEANINGS[leaning_index(seed)];
        let on = |rng: &mut Rng, per_mille, low: u64, high: u64| rng.chance(per_mille).then(|| rng.between(low, high));
        let some = |rng: &mut Rng, per_mille, value: u32| if rng.chance(per_mille) { value } else { 0 };
        let mut options = Options {
            leaning,
            v84: false,
            nodes: 2,
            diskless: u8::from(rng.chance(80)),
            lying_disks: false,
            volumes: if rng.chance(200) { 2 } else { 1 },
            volume_bytes: if rng.chance(250) { 400 << 20 } else { rng.pick(&[8u64, 16, 33, 64]) << 20 },
            al_extents: if rng.chance(800) { 67 } else { 1237 },
            spare_slots: u8::from(rng.chance(300)),
            start: if rng.chance(150) { Start::Fresh } else { Start::InSync },
            protocol: rng.pick(&[Protocol::C, Protocol::C, Protocol::C, Protocol::B, Protocol::A]),
            external_metadata: rng.chance(300),
            volatile_cache: rng.chance(850),
            use_rle: rng.chance(700),
            pass_on: rng.chance(150),
            suspend_io: rng.chance(150),
            duration: rng.between(20, 150) * SECOND,
            latency: rng.pick(&[50_000, 200_000, MS, 20 * MS]),
            jitter: rng.pick(&[0, 100_000, 5 * MS]),
            bandwidth: rng.pick(&[5_000_000, 100_000_000, 1_000_000_000]),
            disk_latency: rng.pick(&[50_000, 500_000, 5 * MS]),
            cut_every: on(rng, 700, 2 * SECOND, 30 * SECOND),
            half_open_per_mille: some(rng, 400, 300),
            down_time: rng.pick(&[MS, 200 * MS, 3 * SECOND, 15 * SECOND]),
            stall_every: on(rng, 200, 3 * SECOND, 30 * SECOND),
            stall_time: rng.pick(&[20 * MS, SECOND, 4 * SECOND, 30 * SECOND]),
            crash_every: on(rng, 700, 4 * SECOND, 40 * SECOND),
            primary_per_mille: 0,
            restart_after: rng.pick(&[10 * MS, SECOND, 10 * SECOND]),
            power_loss_per_mille: some(rng, 400, 200),
            clean_stop_per_mille: some(rng, 500, 200),
            keep_device_per_mille: some(rng, 300, 500),
            exchange_per_mille: some(rng, 60, 100),
            roll_back_per_mille: some(rng, 60, 200),
            ambush_per_mille: some(rng, 200, 100),
            operator_every: on(rng, 800, SECOND, 15 * SECOND),
            force_per_mille: some(rng, 300, 150),
            disks_per_mille: some(rng, 400, 250),
            senseless_per_mille: some(rng, 150, 200),
            options_per_mille: 0,
            csums: false,
            verify_per_mille: 0,
            fault_every: on(rng, 150, 3 * SECOND, 40 * SECOND),
            lasting_per_mille: rng.pick(&[0, 300, 1000]),
            stragglers: Stragglers::All,
            straggle_per_mille: 0,
            straggle_time: 0,
            rival_per_mille: some(rng, 300, 100),
            work_every: rng.pick(&[5 * MS, 20 * MS, 100 * MS]),
            rest_per_mille: 0,
            rest_time: 0,
            requests_max: rng.pick(&[1, 4, 32]),
            io_bytes_max: rng.pick(&[4096, 16 << 10, 128 << 10]),
            hot_extents: rng.pick(&[1, 4, 100]),
            read_per_mille: rng.pick(&[50, 300, 700]),
            flush_per_mille: rng.pick(&[0, 30, 150]),
            fua_per_mille: rng.pick(&[0, 100]),
            discard_per_mille: rng.pick(&[0, 0, 60]),
            ping_int: rng.pick(&[1, 3, 10]) * SECOND,
            timeout: rng.pick(&[1, 3, 6]) * SECOND,
        };
        options.lean(rng);
        if seed & V84_SEED != 0 {
            options.v84 = true;
            options.nodes = 2;
            options.diskless = options.diskless.min(1);
        }
        // Last, so that seeds without it draw as they did before there were such commands.
        let share = rng.pick(&[50, 300]);
        options.options_per_mille = some(rng, 300, share);
        options.dawdle(rng);
        options.compare(rng);
        options
    }

    /// Digests. Drawn last of all: seeds without them are what they were before.
    fn compare(&mut self, rng: &mut Rng) {
        self.csums = rng.chance(250);
        let share = rng.pick(&[100, 400]);
        self.verify_per_mille = if rng.chance(250) { share } else { 0 };
    }

    /// What takes its time: single operations of a disk, and the application.
    fn dawdle(&mut self, rng: &mut Rng) {
        let some = |rng: &mut Rng, per_mille, value: u32| if rng.chance(per_mille) { value } else { 0 };
        let share = rng.pick(&[20, 200]);
        // What a lost Primary was told of and what its peer still has to do is a matter of the peer's log.
        let (likely, of_metadata) = if self.leaning == Leaning::FailOver { (700, 600) } else { (300, 0) };
        self.straggle_per_mille = some(rng, likely, share);
        self.straggle_time = rng.pick(&[20 * MS, 300 * MS, 2 * SECOND]);
        self.rest_per_mille = some(rng, 250, 20);
        self.rest_time = rng.pick(&[500 * MS, 5 * SECOND]);
        self.stragglers = rng.pick(&[Stragglers::All, Stragglers::Metadata, Stragglers::Data]);
        if rng.chance(of_metadata) {
            self.stragglers = Stragglers::Metadata;
        }
        if self.straggle_per_mille > 0 && self.stragglers == Stragglers::Metadata {
            // Few operations, so that much should wait for them: for logs that miss often, with one of its own on each
            // side, behind the back of a receipt too.
            self.straggle_per_mille *= 3;
            self.spare_slots = u8::from(rng.chance(700));
            self.protocol = rng.pick(&[Protocol::C, Protocol::C, Protocol::B, Protocol::B, Protocol::A]);
            (self.volume_bytes, self.hot_extents) = (400 << 20, 100);
        }
    }

    fn lean(&mut self, rng: &mut Rng) {
        let mean = |rng: &mut Rng, low: u64, high: u64| Some(rng.between(low, high));
        match self.leaning {
            Leaning::Anything => {}
            Leaning::Power => {
                self.crash_every = mean(rng, SECOND, 8 * SECOND);
                self.power_loss_per_mille = rng.pick(&[300, 700]);
                self.ambush_per_mille = rng.pick(&[0, 300]);
                self.volatile_cache = true;
                self.restart_after = rng.pick(&[10 * MS, SECOND]);
                self.flush_per_mille = rng.pick(&[30, 150, 400]);
                self.work_every = rng.pick(&[2 * MS, 20 * MS]);
                self.read_per_mille = 50;
            }
            Leaning::Links => {
                self.cut_every = mean(rng, 300 * MS, 4 * SECOND);
                self.down_time = rng.pick(&[MS, 50 * MS, SECOND]);
                self.half_open_per_mille = rng.pick(&[0, 300]);
            }
            Leaning::Stalls => {
                self.stall_every = mean(rng, 500 * MS, 5 * SECOND);
                self.half_open_per_mille = rng.pick(&[0, 300]);
            }
            Leaning::Operator => {
                self.operator_every = mean(rng, 100 * MS, 2 * SECOND);
                self.disks_per_mille = rng.pick(&[0, 250, 600]);
                self.senseless_per_mille = rng.pick(&[0, 200, 1000]);
                self.rival_per_mille = 300;
            }
            Leaning::Disks => {
                self.fault_every = mean(rng, SECOND, 10 * SECOND);
                self.disks_per_mille = 400;
                self.operator_every = mean(rng, 500 * MS, 5 * SECOND);
                self.exchange_per_mille = rng.pick(&[0, 200]);
            }
            Leaning::Force => {
                self.start = rng.pick(&[Start::Fresh, Start::InSync]);
                self.force_per_mille = 300;
                self.operator_every = mean(rng, SECOND, 5 * SECOND);
                self.exchange_per_mille = rng.pick(&[0, 200]);
                self.roll_back_per_mille = rng.pick(&[0, 300]);
            }
            Leaning::Resync => {
                self.volume_bytes = rng.pick(&[64u64 << 20, 400 << 20]);
                self.bandwidth = rng.pick(&[5_000_000, 100_000_000]);
                self.hot_extents = 100;
                self.io_bytes_max = 128 << 10;
                self.cut_every = mean(rng, 2 * SECOND, 10 * SECOND);
                self.down_time = rng.pick(&[200 * MS, 3 * SECOND]);
                self.disks_per_mille = 400;
                self.operator_every = mean(rng, SECOND, 5 * SECOND);
                self.ambush_per_mille = rng.pick(&[0, 100]);
            }
            Leaning::Ambush => {
                self.ambush_per_mille = rng.pick(&[200, 500]);
                self.crash_every = mean(rng, 4 * SECOND, 20 * SECOND);
                self.cut_every = mean(rng, 2 * SECOND, 10 * SECOND);
                self.restart_after = rng.pick(&[10 * MS, SECOND]);
                self.down_time = rng.pick(&[MS, 200 * MS, 3 * SECOND]);
                self.power_loss_per_mille = rng.pick(&[0, 500]);
            }
            Leaning::FailOver => {
                self.crash_every = mean(rng, 3 * SECOND, 15 * SECOND);
                self.primary_per_mille = rng.pick(&[500, 1000]);
                self.restart_after = rng.pick(&[SECOND, 10 * SECOND, 30 * SECOND]);
                self.power_loss_per_mille = rng.pick(&[0, 50]);
                self.protocol = rng.pick(&[Protocol::C, Protocol::B, Protocol::B, Protocol::A]);
                self.spare_slots = u8::from(rng.chance(600));
                self.work_every = rng.pick(&[2 * MS, 20 * MS]);
                self.requests_max = 32;
                self.read_per_mille = 50;
                self.flush_per_mille = rng.pick(&[0, 30]);
            }
            Leaning::Borrowed => {
                self.operator_every = mean(rng, SECOND, 4 * SECOND);
                self.disks_per_mille = 700;
                self.crash_every = mean(rng, SECOND, 8 * SECOND);
                self.restart_after = rng.pick(&[10 * MS, SECOND]);
                self.volatile_cache = true;
                self.suspend_io = rng.chance(500);
                self.work_every = rng.pick(&[2 * MS, 20 * MS]);
                self.read_per_mille = rng.pick(&[50, 300]);
                self.flush_per_mille = rng.pick(&[0, 30]);
            }
        }
    }

    /// Nothing goes wrong: for tests that bring their own trouble, and what a scenario file need not mention.
    pub fn calm() -> Options {
        Options {
            v84: false,
            leaning: Leaning::Anything,
            nodes: 2,
            diskless: 0,
            lying_disks: false,
            volumes: 1,
            volume_bytes: 8 << 20,
            al_extents: 67,
            spare_slots: 0,
            start: Start::InSync,
            protocol: Protocol::C,
            external_metadata: false,
            volatile_cache: true,
            use_rle: true,
            pass_on: false,
            suspend_io: false,
            duration: 5 * SECOND,
            latency: 200_000,
            jitter: 0,
            bandwidth: 100_000_000,
            disk_latency: 500_000,
            cut_every: None,
            half_open_per_mille: 0,
            down_time: 200 * MS,
            stall_every: None,
            stall_time: SECOND,
            crash_every: None,
            primary_per_mille: 0,
            restart_after: SECOND,
            power_loss_per_mille: 0,
            clean_stop_per_mille: 0,
            keep_device_per_mille: 0,
            exchange_per_mille: 0,
            roll_back_per_mille: 0,
            ambush_per_mille: 0,
            operator_every: None,
            force_per_mille: 0,
            disks_per_mille: 0,
            senseless_per_mille: 0,
            options_per_mille: 0,
            csums: false,
            verify_per_mille: 0,
            fault_every: None,
            lasting_per_mille: 0,
            stragglers: Stragglers::All,
            straggle_per_mille: 0,
            straggle_time: 0,
            rival_per_mille: 0,
            work_every: 20 * MS,
            rest_per_mille: 0,
            rest_time: 0,
            requests_max: 4,
            io_bytes_max: 16 << 10,
            hot_extents: 4,
            read_per_mille: 300,
            flush_per_mille: 30,
            fua_per_mille: 100,
            discard_per_mille: 0,
            ping_int: 3 * SECOND,
            timeout: 3 * SECOND,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_not_drawn() {
        let given = Given::parse(r#"{"protocol":"A","crash_every":5}"#).unwrap();
        let options = given.draw(3);
        assert_eq!((options.protocol, options.crash_every), (Protocol::A, Some(5)));
        let drawn = Options::draw(3);
        assert_eq!(Options { protocol: drawn.protocol, crash_every: drawn.crash_every, ..options }, drawn);
        assert!(Given::parse(r#"{"protokol":"A"}"#).is_err() && Given::parse(r#"{"volumes":"two"}"#).is_err());
    }
}
