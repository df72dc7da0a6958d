//! A run as a file: options, the seed of its delays, and every action. It means the same for as long as the engine's
//! inputs do, however the simulator draws; `shrink` makes it small.
//!
//! JSON, one action a line, times in virtual nanoseconds. Options that a file does not mention are calm.

use serde::{Deserialize, Serialize};

use crate::action::Act;
use crate::swarm::Options;
use crate::world::World;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// What it found, when, and what was done about it.
    pub found: String,
    pub seed: u64,
    pub options: Options,
    pub acts: Vec<Act>,
}

impl Scenario {
    /// What this world has been through so far.
    pub fn of(world: &World, seed: u64, found: &str) -> Scenario {
        Scenario { found: found.into(), seed, options: world.options.clone(), acts: world.acts.clone() }
    }

    pub fn world(&self, trace: bool) -> World {
        World::replay(self.options.clone(), self.seed, self.acts.clone(), trace)
    }

    pub fn parse(text: &str) -> Result<Scenario, String> {
        serde_json::from_str(text).map_err(|e| format!("not a scenario: {e}"))
    }

    pub fn to_text(&self) -> String {
        let acts: Vec<String> = self.acts.iter().map(|act| format!("    {}", json(act))).collect();
        format!(
            "{{\n  \"found\": {},\n  \"seed\": {},\n  \"options\": {},\n  \"acts\": [\n{}\n  ]\n}}\n",
            json(&self.found),
            self.seed,
            json(&self.options),
            acts.join(",\n")
        )
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::finish;

    /// The actions of a run, replayed, are the run.
    #[test]
    fn a_run_written_down_and_read_back_is_the_same_run() {
        for seed in [1, 5, 8] {
            let mut world = World::new(seed, true);
            let result = finish(&mut world);
            let text = Scenario::of(&world, seed, "nothing").to_text();
            let scenario = Scenario::parse(&text).unwrap();
            let mut again = scenario.world(true);
            assert_eq!(finish(&mut again), result, "seed {seed}");
            let (first, second) = (world.take_trace(), again.take_trace());
            let differs = first.iter().zip(&second).position(|(a, b)| a != b);
            assert_eq!(differs, None, "seed {seed} differs at this line");
            assert_eq!(again.stats.requests, world.stats.requests, "seed {seed}");
            assert_eq!(again.reached, world.reached, "seed {seed}");
        }
    }
}
