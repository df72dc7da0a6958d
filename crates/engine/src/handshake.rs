//! Who is source when two nodes meet: both sides' metadata -> (strategy, the rule that chose it). Pure.
//!
//! Both ends run this on the same data and must come to mirror-image answers (invariant S7): every condition is
//! written so that swapping the sides and negating `arbiter` swaps Source and Target and nothing else. Whoever adds a
//! rule adds it for both ends, in the table of docs/states.md "Handshake decision" and in the tests.
//!
//! Not decided here: the automatic after-split-brain policies, the quorum shortcut and the reconciliation of equal
//! generations after a lost Primary; a split brain without `discard-my-data` stays one.

use alloc::format;
use alloc::string::String;

use types::{DiskState, NodeId, Role, Uuid};
use wire::message::uuid_flag as flag;

use crate::api::Protocol;
use crate::planted::{Bug, planted};

/// What one end says of itself. The same struct for "me" and "the peer".
#[derive(Clone, Debug)]
pub struct Side<'a> {
    /// Resolved: a running sync target says its source's, together with the flag SYNC_TARGET.
    pub current: Uuid,
    /// This side's bitmap UUID for the other end. [`Uuid::UNKNOWN`] matches nothing.
    pub bitmap_for_other: Uuid,
    /// All bitmap UUIDs of this side by node id; `None`: nothing known about that node.
    pub bitmap_for: [Option<Uuid>; types::id::NODES_MAX],
    /// Newest first; zeroes are empty entries.
    pub history: &'a [Uuid],
    /// Bits this side has set towards the other end.
    pub dirty_bits: u64,
    /// [`wire::message::uuid_flag`].
    pub flags: u64,
    /// Neither end is below Negotiating: a diskless end compares nothing. Asserted.
    pub disk: DiskState,
    pub role: Role,
}

/// What both ends know of the connection. `me`, `arbiter` and `changed_since_sent` are this end's view.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Agreed version, 118..=124.
    pub protocol: u32,
    /// The larger of the two ends' settings is agreed before.
    pub wire_protocol: Protocol,
    /// This end has RESOLVE_CONFLICTS; the other has not.
    pub arbiter: bool,
    pub me: NodeId,
    pub peer: NodeId,
    /// The connection is being set up; otherwise a later comparison over a standing connection.
    pub connecting: bool,
    /// Since this end announced its UUIDs one of them or a flag other than INCONSISTENT changed.
    pub changed_since_sent: bool,
}

/// Which bits the resync starts from, seen from the end that reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BitmapUse {
    /// The bits of the column for the other end.
    Own,
    /// Source only: copy this node's column into the other end's first; every bit if that node has no column.
    CopyFrom(NodeId),
    /// Target only: drop the column, the source has all that is needed.
    Clear,
    /// Every bit, on both ends: a full resync.
    SetAll,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetryReason {
    /// The announcement no longer holds.
    Changed,
    /// Protocol < 124: the end of a resync was missed and no bits are left. The end with the slot UUID moves it to the
    /// history before it connects again, else this comes back.
    MissedEndWithoutBits,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefuseReason {
    /// A Primary with good data would be overwritten (rr-conflict, policy disconnect).
    PrimaryWouldBeTarget,
    /// The end that would be source has no consistent data to give.
    SourceIsInconsistent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// Established at once. At equal generations the caller drops slot UUID and bits towards the peer.
    NoSync,
    Source(BitmapUse),
    Target(BitmapUse),
    /// Both ends go StandAlone. `auto`: the bitmaps since the common generation exist.
    SplitBrain {
        auto: bool,
    },
    /// No common generation: both ends go StandAlone.
    Unrelated,
    /// Drop the connection and connect again.
    Retry(RetryReason),
    /// Drop the connection.
    Refuse(RefuseReason),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    pub strategy: Strategy,
    pub rule: Rule,
}

macro_rules! rules {
    ($($variant:ident = $name:literal,)*) => {
        /// The rule that decided; names as in DRBD's log.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Rule { $($variant,)* }

        impl Rule {
            pub const ALL: &'static [Rule] = &[$(Rule::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self { $(Rule::$variant => $name,)* }
            }
        }
    };
}

rules! {
    InitialHandshakeChanged = "initial-handshake-changed",
    JustCreatedBoth = "just-created-both",
    JustCreatedSelf = "just-created-self",
    JustCreatedPeer = "just-created-peer",
    SyncSourceMissedFinish = "sync-source-missed-finish",
    SyncSourcePeerMissedFinish = "sync-source-peer-missed-finish",
    Reconnected = "reconnected",
    CrashedPrimary = "crashed-primary",
    LostQuorum = "lost-quorum",
    BothOff = "both-off",
    BitmapPeer = "bitmap-peer",
    BitmapPeerOther = "bitmap-peer-other",
    BitmapSelf = "bitmap-self",
    BitmapSelfOther = "bitmap-self-other",
    HistoryPeer = "history-peer",
    HistorySelf = "history-self",
    BitmapBoth = "bitmap-both",
    HistoryBoth = "history-both",
    NoCommonGeneration = "unrelated-data",
    // Equal, but a side that never stopped has bits. Chosen by the caller of `decide`, not DRBD's.
    BitsAtEqualGenerations = "bits-at-equal-generations",
    // At least one end has no disk: nothing to compare. Chosen by the caller of `decide`.
    NoDisk = "no-disk",
    // Those of `v84::decide`, with 8.4's numbers.
    V84JustCreatedBoth = "8.4-10-just-created-both",
    V84JustCreatedSelf = "8.4-20-just-created-self",
    V84JustCreatedPeer = "8.4-30-just-created-peer",
    V84MissedEndSelf = "8.4-34-missed-end-self",
    V84MissedEndPeer = "8.4-35-missed-end-peer",
    V84EqualSlotSelf = "8.4-36-equal-with-slot-self",
    V84EqualSlotPeer = "8.4-37-equal-with-slot-peer",
    V84Equal = "8.4-40-equal",
    V84CrashedPrimary = "8.4-40-crashed-primary",
    V84PrimarySurvived = "8.4-41-primary-survived",
    V84SlotPeer = "8.4-50-slot-peer",
    V84LostSyncUuidPeer = "8.4-51-lost-sync-uuid-peer",
    V84HistoryPeer = "8.4-60-history-peer",
    V84SlotSelf = "8.4-70-slot-self",
    V84LostSyncUuidSelf = "8.4-71-lost-sync-uuid-self",
    V84HistorySelf = "8.4-80-history-self",
    V84SlotsEqual = "8.4-90-slots-equal",
    V84HistoriesMeet = "8.4-100-histories-meet",
    V84Unrelated = "8.4-unrelated",
}

/// First verdict, before disks, roles and options had their say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    NoSync,
    Source(BitmapUse),
    Target(BitmapUse),
    /// The direction counts only if nobody is Primary now.
    SourceIfBothFailed,
    TargetIfBothFailed,
    SplitBrain {
        auto: bool,
    },
    Unrelated,
    Retry(RetryReason),
}

use BitmapUse::{Clear, CopyFrom, Own, SetAll};

impl Side<'_> {
    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// A disk that waits for this very decision says by a flag what its metadata says.
    pub(crate) fn disk_by_metadata(&self) -> DiskState {
        match (self.disk, self.has(flag::INCONSISTENT)) {
            (DiskState::Negotiating, true) => DiskState::Inconsistent,
            (DiskState::Negotiating, false) => DiskState::Consistent,
            (disk, _) => disk,
        }
    }

    /// The other node whose slot holds `generation`, lowest node id first.
    fn other_slot_with(&self, generation: Uuid, link: Link) -> Option<NodeId> {
        NodeId::all().find(|node| {
            *node != link.me
                && *node != link.peer
                && self.bitmap_for[node.index()].is_some_and(|slot| names(slot, generation))
        })
    }

    /// Generations that this side has left behind, the one that its bits towards the other count from among them.
    fn passed(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.history.iter().copied().chain([self.bitmap_for_other])
    }

    fn remembers(&self, generation: Uuid) -> bool {
        self.history.iter().any(|old| names(*old, generation))
    }
}

/// `slot` is a real generation and this one.
fn names(slot: Uuid, generation: Uuid) -> bool {
    is_set(slot) && slot.same(generation)
}

fn is_set(slot: Uuid) -> bool {
    !slot.is_zero() && !slot.same(Uuid::UNKNOWN)
}

/// Decides. Neither side is diskless (asserted).
pub fn decide(me: &Side<'_>, peer: &Side<'_>, link: Link) -> Decision {
    assert!(
        me.disk >= DiskState::Negotiating && peer.disk >= DiskState::Negotiating,
        "handshake of {} with {}: disks are {} and {}; a diskless end compares no generations",
        link.me,
        link.peer,
        me.disk,
        peer.disk
    );
    let (verdict, rule) = compare(me, peer, link);
    let verdict = override_by_disks(verdict, rule, me, peer);
    let verdict = settle_split_brain(verdict, me, peer);
    let verdict = reverse_by_discard(verdict, me, peer, link);
    Decision { strategy: finish(verdict, rule, me, peer), rule }
}

// ------------------------------------------------------------------------------------------ comparing generations

/// Rows 0..13.
fn compare(me: &Side<'_>, peer: &Side<'_>, link: Link) -> (Verdict, Rule) {
    let (mine, its) = (me.current, peer.current);
    if link.connecting && link.changed_since_sent {
        return (Verdict::Retry(RetryReason::Changed), Rule::InitialHandshakeChanged);
    }
    match (mine.is_just_created(), its.is_just_created()) {
        (true, true) => return (Verdict::NoSync, Rule::JustCreatedBoth),
        (true, false) => return (Verdict::Target(SetAll), Rule::JustCreatedSelf),
        (false, true) => return (Verdict::Source(SetAll), Rule::JustCreatedPeer),
        (false, false) => {}
    }
    if mine.same(its) { compare_equal(me, peer, link) } else { compare_different(me, peer, link) }
}

/// Rows 5..13: "I am behind" is looked for before "I am ahead".
fn compare_different(me: &Side<'_>, peer: &Side<'_>, link: Link) -> (Verdict, Rule) {
    let (mine, its) = (me.current, peer.current);
    if planted(Bug::BitmapRowSaysEqual) && (names(peer.bitmap_for_other, mine) || names(me.bitmap_for_other, its)) {
        return (Verdict::NoSync, Rule::BothOff);
    }
    if names(peer.bitmap_for_other, mine) {
        return (Verdict::Target(Own), Rule::BitmapPeer);
    }
    if peer.other_slot_with(mine, link).is_some() {
        return (Verdict::Target(Clear), Rule::BitmapPeerOther);
    }
    if names(me.bitmap_for_other, its) {
        return (Verdict::Source(Own), Rule::BitmapSelf);
    }
    if let Some(node) = me.other_slot_with(its, link) {
        return (Verdict::Source(CopyFrom(node)), Rule::BitmapSelfOther);
    }
    match (peer.remembers(mine), me.remembers(its)) {
        (true, false) => return (Verdict::Target(SetAll), Rule::HistoryPeer),
        (false, true) => return (Verdict::Source(SetAll), Rule::HistorySelf),
        _ => {}
    }
    if names(me.bitmap_for_other, peer.bitmap_for_other) {
        return (Verdict::SplitBrain { auto: true }, Rule::BitmapBoth);
    }
    // DRBD looks at histories only. One end may still hold in its slot for the other what that one has behind it.
    if me.passed().any(|old| peer.passed().any(|other| names(old, other))) {
        return (Verdict::SplitBrain { auto: false }, Rule::HistoryBoth);
    }
    (Verdict::Unrelated, Rule::NoCommonGeneration)
}

/// Rows a..m.
fn compare_equal(me: &Side<'_>, peer: &Side<'_>, link: Link) -> (Verdict, Rule) {
    let bits_left = me.dirty_bits > 0 || peer.dirty_bits > 0;
    let missed_end = |source: &Side<'_>, target: &Side<'_>| {
        is_set(source.bitmap_for_other)
            && !source.bitmap_for_other.same(source.current)
            && target.bitmap_for_other.is_zero()
    };
    for (missed, verdict, rule) in [
        (missed_end(me, peer), Verdict::Source(Own), Rule::SyncSourceMissedFinish),
        (missed_end(peer, me), Verdict::Target(Own), Rule::SyncSourcePeerMissedFinish),
    ] {
        if missed && bits_left {
            return (verdict, rule);
        }
        if missed && link.protocol < 124 {
            return (Verdict::Retry(RetryReason::MissedEndWithoutBits), rule);
        }
    }

    let both_reconnect = me.has(flag::RECONNECT) && peer.has(flag::RECONNECT);
    let (i_crashed, it_crashed) = (me.has(flag::CRASHED_PRIMARY), peer.has(flag::CRASHED_PRIMARY));
    if link.protocol >= 120 && both_reconnect {
        return (Verdict::NoSync, Rule::Reconnected);
    }
    // Without whole data of its own, or with data that it knows to be old, the crashed one has nothing that the other lacks;
    // DRBD would refuse the two for ever, or make the good disk Outdated as well.
    let crashed = if i_crashed { me } else { peer };
    let whole = crashed.disk_by_metadata() > DiskState::Outdated;
    if link.protocol >= 121 && link.wire_protocol != Protocol::C && i_crashed != it_crashed && whole {
        let verdict = if i_crashed { Verdict::Source(Own) } else { Verdict::Target(Own) };
        return (verdict, Rule::CrashedPrimary);
    }
    match (me.has(flag::PRIMARY_LOST_QUORUM), peer.has(flag::PRIMARY_LOST_QUORUM)) {
        (true, true) => return (if_both_failed(link.arbiter), Rule::LostQuorum),
        (true, false) => return (Verdict::SourceIfBothFailed, Rule::LostQuorum),
        (false, true) => return (Verdict::TargetIfBothFailed, Rule::LostQuorum),
        (false, false) => {}
    }
    if both_reconnect {
        return (Verdict::NoSync, Rule::Reconnected);
    }
    if it_crashed && me.has(flag::RECONNECT) {
        return (Verdict::SourceIfBothFailed, Rule::Reconnected);
    }
    if i_crashed && peer.has(flag::RECONNECT) {
        return (Verdict::TargetIfBothFailed, Rule::Reconnected);
    }
    if me.has(flag::RECONNECT) || peer.has(flag::RECONNECT) {
        return (Verdict::NoSync, Rule::Reconnected);
    }
    match (i_crashed, it_crashed) {
        (true, true) => (if_both_failed(!link.arbiter), Rule::BothOff),
        (true, false) => (Verdict::SourceIfBothFailed, Rule::BothOff),
        (false, true) => (Verdict::TargetIfBothFailed, Rule::BothOff),
        (false, false) => (Verdict::NoSync, Rule::BothOff),
    }
}

fn if_both_failed(source: bool) -> Verdict {
    if source { Verdict::SourceIfBothFailed } else { Verdict::TargetIfBothFailed }
}

// ------------------------------------------------------------------------------ what else has a say, in this order

/// The better disk is source where the generations do not say enough.
fn override_by_disks(verdict: Verdict, rule: Rule, me: &Side<'_>, peer: &Side<'_>) -> Verdict {
    let (mine, its) = (me.disk_by_metadata(), peer.disk_by_metadata());
    if mine == its || mine == DiskState::DUnknown || its == DiskState::DUnknown {
        return verdict;
    }
    let tie_break = matches!(verdict, Verdict::SourceIfBothFailed | Verdict::TargetIfBothFailed);
    let one_inconsistent = mine == DiskState::Inconsistent || its == DiskState::Inconsistent;
    // The source broke after its target had got all of it, and before it heard of that: they change sides.
    let broken_source = match (rule, verdict) {
        (Rule::SyncSourceMissedFinish, Verdict::Source(_)) => mine == DiskState::Inconsistent,
        (Rule::SyncSourcePeerMissedFinish, Verdict::Target(_)) => its == DiskState::Inconsistent,
        _ => false,
    };
    let decides = tie_break || broken_source || (verdict == Verdict::NoSync && one_inconsistent);
    if !decides {
        return verdict;
    }
    let target = if mine > its { peer } else { me };
    // Bits towards a node that changes under another resync, or that never had a generation, do not tell enough.
    // DRBD looks for a third node's slot first; every bit is the superset of what it would find.
    let bits = if target.has(flag::SYNC_TARGET) || rule == Rule::JustCreatedBoth { SetAll } else { Own };
    if mine > its { Verdict::Source(bits) } else { Verdict::Target(bits) }
}

fn settle_split_brain(verdict: Verdict, me: &Side<'_>, peer: &Side<'_>) -> Verdict {
    let Verdict::SplitBrain { auto } = verdict else { return verdict };
    if auto && !(me.has(flag::STABLE) && peer.has(flag::STABLE)) {
        return Verdict::NoSync;
    }
    let bits = if auto { Own } else { SetAll };
    match (me.has(flag::DISCARD_MY_DATA), peer.has(flag::DISCARD_MY_DATA)) {
        (true, false) => Verdict::Target(bits),
        (false, true) => Verdict::Source(bits),
        _ => verdict,
    }
}

/// `discard-my-data` at the end that would be source turns the direction, if the other end has data to give.
fn reverse_by_discard(verdict: Verdict, me: &Side<'_>, peer: &Side<'_>, link: Link) -> Verdict {
    let (mine, its) = (me.has(flag::DISCARD_MY_DATA), peer.has(flag::DISCARD_MY_DATA));
    if link.protocol < 121 || mine == its {
        return verdict;
    }
    let new_source = if mine { peer } else { me };
    if new_source.disk_by_metadata() <= DiskState::Inconsistent {
        return verdict;
    }
    match (verdict, mine) {
        (Verdict::Source(bits @ (Own | SetAll)), true) => Verdict::Target(bits),
        (Verdict::Target(bits @ (Own | SetAll)), false) => Verdict::Source(bits),
        (Verdict::SourceIfBothFailed, true) => Verdict::TargetIfBothFailed,
        (Verdict::TargetIfBothFailed, false) => Verdict::SourceIfBothFailed,
        _ => verdict,
    }
}

fn finish(verdict: Verdict, rule: Rule, me: &Side<'_>, peer: &Side<'_>) -> Strategy {
    let strategy = match verdict {
        Verdict::NoSync => return Strategy::NoSync,
        Verdict::SplitBrain { auto } => return Strategy::SplitBrain { auto },
        Verdict::Unrelated => return Strategy::Unrelated,
        Verdict::Retry(reason) => return Strategy::Retry(reason),
        Verdict::Source(bits) => Strategy::Source(bits),
        Verdict::Target(bits) => Strategy::Target(bits),
        Verdict::SourceIfBothFailed => break_tie(true, me.role, peer.role),
        Verdict::TargetIfBothFailed => break_tie(false, me.role, peer.role),
    };
    let tie_break = matches!(verdict, Verdict::SourceIfBothFailed | Verdict::TargetIfBothFailed);
    let (source, target, bits) = match strategy {
        Strategy::Source(bits) => (me, peer, bits),
        Strategy::Target(bits) => (peer, me, bits),
        other => return other,
    };
    // How many bits a copied column has is only known at its owner: counted as some.
    let some_bits = bits != Own || me.dirty_bits > 0 || peer.dirty_bits > 0;
    let target_is_good = target.disk_by_metadata() >= DiskState::Consistent;
    if target.role == Role::Primary && target_is_good && !tie_break && some_bits {
        return Strategy::Refuse(RefuseReason::PrimaryWouldBeTarget);
    }
    let missed_finish = matches!(rule, Rule::SyncSourceMissedFinish | Rule::SyncSourcePeerMissedFinish);
    // One that is being attached says UpToDate only after this very decision.
    let good = match source.disk {
        DiskState::Negotiating => source.disk_by_metadata() == DiskState::Consistent,
        disk => disk == DiskState::UpToDate,
    };
    if missed_finish && !good {
        return Strategy::NoSync;
    }
    if source.disk_by_metadata() <= DiskState::Inconsistent {
        return Strategy::Refuse(RefuseReason::SourceIsInconsistent);
    }
    strategy
}

/// A node that is Primary now is source whatever the tie-break said; two Primaries replicate as they are.
fn break_tie(source: bool, mine: Role, its: Role) -> Strategy {
    let source = match (mine == Role::Primary, its == Role::Primary) {
        (true, true) => return Strategy::NoSync,
        (true, false) => true,
        (false, true) => false,
        (false, false) => source,
    };
    if source { Strategy::Source(Own) } else { Strategy::Target(Own) }
}

impl Decision {
    /// One sentence for the log and for `status`: outcome, rule, both current UUIDs, both bit counts.
    pub fn describe(&self, me: &Side<'_>, peer: &Side<'_>) -> String {
        let outcome = match self.strategy {
            Strategy::NoSync => String::from("no resync"),
            Strategy::Source(bits) => format!("this node is source, {}", bits.describe()),
            Strategy::Target(bits) => format!("this node is target, {}", bits.describe()),
            Strategy::SplitBrain { auto: true } => {
                String::from("split brain with bitmaps; connect one end with --discard-my-data")
            }
            Strategy::SplitBrain { auto: false } => {
                String::from("split brain without bitmaps; connect one end with --discard-my-data for a full resync")
            }
            Strategy::Unrelated => String::from("unrelated data; invalidate or re-create the metadata of one end"),
            Strategy::Retry(RetryReason::Changed) => {
                String::from("own generation changed since it was announced; connecting again")
            }
            Strategy::Retry(RetryReason::MissedEndWithoutBits) => {
                String::from("the end of a resync was missed and no bits are left; connecting again")
            }
            Strategy::Refuse(RefuseReason::PrimaryWouldBeTarget) => String::from(
                "refused: a Primary with good data would be overwritten; demote it or discard the other end",
            ),
            Strategy::Refuse(RefuseReason::SourceIsInconsistent) => {
                String::from("refused: the end that would be source is Inconsistent; force one end to Primary")
            }
        };
        format!(
            "{outcome} (rule {}; current UUID here {}, there {}; bits here {}, there {})",
            self.rule.name(),
            me.current,
            peer.current,
            me.dirty_bits,
            peer.dirty_bits
        )
    }
}

impl BitmapUse {
    fn describe(self) -> String {
        match self {
            Own => String::from("by bitmap"),
            CopyFrom(node) => format!("by a copy of the bitmap for node {node}"),
            Clear => String::from("by a bitmap that the source copies"),
            SetAll => String::from("full"),
        }
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
