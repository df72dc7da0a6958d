//! Whole clusters in one thread: the real engine, the real wire codec, the real metadata code; simulated clock,
//! network and disks. `world` is the loop; `network` and `disk` open with their fault models; `truth` and `checker` say
//! what is checked and what is not. Run by seed: `sim --seeds N`, `sim --seed S --trace`.

pub mod checker;
pub mod delivery;
pub mod disk;
pub mod network;
pub mod node;
pub mod operator;
#[cfg(feature = "planted")]
pub mod planted;
pub mod rng;
pub mod run;
pub mod swarm;
pub mod truth;
pub mod workload;
pub mod world;

pub use run::{Outcome, run_seed, trace_seed};
pub use world::{Complaint, Stats, World};
