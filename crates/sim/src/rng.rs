//! The sources of chance of a run. Everything random is drawn from one of three streams of the seed, in the order of
//! the events: what the options are, how long things take, and what the world does.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

#[derive(Clone)]
pub struct Rng(ChaCha8Rng);

/// Independent of each other: a scenario that brings its own actions meets the delays of the run that it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Options = 1,
    /// Delays, what survives a power cut, the engines' own chance.
    Nature,
    /// Drawn actions.
    World,
}

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(ChaCha8Rng::seed_from_u64(seed))
    }
    pub fn stream(seed: u64, stream: Stream) -> Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream as u64);
        Rng(rng)
    }
    pub fn draw(&mut self) -> u64 {
        self.0.next_u64()
    }
    pub fn seed_of_engine(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        seed
    }
    /// Uniform enough in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "nothing lies in {low}..={high}");
        match (high - low).checked_add(1) {
            Some(span) => low + self.draw() % span,
            None => self.draw(),
        }
    }
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.draw() % 1000 < u64::from(per_mille)
    }
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.between(0, items.len() as u64 - 1) as usize]
    }
    /// Around `mean`, from an eighth to double, so that two processes never march in step.
    pub fn around(&mut self, mean: u64) -> u64 {
        self.between(mean / 8, mean * 2)
    }
}
