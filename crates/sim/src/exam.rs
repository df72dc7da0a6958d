//! What a verify finds.
//!
//! Checks, in every run that has a `verify-alg`:
//! - A verify that begins with both disks UpToDate and no bit set, and meets no I/O error, finds no difference, whatever is
//!   written meanwhile, and counts none wrongly (rules VF-2 to VF-4).
//! - At the end, when all is well: a verify of some blocks finds nothing and skips nothing. Then a block rots on one disk: a
//!   verify, driven by either end, finds just that one, both ends have just its bit, and a disconnect and connect bring the
//!   data of the other disk back (final checks).
//!
//! Does not check: what a verify finds where something was out of sync before, more than two nodes, and in the 8.4 dialect
//! the repair.

use engine::{Command, Event as EngineEvent, Status};
use types::{DiskState, NodeId, ReplicationState, VolumeNumber};

use crate::disk::{SECTOR, View};
use crate::swarm::SECOND;
use crate::world::World;

const BLOCK: u64 = 4096;
/// What the exam looks at: around the block that rots.
const WINDOW_BYTES: u64 = 1 << 20;
/// No write has this stamp.
const ROTTEN: u64 = u64::MAX / 3;

/// How far the exam is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Exam {
    #[default]
    NotBegun,
    /// All copies are equal.
    Clean(Subject),
    /// One block is not.
    Rotten(Subject),
    /// The two connect again.
    Repair,
    Passed,
}

/// What is examined, and by whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subject {
    driver: NodeId,
    peer: NodeId,
    volume: VolumeNumber,
    block: u64,
}

/// A verify that is under way, by the node that drives it.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Differences may be real.
    excused: bool,
    faults: u64,
}

/// What a verify said at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    pub different: u64,
    pub skipped: u64,
    pub complete: bool,
    pub at: u64,
}

impl Found {
    fn is(&self, different: u64) -> bool {
        (self.different, self.skipped, self.complete) == (different, 0, true)
    }
}

impl World {
    // ------------------------------------------------------------------ while everything goes on

    pub(crate) fn verify_event(&mut self, id: NodeId, event: &EngineEvent) {
        match *event {
            EngineEvent::VerifyStarted { peer, volume, driving: true, .. } => {
                // A block that cannot be read counts as one that differs.
                let faulty = self.nodes.values().any(|node| !node.faults.is_empty());
                let excused = faulty || !self.is_whole(id, peer, volume);
                let watched = Watched { excused, faults: self.stats.faults };
                self.verifies.insert((id, peer, volume), watched);
            }
            EngineEvent::VerifyFinished { peer, volume, driving: true, different, skipped, complete, .. } => {
                self.found = Some(Found { different, skipped, complete, at: self.now });
                let Some(watched) = self.verifies.remove(&(id, peer, volume)) else { return };
                let exam = matches!(self.exam, Exam::Rotten(_));
                if different > 0 && !exam && !watched.excused && watched.faults == self.stats.faults {
                    self.complain(format!(
                        "a verify of {volume:?} by {id:?} found {different} blocks that differ from {peer:?}'s, where both \
                         were in sync when it began"
                    ));
                }
            }
            _ => {}
        }
    }

    fn is_whole(&self, id: NodeId, peer: NodeId, volume: VolumeNumber) -> bool {
        let says = |me: NodeId, other: NodeId| {
            self.status(me).is_some_and(|status| {
                let device = &status.peers[&other].volumes[&volume];
                status.volumes[&volume].disk == DiskState::UpToDate && device.out_of_sync_bytes == 0
            })
        };
        let tracked = [id, peer].iter().all(|node| !self.untracked.contains(&(*node, volume)));
        says(id, peer) && says(peer, id) && tracked && self.is_link_whole(id, peer)
    }

    // ------------------------------------------------------------------ at the end

    /// From now on the disk has other data in this block, on stable storage, and nobody wrote it.
    fn rot(&mut self, node: NodeId, volume: VolumeNumber, block: u64) {
        let disk = self.node_mut(node).disks.get_mut(&volume).expect("a node with a disk");
        disk.rot(block * BLOCK / SECTOR, ROTTEN);
        self.say(|| format!("{node:?} {volume:?}: block {block} rots"));
    }

    /// All is well: one step further. Returns whether there is nothing left to do.
    pub(crate) fn examine(&mut self) -> bool {
        match self.exam {
            Exam::Passed => return true,
            Exam::NotBegun => self.begin_exam(),
            Exam::Clean(subject) => self.rot_a_block(subject),
            Exam::Rotten(subject) => self.judge_rotten(subject),
            Exam::Repair => {
                self.final_checks();
                self.exam = Exam::Passed;
            }
        }
        self.exam == Exam::Passed
    }

    fn begin_exam(&mut self) {
        let ids = self.diskful();
        let wanted = self.options.verify_per_mille > 0 && self.options.nodes == 2;
        let size = self.options.volume_bytes.min(8 << 20) / 2;
        let (&[a, b], true) = (&ids[..], wanted) else {
            self.exam = Exam::Passed;
            return;
        };
        let (driver, peer) = if self.nature.chance(500) { (a, b) } else { (b, a) };
        let volume = self.volume_numbers()[0];
        let block = self.nature.between(0, size / BLOCK - 1);
        let subject = Subject { driver, peer, volume, block };
        self.exam = Exam::Clean(subject);
        self.verify_window(subject);
    }

    fn verify_window(&mut self, subject: Subject) {
        let Subject { driver, peer, volume, block } = subject;
        self.found = None;
        let start = (block * BLOCK).saturating_sub(WINDOW_BYTES / 2);
        let (start, stop) = (Some(start), Some(start + WINDOW_BYTES));
        self.command(driver, Command::Verify { volume, peer, start, stop }, false);
    }

    fn rot_a_block(&mut self, subject: Subject) {
        // Not over yet, or refused: nodes may have other things to do. Both show in the states.
        let Some(found) = self.found else { return self.verify_window(subject) };
        if !found.is(0) {
            return self.complain(format!("a verify of equal copies that nobody uses says {found:?}"));
        }
        // What is the source when they connect again: the Primary, or else the lower id.
        let (low, high) = (subject.driver.min(subject.peer), subject.driver.max(subject.peer));
        let target = if self.node(high).is_primary { low } else { high };
        self.rot(target, subject.volume, subject.block);
        self.exam = Exam::Rotten(subject);
        self.verify_window(subject);
    }

    fn judge_rotten(&mut self, subject: Subject) {
        let Subject { driver, peer, volume, block } = subject;
        let Some(found) = self.found else {
            let runs = |status: Status| status.peers[&peer].volumes[&volume].replication == ReplicationState::VerifyS;
            if !self.status(driver).is_some_and(runs) && self.node(driver).commands.is_empty() {
                self.verify_window(subject);
            }
            return;
        };
        // Its bits go to the disk a moment later.
        if self.now < found.at + SECOND {
            return;
        }
        if !found.is(1) {
            return self.complain(format!("a verify of copies that differ in one block says {found:?}"));
        }
        for (me, other) in [(driver, peer), (peer, driver)] {
            let marked = |status: Status| status.peers[&other].volumes[&volume].out_of_sync_bytes;
            let marked = self.status(me).map(marked);
            if marked != Some(BLOCK) {
                self.complain(format!("{me:?} marks {marked:?} bytes out of sync where one block rotted"));
            }
            let on_disk = self.nodes[&me].disks[&volume].coverage(View::Durable);
            if !on_disk.is_ok_and(|coverage| coverage.covers(other, block)) {
                self.complain(format!("{me:?} does not have the bit of block {block}, which rotted, on its disk"));
            }
        }
        self.stats.rotten_found += 1;
        if self.options.v84 {
            // Between equal generations nothing is fetched there.
            self.exam = Exam::Passed;
            return;
        }
        self.exam = Exam::Repair;
        self.command(driver, Command::Disconnect { peer, force: false }, false);
    }

    /// Out of sync is what the exam has made so.
    pub(crate) fn is_examining_rot(&self) -> bool {
        matches!(self.exam, Exam::Rotten(_))
    }
}
