//! Draws seeds towards what was rarely reached: each leaning is credited with the rare things that its runs came across,
//! and the next seed gets a leaning in proportion. Which seed was run is printed with every finding: a steered run is
//! replayed like any other.

use std::collections::BTreeMap;

use crate::reached::Reached;
use crate::swarm::{LEANINGS, leaning_index, seed_with};

/// Every so many runs a leaning is taken in turn, whatever it has shown.
const IN_TURN: u64 = 3;

#[derive(Default)]
pub struct Steering {
    /// How many runs reached each point.
    points: BTreeMap<String, u64>,
    /// Of each leaning: runs, and the worth of what they reached.
    worth: [(f64, f64); LEANINGS.len()],
}

impl Steering {
    /// The seed of run `number`.
    pub fn choose(&self, number: u64) -> u64 {
        let turns = LEANINGS.len() as u64;
        if number.is_multiple_of(IN_TURN) {
            return seed_with(number, (number / IN_TURN % turns) as usize);
        }
        let mean = |(runs, worth): (f64, f64)| worth / runs.max(1.0);
        let sum: f64 = self.worth.iter().map(|w| mean(*w)).sum();
        if sum == 0.0 {
            return seed_with(number, (number % turns) as usize);
        }
        // Spread evenly over 0..1 without a source of chance.
        let mut point = (number as f64 * 0.618_033_988_75).fract() * sum;
        for (index, worth) in self.worth.iter().enumerate() {
            point -= mean(*worth);
            if point <= 0.0 {
                return seed_with(number, index);
            }
        }
        seed_with(number, LEANINGS.len() - 1)
    }

    pub fn learn(&mut self, seed: u64, reached: &Reached) {
        let mut worth = 0.0;
        for point in reached.points.keys() {
            let runs = self.points.entry(point.clone()).or_default();
            *runs += 1;
            worth += 1.0 / *runs as f64;
        }
        let entry = &mut self.worth[leaning_index(seed)];
        // What was found long ago counts less and less.
        *entry = (entry.0 * 0.99 + 1.0, entry.1 * 0.99 + worth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leanings_that_show_rare_things_get_more_seeds() {
        let mut steering = Steering::default();
        let mut reached = Reached::default();
        for n in 0..100 {
            reached.points = BTreeMap::from([("common".to_string(), 1)]);
            if n % LEANINGS.len() as u64 == 4 {
                reached.points.insert(format!("rare {n}"), 1);
            }
            steering.learn(seed_with(n, (n % LEANINGS.len() as u64) as usize), &reached);
        }
        let chosen = (0..900).map(|n| leaning_index(steering.choose(n))).filter(|l| *l == 4).count();
        assert!(chosen > 400, "{chosen} of 900");
        assert!(chosen < 850, "the others get nothing");
    }
}
