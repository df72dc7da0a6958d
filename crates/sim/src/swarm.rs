//! What a seed has switched on. Swarm testing: a run with few kinds of trouble goes deeper than one with all of them,
//! so each seed draws its own mixture.

use engine::Protocol;

use crate::rng::Rng;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// `create-md` on both sides, then promote --force: everything is synchronised once.
    Fresh,
    /// Both sides were in sync before the run began.
    InSync,
}

/// Means are virtual nanoseconds between two events; `None`: never.
#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: u8,
    pub volumes: u16,
    pub volume_bytes: u64,
    pub al_extents: u16,
    /// Bitmap slots that no node owns: with one, a Secondary keeps an activity log of its own (rule AL-5).
    pub spare_slots: u8,
    pub start: Start,
    pub protocol: Protocol,
    pub external_metadata: bool,
    pub volatile_cache: bool,
    pub use_rle: bool,
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
    pub crash_every: Option<u64>,
    pub restart_after: u64,
    pub power_loss_per_mille: u32,
    pub clean_stop_per_mille: u32,
    pub operator_every: Option<u64>,
    pub force_per_mille: u32,
    pub disks_per_mille: u32,
    pub work_every: u64,
    pub requests_max: usize,
    pub io_bytes_max: u64,
    /// Hot regions: how many extents the workload prefers.
    pub hot_extents: u64,
    pub read_per_mille: u32,
    pub flush_per_mille: u32,
    pub fua_per_mille: u32,
    pub discard_per_mille: u32,
    /// I/O errors. Off in this version of the simulator: the path exists, the truth model does not know them yet.
    pub io_error_per_mille: u32,
    pub ping_int: u64,
    pub timeout: u64,
}

impl Options {
    pub fn draw(rng: &mut Rng) -> Options {
        let large = rng.chance(250);
        let on = |rng: &mut Rng, per_mille, low: u64, high: u64| rng.chance(per_mille).then(|| rng.between(low, high));
        let mut options = Options {
            nodes: 2,
            volumes: if rng.chance(200) { 2 } else { 1 },
            volume_bytes: if large { 400 << 20 } else { rng.pick(&[8u64, 16, 33, 64]) << 20 },
            al_extents: if rng.chance(800) { 67 } else { 1237 },
            spare_slots: 0,
            start: if rng.chance(150) { Start::Fresh } else { Start::InSync },
            protocol: rng.pick(&[Protocol::C, Protocol::C, Protocol::C, Protocol::B, Protocol::A]),
            external_metadata: rng.chance(300),
            volatile_cache: rng.chance(850),
            use_rle: rng.chance(700),
            duration: rng.between(20, 150) * SECOND,
            latency: rng.pick(&[50_000, 200_000, MS, 20 * MS]),
            jitter: rng.pick(&[0, 100_000, 5 * MS]),
            bandwidth: rng.pick(&[5_000_000, 100_000_000, 1_000_000_000]),
            disk_latency: rng.pick(&[50_000, 500_000, 5 * MS]),
            cut_every: on(rng, 700, 2 * SECOND, 30 * SECOND),
            half_open_per_mille: if rng.chance(400) { 300 } else { 0 },
            down_time: rng.pick(&[MS, 200 * MS, 3 * SECOND, 15 * SECOND]),
            crash_every: on(rng, 700, 4 * SECOND, 40 * SECOND),
            restart_after: rng.pick(&[10 * MS, SECOND, 10 * SECOND]),
            power_loss_per_mille: if rng.chance(400) { 200 } else { 0 },
            clean_stop_per_mille: if rng.chance(500) { 200 } else { 0 },
            operator_every: on(rng, 800, SECOND, 15 * SECOND),
            force_per_mille: if rng.chance(300) { 150 } else { 0 },
            disks_per_mille: if rng.chance(400) { 250 } else { 0 },
            work_every: rng.pick(&[5 * MS, 20 * MS, 100 * MS]),
            requests_max: rng.pick(&[1, 4, 32]),
            io_bytes_max: rng.pick(&[4096, 16 << 10, 128 << 10]),
            hot_extents: rng.pick(&[1, 4, 100]),
            read_per_mille: rng.pick(&[50, 300, 700]),
            flush_per_mille: rng.pick(&[0, 30, 150]),
            fua_per_mille: rng.pick(&[0, 100]),
            discard_per_mille: rng.pick(&[0, 0, 60]),
            io_error_per_mille: 0,
            ping_int: rng.pick(&[1, 3, 10]) * SECOND,
            timeout: rng.pick(&[1, 3, 6]) * SECOND,
        };
        // Not drawn: seeds of before would mean something else.
        options.spare_slots = u8::from(options.duration.is_multiple_of(3));
        options
    }

    /// Nothing goes wrong: for tests that bring their own trouble.
    pub fn calm() -> Options {
        let mut o = Options::draw(&mut Rng::new(0));
        o.nodes = 2;
        o.volumes = 1;
        o.volume_bytes = 8 << 20;
        o.start = Start::InSync;
        o.protocol = Protocol::C;
        o.external_metadata = false;
        o.volatile_cache = true;
        o.duration = 5 * SECOND;
        o.latency = 200_000;
        o.jitter = 0;
        o.bandwidth = 100_000_000;
        o.disk_latency = 500_000;
        o.cut_every = None;
        o.crash_every = None;
        o.operator_every = None;
        o.io_error_per_mille = 0;
        o
    }
}
