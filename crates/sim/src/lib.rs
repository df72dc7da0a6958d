//! Whole clusters in one thread: the real engine, the real wire codec, the real metadata code; simulated clock,
//! network and disks. `world` is the loop; `network` and `disk` open with their fault models; `truth` and `checker` say
//! what is checked and what is not. Run by seed: `sim --seeds N`, `sim --seed S --trace`.

pub mod action;
pub mod checker;
pub mod delivery;
pub mod disk;
pub mod exam;
pub mod few;
pub mod healer;
pub mod network;
pub mod node;
pub mod operator;
pub mod paged;
#[cfg(feature = "planted")]
pub mod planted;
pub mod protocols;
pub mod reached;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod shrink;
pub mod startup;
pub mod steer;
pub mod swarm;
pub mod trouble;
pub mod truth;
pub mod workload;
pub mod world;

pub use run::{Outcome, run_scenario, run_seed, run_seed_with, trace_seed};
pub use world::{Complaint, Stats, World};
