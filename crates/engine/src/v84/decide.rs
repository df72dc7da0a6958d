//! Who is source between two nodes that speak the 8.4 dialect. Pure. The rules and their order are those of DRBD 8.4: a
//! kernel on the other side goes by them and is not asked, so both must come to mirror-image answers. Numbers: those
//! that 8.4 logs ("uuid_compare()=… by rule N"). Table: docs/states.md "Handshake decision of the 8.4 dialect".

use types::{DiskState, Role, Uuid};
use wire::message::uuid_flag as flag;
use wire::v84::{SYNC_UUID_OFFSET, Uuids84};

use crate::handshake::{BitmapUse, Decision, RefuseReason, Rule, Strategy};

/// What one end says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub claims: Uuids84,
    pub disk: DiskState,
    pub role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    NoSync,
    Source {
        full: bool,
    },
    Target {
        full: bool,
    },
    /// `auto`: both bitmaps count from one generation.
    SplitBrain {
        auto: bool,
    },
    Unrelated,
}

const SOURCE: Verdict = Verdict::Source { full: false };
const TARGET: Verdict = Verdict::Target { full: false };

impl Side {
    fn has(&self, flag: u64) -> bool {
        self.claims.flags & flag != 0
    }

    /// A disk that waits for this very decision says by a flag what its metadata says.
    fn disk_by_metadata(&self) -> DiskState {
        match (self.disk, self.has(flag::INCONSISTENT)) {
            (DiskState::Negotiating, true) => DiskState::Inconsistent,
            (DiskState::Negotiating, false) => DiskState::Consistent,
            (disk, _) => disk,
        }
    }

    fn remembers(&self, generation: Uuid) -> bool {
        self.claims.history.iter().any(|old| old.same(generation))
    }

    /// It has announced a resync from its last generation on and not ended it.
    fn named_a_resync(&self) -> bool {
        let [last, _] = self.claims.history;
        Uuid(last.identity().0.wrapping_add(SYNC_UUID_OFFSET)).same(self.claims.bitmap)
    }
}

/// `arbiter`: this end accepted the control socket, the other has not.
pub(crate) fn decide(me: &Side, peer: &Side, arbiter: bool) -> Decision {
    let (verdict, rule) = compare(me, peer, arbiter);
    Decision { strategy: finish(verdict, me, peer), rule }
}

fn compare(me: &Side, peer: &Side, arbiter: bool) -> (Verdict, Rule) {
    let (mine, its) = (me.claims.current, peer.claims.current);
    match (mine.is_just_created(), its.is_just_created()) {
        (true, true) => return (Verdict::NoSync, Rule::V84JustCreatedBoth),
        (true, false) => return (Verdict::Target { full: true }, Rule::V84JustCreatedSelf),
        (false, true) => return (Verdict::Source { full: true }, Rule::V84JustCreatedPeer),
        (false, false) => {}
    }
    if mine.same(its) { compare_equal(me, peer, arbiter) } else { compare_different(me, peer) }
}

fn compare_equal(me: &Side, peer: &Side, arbiter: bool) -> (Verdict, Rule) {
    // The target's history begins with the resync's name and the source's bitmap UUID before it.
    let ended = |source: &Side, target: &Side| {
        let ([name, before], [last, _]) = (target.claims.history, source.claims.history);
        source.claims.bitmap.same(name) && last.same(before)
    };
    match (me.claims.bitmap.is_zero(), peer.claims.bitmap.is_zero()) {
        (false, true) if ended(me, peer) => return (SOURCE, Rule::V84MissedEndSelf),
        (false, true) => return (SOURCE, Rule::V84EqualSlotSelf),
        (true, false) if ended(peer, me) => return (TARGET, Rule::V84MissedEndPeer),
        (true, false) => return (TARGET, Rule::V84EqualSlotPeer),
        _ => {}
    }
    let (i_crashed, it_crashed) = (me.has(flag::CRASHED_PRIMARY), peer.has(flag::CRASHED_PRIMARY));
    if !i_crashed && !it_crashed {
        return (Verdict::NoSync, Rule::V84Equal);
    }
    match (me.role == Role::Primary, peer.role == Role::Primary) {
        (true, true) => return (Verdict::SplitBrain { auto: false }, Rule::V84PrimarySurvived),
        (true, false) => return (SOURCE, Rule::V84PrimarySurvived),
        (false, true) => return (TARGET, Rule::V84PrimarySurvived),
        (false, false) => {}
    }
    let source = if i_crashed && it_crashed { !arbiter } else { i_crashed };
    (if source { SOURCE } else { TARGET }, Rule::V84CrashedPrimary)
}

fn compare_different(me: &Side, peer: &Side) -> (Verdict, Rule) {
    let (mine, its) = (me.claims.current, peer.claims.current);
    if mine.same(peer.claims.bitmap) {
        return (TARGET, Rule::V84SlotPeer);
    }
    if mine.same(peer.claims.history[0]) && peer.named_a_resync() {
        return (TARGET, Rule::V84LostSyncUuidPeer);
    }
    if peer.remembers(mine) {
        return (Verdict::Target { full: true }, Rule::V84HistoryPeer);
    }
    if its.same(me.claims.bitmap) {
        return (SOURCE, Rule::V84SlotSelf);
    }
    if its.same(me.claims.history[0]) && me.named_a_resync() {
        return (SOURCE, Rule::V84LostSyncUuidSelf);
    }
    if me.remembers(its) {
        return (Verdict::Source { full: true }, Rule::V84HistorySelf);
    }
    if me.claims.bitmap.same(peer.claims.bitmap) && !me.claims.bitmap.is_zero() {
        return (Verdict::SplitBrain { auto: true }, Rule::V84SlotsEqual);
    }
    // Two empty entries are equal as well, as in 8.4.
    if me.claims.history.iter().any(|old| peer.remembers(*old)) {
        return (Verdict::SplitBrain { auto: false }, Rule::V84HistoriesMeet);
    }
    (Verdict::Unrelated, Rule::V84Unrelated)
}

/// Disks, `discard-my-data`, and what is refused; in this order.
fn finish(verdict: Verdict, me: &Side, peer: &Side) -> Strategy {
    let (mine, its) = (me.disk_by_metadata(), peer.disk_by_metadata());
    let one_inconsistent = (mine == DiskState::Inconsistent) != (its == DiskState::Inconsistent)
        && mine.min(its) == DiskState::Inconsistent;
    let verdict = match verdict {
        Verdict::Unrelated => return Strategy::Unrelated,
        verdict if one_inconsistent => {
            let full = matches!(
                verdict,
                Verdict::Source { full: true } | Verdict::Target { full: true } | Verdict::SplitBrain { auto: false }
            );
            // 8.4 syncs the older data over the newer here. Nothing says that this is wanted: correct or stopped.
            if verdict == (if mine > its { TARGET } else { SOURCE }) {
                return Strategy::Refuse(RefuseReason::SourceIsInconsistent);
            }
            if mine > its { Verdict::Source { full } } else { Verdict::Target { full } }
        }
        Verdict::SplitBrain { auto } => {
            // 8.4 trusts the bitmaps here even where they count from different generations. The bits of one end are
            // enough to make it a full resync: they are merged.
            let full = !auto;
            match (me.has(flag::DISCARD_MY_DATA), peer.has(flag::DISCARD_MY_DATA)) {
                (true, false) => Verdict::Target { full },
                (false, true) => Verdict::Source { full },
                _ => return Strategy::SplitBrain { auto },
            }
        }
        verdict => verdict,
    };
    let bits = |full| if full { BitmapUse::SetAll } else { BitmapUse::Own };
    let (source, target, strategy) = match verdict {
        Verdict::NoSync => return Strategy::NoSync,
        Verdict::Source { full } => (me, peer, Strategy::Source(bits(full))),
        Verdict::Target { full } => (peer, me, Strategy::Target(bits(full))),
        Verdict::SplitBrain { .. } | Verdict::Unrelated => unreachable!("settled above"),
    };
    if source.disk_by_metadata() <= DiskState::Inconsistent {
        return Strategy::Refuse(RefuseReason::SourceIsInconsistent);
    }
    if target.role == Role::Primary && target.disk >= DiskState::Consistent {
        return Strategy::Refuse(RefuseReason::PrimaryWouldBeTarget);
    }
    strategy
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
