//! From a run that failed to a small scenario that fails in the same way: fewer actions, fewer volumes, calmer options,
//! less time. Each step is kept if the run still fails with the same kind of complaint, with the seed it had or, since
//! every change moves all delays, one of a few others.

use crate::run::{Failure, run_scenario};
use crate::scenario::Scenario;
use crate::swarm::{Options, SECOND};

/// Seeds that are tried for one step.
const TRIES: u64 = 3;

pub struct Shrinker {
    best: Scenario,
    kind: String,
    /// Runs left.
    budget: u32,
    pub runs: u32,
}

impl Shrinker {
    /// `None`: the scenario does not fail, or not the way it did.
    pub fn new(scenario: Scenario, failure: &Failure, budget: u32) -> Option<Shrinker> {
        let mut shrinker = Shrinker { best: scenario.clone(), kind: failure.kind(), budget, runs: 0 };
        shrinker.attempt(scenario, 1).then_some(shrinker)
    }

    /// The smallest that was found.
    pub fn shrink(mut self) -> Scenario {
        loop {
            let before = (self.best.acts.len(), self.best.options.clone());
            self.shorten();
            self.calm_down();
            self.drop_acts();
            let after = (self.best.acts.len(), self.best.options.clone());
            if self.budget == 0 || before == after {
                return self.best;
            }
        }
    }

    /// Takes `candidate` over if it fails in the same way. What comes after the failure goes.
    fn attempt(&mut self, mut candidate: Scenario, tries: u64) -> bool {
        let seed = candidate.seed;
        for offset in 0..tries {
            if self.budget == 0 {
                return false;
            }
            self.budget -= 1;
            self.runs += 1;
            candidate.seed = seed + offset;
            let (outcome, _) = run_scenario(&candidate, false);
            let Err(failure) = outcome.result else { continue };
            if failure.kind() != self.kind {
                continue;
            }
            candidate.acts.retain(|act| act.at <= failure.at);
            candidate.found = failure.text;
            self.best = candidate;
            return true;
        }
        false
    }

    /// Trouble that ends earlier.
    fn shorten(&mut self) {
        for share in [2, 4, 8] {
            let mut candidate = self.best.clone();
            let last = candidate.acts.last().map_or(0, |act| act.at);
            let end = last.saturating_sub(SECOND).min(candidate.options.duration);
            candidate.options.duration = (end - end / share).max(SECOND);
            if candidate.options.duration < self.best.options.duration {
                let end = candidate.options.duration + SECOND;
                candidate.acts.retain(|act| act.at <= end);
                self.attempt(candidate, TRIES);
            }
        }
    }

    fn calm_down(&mut self) {
        let calm = Options::calm();
        type Change = fn(&mut Options, &Options);
        let changes: [Change; 16] = [
            |o, calm| o.volumes = calm.volumes,
            |o, _| o.nodes = 2,
            |o, _| o.diskless = 0,
            |o, calm| o.volume_bytes = calm.volume_bytes,
            |o, calm| o.jitter = calm.jitter,
            |o, calm| o.external_metadata = calm.external_metadata,
            |o, _| o.volatile_cache = false,
            |o, calm| o.spare_slots = calm.spare_slots,
            |o, calm| o.use_rle = calm.use_rle,
            |o, calm| o.protocol = calm.protocol,
            |o, calm| o.pass_on = calm.pass_on,
            |o, calm| o.suspend_io = calm.suspend_io,
            |o, calm| o.latency = calm.latency,
            |o, calm| o.disk_latency = calm.disk_latency,
            |o, calm| o.bandwidth = calm.bandwidth,
            |o, calm| o.al_extents = calm.al_extents,
        ];
        for change in changes {
            let mut candidate = self.best.clone();
            change(&mut candidate.options, &calm);
            if candidate.options != self.best.options {
                self.attempt(candidate, TRIES);
            }
        }
    }

    /// Halves, quarters and so on of the actions, down to single ones.
    fn drop_acts(&mut self) {
        let mut chunk = self.best.acts.len().div_ceil(2);
        while chunk > 0 && self.budget > 0 {
            let mut from = 0;
            while from < self.best.acts.len() && self.budget > 0 {
                let mut candidate = self.best.clone();
                let to = (from + chunk).min(candidate.acts.len());
                candidate.acts.drain(from..to);
                let tries = if chunk <= 8 { TRIES } else { 1 };
                if !self.attempt(candidate, tries) {
                    from += chunk;
                }
            }
            chunk /= 2;
        }
    }
}
