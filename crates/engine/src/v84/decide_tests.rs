use super::*;
use crate::handshake::BitmapUse::{Own, SetAll};
use crate::handshake::Strategy::{NoSync, Refuse, Source, SplitBrain, Target, Unrelated};

const A: Uuid = Uuid(0xa0);
const B: Uuid = Uuid(0xb0);
const C: Uuid = Uuid(0xc0);
const D: Uuid = Uuid(0xd0);
const NAMED: Uuid = Uuid(B.0 + SYNC_UUID_OFFSET);

fn side(current: Uuid, bitmap: Uuid, history: [Uuid; 2]) -> Side {
    let claims = Uuids84 { current, bitmap, history, dirty_bits: 0, flags: 0 };
    Side { claims, disk: DiskState::UpToDate, role: Role::Secondary }
}

fn plain(current: Uuid) -> Side {
    side(current, Uuid::ZERO, [Uuid::ZERO; 2])
}

impl Side {
    fn flags(mut self, flags: u64) -> Side {
        self.claims.flags = flags;
        self
    }
    fn disk(mut self, disk: DiskState) -> Side {
        self.disk = disk;
        self
    }
    fn primary(mut self) -> Side {
        self.role = Role::Primary;
        self
    }
}

fn mirrored(strategy: Strategy) -> Strategy {
    match strategy {
        Source(bits) => Target(bits),
        Target(bits) => Source(bits),
        other => other,
    }
}

#[track_caller]
fn decided(me: Side, peer: Side, strategy: Strategy, rule: &str) {
    for arbiter in [false, true] {
        let ours = decide(&me, &peer, arbiter);
        assert_eq!(decide(&peer, &me, !arbiter).strategy, mirrored(ours.strategy), "not mirrored");
    }
    let ours = decide(&me, &peer, false);
    assert_eq!((ours.strategy, ours.rule.name()), (strategy, rule));
}

#[test]
fn the_table() {
    let fresh = || plain(Uuid::JUST_CREATED);
    let inconsistent = DiskState::Inconsistent;
    decided(fresh().disk(inconsistent), fresh().disk(inconsistent), NoSync, "8.4-10-just-created-both");
    decided(fresh().disk(inconsistent), plain(A), Target(SetAll), "8.4-20-just-created-self");
    decided(plain(A), fresh().disk(inconsistent), Source(SetAll), "8.4-30-just-created-peer");
    decided(side(A, NAMED, [B, C]), side(A, Uuid::ZERO, [NAMED, B]), Source(Own), "8.4-34-missed-end-self");
    decided(side(A, Uuid::ZERO, [NAMED, B]), side(A, NAMED, [B, C]), Target(Own), "8.4-35-missed-end-peer");
    decided(side(A, B, [C, D]), plain(A), Source(Own), "8.4-36-equal-with-slot-self");
    decided(plain(A), side(A, B, [C, D]), Target(Own), "8.4-37-equal-with-slot-peer");
    decided(plain(A), plain(Uuid(A.0 | 1)), NoSync, "8.4-40-equal");
    decided(side(A, B, [C, D]), side(A, D, [C, B]), NoSync, "8.4-40-equal");
    decided(plain(A), side(C, A, [D; 2]), Target(Own), "8.4-50-slot-peer");
    decided(plain(B), side(C, NAMED, [B, D]), Target(Own), "8.4-51-lost-sync-uuid-peer");
    decided(plain(A), side(C, B, [D, A]), Target(SetAll), "8.4-60-history-peer");
    decided(side(C, A, [D; 2]), plain(A), Source(Own), "8.4-70-slot-self");
    decided(side(C, NAMED, [B, D]), plain(B), Source(Own), "8.4-71-lost-sync-uuid-self");
    decided(side(C, B, [D, A]), plain(A), Source(SetAll), "8.4-80-history-self");
    decided(side(A, B, [D, D]), side(C, B, [D, D]), SplitBrain { auto: true }, "8.4-90-slots-equal");
    decided(side(A, B, [D, D]), side(C, D, [D, D]), SplitBrain { auto: false }, "8.4-100-histories-meet");
    decided(plain(A), plain(C), SplitBrain { auto: false }, "8.4-100-histories-meet");
    decided(side(A, B, [B, B]), side(C, D, [D, D]), Unrelated, "8.4-unrelated");
}

#[test]
fn who_crashed_as_primary() {
    let crashed = plain(A).flags(flag::CRASHED_PRIMARY);
    decided(crashed, plain(A), Source(Own), "8.4-40-crashed-primary");
    decided(plain(A), crashed, Target(Own), "8.4-40-crashed-primary");
    decided(crashed, plain(A).primary(), Target(Own), "8.4-41-primary-survived");
    decided(crashed.primary(), plain(A), Source(Own), "8.4-41-primary-survived");
    decided(crashed.primary(), crashed.primary(), SplitBrain { auto: false }, "8.4-41-primary-survived");
    // Both crashed: who accepted the control socket is target.
    decided(crashed, crashed, Source(Own), "8.4-40-crashed-primary");
    assert_eq!(decide(&crashed, &crashed, true).strategy, Target(Own));
}

#[test]
fn the_better_disk_is_source() {
    let broken = |side: Side| side.disk(DiskState::Inconsistent);
    decided(broken(plain(A)), plain(A), Target(Own), "8.4-40-equal");
    decided(broken(side(A, B, [D, D])), side(C, D, [D, D]), Target(SetAll), "8.4-100-histories-meet");
    decided(broken(side(A, B, [D, D])), side(C, B, [D, D]), Target(Own), "8.4-90-slots-equal");
    let attaching = plain(A).disk(DiskState::Negotiating).flags(flag::INCONSISTENT);
    decided(attaching, plain(A), Target(Own), "8.4-40-equal");
    // The generations say that the broken one is ahead: 8.4 would go back to the older data.
    let reason = Refuse(RefuseReason::SourceIsInconsistent);
    decided(broken(side(C, A, [D; 2])), plain(A), reason, "8.4-70-slot-self");
}

#[test]
fn what_is_refused() {
    let reason = Refuse(RefuseReason::PrimaryWouldBeTarget);
    decided(plain(A).primary(), side(C, A, [D; 2]), reason, "8.4-50-slot-peer");
    decided(side(C, A, [D; 2]), plain(A).primary(), reason, "8.4-70-slot-self");
    let inconsistent = DiskState::Inconsistent;
    let both = (plain(A).disk(inconsistent), side(C, A, [D; 2]).disk(inconsistent));
    decided(both.0, both.1, Refuse(RefuseReason::SourceIsInconsistent), "8.4-50-slot-peer");
    // A Primary may be target of what it has no whole copy of.
    decided(plain(A).primary().disk(inconsistent), side(C, A, [D; 2]), Target(Own), "8.4-50-slot-peer");
}

#[test]
fn discard_my_data_solves_a_split_brain() {
    let (me, peer) = (side(A, B, [D, D]), side(C, B, [D, D]));
    decided(me.flags(flag::DISCARD_MY_DATA), peer, Target(Own), "8.4-90-slots-equal");
    decided(me, peer.flags(flag::DISCARD_MY_DATA), Source(Own), "8.4-90-slots-equal");
    let (me, peer) = (side(A, B, [D, D]), side(C, D, [D, D]));
    decided(me.flags(flag::DISCARD_MY_DATA), peer, Target(SetAll), "8.4-100-histories-meet");
}
