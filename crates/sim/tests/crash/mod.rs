//! Goes through every durable point of a scripted run of two nodes: power is cut exactly there, with each outcome that
//! a disk may have; the node comes back, everything is healed, and all of the simulator's checkers judge.
//!
//! A run is a [`script::Script`] in a world without chance: the same script makes the same points. A [`Cut`] names one
//! point, one moment (before the completion, or after the engine has heard of it), one outcome, and who loses power.
//! Beyond the simulator's checkers: `order` looks at every write that is given to a disk, `after` at every disk that
//! lost power. Outcomes that leave the same bytes behind are followed up once.

pub mod after;
pub mod driver;
pub mod enumerate;
pub mod order;
pub mod script;

use sim::disk::Survival;
use types::{NodeId, VolumeNumber};

pub const VOLUME: VolumeNumber = VolumeNumber::new(0).unwrap();
pub const A: NodeId = NodeId::new(0).unwrap();
pub const B: NodeId = NodeId::new(1).unwrap();

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// The operation is in flight, with all that was submitted beside it.
    Before,
    /// It completed, the engine has heard of it, and what the engine did next is in flight.
    After,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victims {
    One,
    /// The whole site, at the same moment.
    Both,
}

/// Where power goes.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Counted on this node's disk.
    pub node: NodeId,
    pub point: u64,
    pub moment: Moment,
    pub survival: Survival,
    pub victims: Victims,
    /// Power goes once more at this durable point after the restart, if the disk is still being attached then.
    pub again: Option<(u64, Survival)>,
}
