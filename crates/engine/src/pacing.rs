//! How much a resync target requests in one step: the rate controller. Pure, integers only.
//!
//! Units: sectors of 512 bytes as in DRBD's formulas (1 KiB/s = 2 sectors/s), steps of 100 ms, options in their own.
//! Every option is bounded when the controller is made, so no product overflows.

use alloc::collections::VecDeque;

/// Time between two steps. Milliseconds; DRBD's formulas have it built in ("* 0.1 s").
pub const STEP_MS: u64 = 100;
/// Longest step that the controller believes. Milliseconds.
const STEP_MS_MAX: u64 = 1000;
/// Requests are whole blocks of 4 KiB. Sectors.
const BLOCK_SECTORS: u64 = 8;
const STEPS_PER_SECOND: u64 = 1000 / STEP_MS;
const SECTORS_PER_KIB: u64 = 2;

/// Bounds of the options. Source: drbd.conf; larger values count as the bound.
const PLAN_AHEAD_DS_MAX: u32 = 300;
const DELAY_TARGET_DS_MAX: u32 = 100;
const FILL_TARGET_SECTORS_MAX: u32 = 1 << 20;
const RATE_KIB_MAX: u32 = 4 << 20;

/// The options of a connection; names as in the configuration with their units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacingConfig {
    /// `resync-rate`: the fixed rate, or where the controller starts. KiB/s.
    pub resync_rate_kib: u32,
    /// `c-plan-ahead`: slots of the plan. 0.1 s; 0: fixed rate.
    pub plan_ahead_ds: u32,
    /// `c-delay-target`: used if the fill target is 0. 0.1 s.
    pub delay_target_ds: u32,
    /// `c-fill-target`: how much to keep in flight. Sectors; 0: use the delay target.
    pub fill_target_sectors: u32,
    /// `c-max-rate`. KiB/s; 0: no limit.
    pub max_rate_kib: u32,
    /// `c-min-rate`: below this the brake is not applied; the caller compares. KiB/s; 0: no brake at all.
    pub min_rate_kib: u32,
}

impl Default for PacingConfig {
    fn default() -> PacingConfig {
        PacingConfig {
            resync_rate_kib: 250,
            plan_ahead_ds: 20,
            delay_target_ds: 10,
            fill_target_sectors: 100,
            max_rate_kib: 102_400,
            min_rate_kib: 250,
        }
    }
}

/// What happened since the last step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub since_last_ms: u64,
    /// Resync data that came in since.
    pub came_in_sectors: u64,
    /// Requested and not come in.
    pub in_flight_sectors: u64,
    /// `max-buffers`: no more than this in flight.
    pub in_flight_sectors_max: u64,
    /// Foreign I/O on the disk and the resync is faster than `c-min-rate`: request nothing in this step.
    pub brake: bool,
}

#[derive(Clone, Debug)]
pub struct Pacing {
    config: PacingConfig,
    /// Corrections of the coming steps, the next one in front. Sectors; empty: fixed rate.
    plan: VecDeque<i64>,
    /// Sum of `plan`.
    planned: i64,
}

impl Pacing {
    pub fn new(config: PacingConfig) -> Pacing {
        let config = PacingConfig {
            resync_rate_kib: config.resync_rate_kib.min(RATE_KIB_MAX),
            plan_ahead_ds: config.plan_ahead_ds.min(PLAN_AHEAD_DS_MAX),
            delay_target_ds: config.delay_target_ds.min(DELAY_TARGET_DS_MAX),
            fill_target_sectors: config.fill_target_sectors.min(FILL_TARGET_SECTORS_MAX),
            max_rate_kib: config.max_rate_kib.min(RATE_KIB_MAX),
            min_rate_kib: config.min_rate_kib.min(RATE_KIB_MAX),
        };
        Pacing { plan: (0..config.plan_ahead_ds).map(|_| 0).collect(), planned: 0, config }
    }

    pub fn config(&self) -> &PacingConfig {
        &self.config
    }

    /// Sectors to request now: whole blocks, so up to one block less a sector above the cap.
    pub fn step(&mut self, step: Step) -> u64 {
        let wanted = if self.plan.is_empty() { per_step(self.config.resync_rate_kib) } else { self.controlled(step) };
        if step.brake {
            return 0;
        }
        let room = step.in_flight_sectors_max.saturating_sub(step.in_flight_sectors);
        wanted.min(room).div_ceil(BLOCK_SECTORS) * BLOCK_SECTORS
    }

    fn controlled(&mut self, step: Step) -> u64 {
        // More than this cannot be: bounds the arithmetic, not the behaviour.
        let bounded = |sectors: u64| sectors.min(1 << 32) as i64;
        let (mut came_in, in_flight) = (bounded(step.came_in_sectors), bounded(step.in_flight_sectors));
        let mut duration_ms = step.since_last_ms.clamp(1, STEP_MS_MAX) as i64;
        if duration_ms < STEP_MS as i64 {
            came_in = came_in * STEP_MS as i64 / duration_ms;
            duration_ms = STEP_MS as i64;
        }
        let slots = self.plan.len() as i64;
        let want = if in_flight + came_in == 0 {
            per_step(self.config.resync_rate_kib) as i64 * slots
        } else if self.config.fill_target_sectors > 0 {
            i64::from(self.config.fill_target_sectors)
        } else {
            // came_in / duration is the speed; delay target and duration are both 0.1 s and ms.
            came_in * i64::from(self.config.delay_target_ds) * 100 / duration_ms
        };
        let correction = want - in_flight - self.planned;
        let per_slot = correction / slots;
        for slot in &mut self.plan {
            *slot += per_slot;
        }
        self.planned += per_slot * slots;
        let now = self.plan.pop_front().expect("the plan has slots");
        self.plan.push_back(0);
        self.planned -= now;
        let limit = match self.config.max_rate_kib {
            0 => i64::MAX,
            rate => per_step(rate) as i64,
        };
        (came_in + now).clamp(0, limit) as u64
    }
}

/// KiB/s -> sectors in one step.
fn per_step(rate_kib: u32) -> u64 {
    u64::from(rate_kib) * SECTORS_PER_KIB / STEPS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(came_in: u64, in_flight: u64) -> Step {
        Step {
            since_last_ms: 100,
            came_in_sectors: came_in,
            in_flight_sectors: in_flight,
            in_flight_sectors_max: 16_384,
            brake: false,
        }
    }

    #[test]
    fn a_fixed_rate_is_the_same_in_each_step() {
        // 250 KiB/s = 50 sectors in 0.1 s, up to 56; 4000 KiB/s = 800.
        let mut pacing = Pacing::new(PacingConfig { plan_ahead_ds: 0, ..PacingConfig::default() });
        assert_eq!([pacing.step(step(0, 0)), pacing.step(step(999, 64))], [56, 56]);
        let mut pacing =
            Pacing::new(PacingConfig { plan_ahead_ds: 0, resync_rate_kib: 4000, ..PacingConfig::default() });
        assert_eq!(pacing.step(step(0, 0)), 800);
    }

    #[test]
    fn the_fill_target_is_approached_over_the_plan() {
        // Start: want 50 * 20 = 1000, 50 a slot, P = 950 after the pop.
        let mut pacing = Pacing::new(PacingConfig::default());
        assert_eq!(pacing.step(step(0, 0)), 56);
        assert_eq!(pacing.planned, 950);
        // want 100, correction 100 - 0 - 950 = -850, -42 a slot; slot 50 - 42 = 8; 56 came in: 64.
        assert_eq!(pacing.step(step(56, 0)), 64);
        assert_eq!(pacing.planned, 950 - 840 - 8);
        // correction 100 - 64 - 102 = -66, -3 a slot; slot 50 - 42 - 3 = 5; nothing came in: 5, up to 8.
        assert_eq!(pacing.step(step(0, 64)), 8);
    }

    #[test]
    fn the_delay_target_follows_the_speed() {
        let config = PacingConfig { fill_target_sectors: 0, plan_ahead_ds: 10, ..PacingConfig::default() };
        let mut pacing = Pacing::new(config);
        // 400 sectors in 0.2 s, 1 s ahead: want 400 * 10 * 100 / 200 = 2000; - 1000 in flight; 100 a slot: 500.
        assert_eq!(pacing.step(Step { since_last_ms: 200, ..step(400, 1000) }), 504);
        assert_eq!(pacing.planned, 900);
        // A short step is scaled up: 20 in 50 ms count as 40: want 40 * 10 * 100 / 100 = 400; 400 - 300 - 900 = -800,
        // -80 a slot; slot 100 - 80 = 20; 40 + 20 = 60, up to 64.
        assert_eq!(pacing.step(Step { since_last_ms: 50, ..step(20, 300) }), 64);
    }

    #[test]
    fn limits() {
        // 1000 KiB/s = 200 sectors.
        let slow = PacingConfig { max_rate_kib: 1000, ..PacingConfig::default() };
        assert_eq!(Pacing::new(slow).step(step(5000, 0)), 200);
        // No limit: want 100, correction 100, 5 a slot: 5005, up to 5008.
        let free = PacingConfig { max_rate_kib: 0, ..slow };
        assert_eq!(Pacing::new(free).step(step(5000, 0)), 5008);
        // Never below zero: correction 100 - 16000, -795 a slot.
        assert_eq!(Pacing::new(slow).step(step(100, 16_000)), 0);
        // The cap leaves 96.
        let capped = Step { in_flight_sectors_max: 4096, ..step(5000, 4000) };
        assert_eq!(Pacing::new(free).step(capped), 96);
        assert_eq!(Pacing::new(free).step(Step { in_flight_sectors_max: 4000, ..capped }), 0);
        assert_eq!(Pacing::new(free).step(Step { brake: true, ..step(5000, 0) }), 0);
    }

    #[test]
    fn wild_numbers_do_not_overflow() {
        let max = u32::MAX;
        let config = PacingConfig {
            resync_rate_kib: max,
            plan_ahead_ds: max,
            delay_target_ds: max,
            fill_target_sectors: 0,
            max_rate_kib: 0,
            min_rate_kib: max,
        };
        let mut pacing = Pacing::new(config);
        assert_eq!(pacing.plan.len(), 300);
        for since_last_ms in [0, 1, u64::MAX] {
            for sectors in [0, u64::MAX] {
                let asked = pacing.step(Step { since_last_ms, ..step(sectors, sectors) });
                assert!(asked <= 16_384, "{asked}");
            }
        }
    }
}
