use super::*;

const A: Uuid = Uuid(0xA0);
const B: Uuid = Uuid(0xB0);
const C: Uuid = Uuid(0xC0);
const THIRD: usize = 2;

fn side(current: Uuid) -> Side<'static> {
    Side {
        current,
        bitmap_for_other: Uuid::ZERO,
        bitmap_for: [None; 32],
        history: &[],
        dirty_bits: 0,
        flags: flag::STABLE,
        disk: DiskState::UpToDate,
        role: Role::Secondary,
    }
}

fn slot(mut side: Side<'static>, uuid: Uuid) -> Side<'static> {
    side.bitmap_for_other = uuid;
    side
}
fn third(mut side: Side<'static>, uuid: Uuid) -> Side<'static> {
    side.bitmap_for[THIRD] = Some(uuid);
    side
}
fn history(mut side: Side<'static>, history: &'static [Uuid]) -> Side<'static> {
    side.history = history;
    side
}
fn flags(mut side: Side<'static>, flags: u64) -> Side<'static> {
    side.flags |= flags;
    side
}
fn bits(mut side: Side<'static>, bits: u64) -> Side<'static> {
    side.dirty_bits = bits;
    side
}
fn disk(mut side: Side<'static>, disk: DiskState) -> Side<'static> {
    side.disk = disk;
    side
}
fn primary(mut side: Side<'static>) -> Side<'static> {
    side.role = Role::Primary;
    side
}

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

fn link(protocol: u32, wire_protocol: Protocol, arbiter: bool) -> Link {
    Link {
        protocol,
        wire_protocol,
        arbiter,
        me: node(arbiter as u8),
        peer: node(!arbiter as u8),
        connecting: true,
        changed_since_sent: false,
    }
}
const L: fn() -> Link = || link(122, Protocol::C, false);

fn mirrored(strategy: Strategy, other: Strategy) -> bool {
    match (strategy, other) {
        (Strategy::Source(CopyFrom(_)), Strategy::Target(Clear)) => true,
        (Strategy::Target(Clear), Strategy::Source(CopyFrom(_))) => true,
        (Strategy::Source(a), Strategy::Target(b)) | (Strategy::Target(a), Strategy::Source(b)) => {
            a == b && matches!(a, Own | SetAll)
        }
        (Strategy::Source(_) | Strategy::Target(_), _) => false,
        (a, b) => a == b,
    }
}

fn assert_mirrored(me: &Side<'_>, peer: &Side<'_>, link: Link) -> Decision {
    let here = decide(me, peer, link);
    let there = decide(peer, me, Link { arbiter: !link.arbiter, me: link.peer, peer: link.me, ..link });
    assert!(mirrored(here.strategy, there.strategy), "{here:?} {there:?}\n{me:?}\n{peer:?}\n{link:?}");
    here
}

/// Checks a row and its mirror.
#[track_caller]
fn row(me: Side<'static>, peer: Side<'static>, link: Link, strategy: Strategy, rule: &str) {
    let decision = assert_mirrored(&me, &peer, link);
    assert_eq!((decision.strategy, decision.rule.name()), (strategy, rule));
}

use Strategy::{NoSync, Refuse, Retry, Source, SplitBrain, Target, Unrelated};

#[test]
fn different_generations() {
    let fresh = || side(Uuid::JUST_CREATED);
    let changed = Link { changed_since_sent: true, ..L() };
    assert_eq!(
        decide(&side(A), &side(A), changed),
        Decision { strategy: Retry(RetryReason::Changed), rule: Rule::InitialHandshakeChanged }
    );
    assert_eq!(decide(&side(A), &side(A), Link { connecting: false, ..changed }).rule, Rule::BothOff);
    row(fresh(), side(Uuid::ZERO), L(), NoSync, "just-created-both");
    row(fresh(), side(A), L(), Target(SetAll), "just-created-self");
    row(side(A), side(Uuid(5)), L(), Source(SetAll), "just-created-peer");
    row(side(A), slot(side(B), Uuid(A.0 | 1)), L(), Target(Own), "bitmap-peer");
    row(side(A), third(side(B), A), L(), Target(Clear), "bitmap-peer-other");
    row(slot(side(B), A), side(A), L(), Source(Own), "bitmap-self");
    row(third(side(B), A), side(A), L(), Source(CopyFrom(node(2))), "bitmap-self-other");
    row(side(A), history(side(C), &[B, A]), L(), Target(SetAll), "history-peer");
    row(history(side(C), &[B, A]), side(A), L(), Source(SetAll), "history-self");
    row(slot(side(B), A), slot(side(C), A), L(), SplitBrain { auto: true }, "bitmap-both");
    row(history(side(B), &[A]), history(side(C), &[A]), L(), SplitBrain { auto: false }, "history-both");
    row(slot(side(B), A), history(side(C), &[A]), L(), SplitBrain { auto: false }, "history-both");
    row(side(A), side(B), L(), Unrelated, "unrelated-data");
}

#[test]
fn an_earlier_row_wins() {
    // 5 before 6, 6 before 9, 7 before 8, 8 before 10, 9/10 before 11, 11 before 12.
    row(side(A), third(slot(side(B), A), A), L(), Target(Own), "bitmap-peer");
    row(side(A), history(third(side(B), A), &[A]), L(), Target(Clear), "bitmap-peer-other");
    row(third(slot(side(B), A), A), side(A), L(), Source(Own), "bitmap-self");
    row(history(third(side(B), A), &[A]), side(A), L(), Source(CopyFrom(node(2))), "bitmap-self-other");
    row(slot(side(B), A), history(slot(side(C), A), &[B]), L(), Target(SetAll), "history-peer");
    row(
        history(slot(side(B), A), &[A]),
        history(slot(side(C), A), &[A]),
        L(),
        SplitBrain { auto: true },
        "bitmap-both",
    );
}

#[test]
fn all_ones_and_zero_match_nothing() {
    let unknown = || slot(side(B), Uuid::UNKNOWN);
    row(side(A), unknown(), L(), Unrelated, "unrelated-data");
    row(slot(side(A), Uuid::UNKNOWN), unknown(), L(), Unrelated, "unrelated-data");
    row(history(side(A), &[Uuid::ZERO]), history(side(B), &[Uuid::ZERO]), L(), Unrelated, "unrelated-data");
    row(bits(slot(side(A), Uuid::UNKNOWN), 1), side(A), L(), NoSync, "both-off");
}

#[test]
fn equal_generations() {
    let (crashed, reconnect, lost) = (flag::CRASHED_PRIMARY, flag::RECONNECT, flag::PRIMARY_LOST_QUORUM);
    let broken = |s: Side<'static>| flags(disk(s, DiskState::Inconsistent), flag::CRASHED_PRIMARY);
    row(broken(side(B)), side(B), link(121, Protocol::A, false), Target(Own), "both-off");
    let behind = |s: Side<'static>| flags(disk(s, DiskState::Outdated), flag::CRASHED_PRIMARY);
    row(behind(side(B)), side(B), link(121, Protocol::B, false), Target(Own), "both-off");
    let s = || side(B);
    let arbiter = || link(122, Protocol::C, true);
    let old = || link(119, Protocol::C, false);
    let a = || link(122, Protocol::A, false);
    row(bits(slot(s(), A), 9), s(), L(), Source(Own), "sync-source-missed-finish");
    row(s(), bits(slot(s(), A), 9), L(), Target(Own), "sync-source-peer-missed-finish");
    row(flags(s(), reconnect | lost), flags(s(), reconnect), L(), NoSync, "reconnected");
    row(flags(s(), crashed), s(), a(), Source(Own), "crashed-primary");
    row(flags(s(), crashed), flags(s(), lost), a(), Source(Own), "crashed-primary");
    row(flags(s(), crashed), s(), link(120, Protocol::A, false), Source(Own), "both-off");
    row(flags(s(), lost), s(), L(), Source(Own), "lost-quorum");
    row(s(), flags(s(), lost), L(), Target(Own), "lost-quorum");
    row(flags(s(), lost), flags(s(), lost), arbiter(), Source(Own), "lost-quorum");
    row(flags(s(), reconnect | lost), flags(s(), reconnect), old(), Source(Own), "lost-quorum");
    row(flags(s(), reconnect), flags(s(), reconnect | crashed), old(), NoSync, "reconnected");
    row(flags(s(), reconnect), flags(s(), crashed), L(), Source(Own), "reconnected");
    row(flags(s(), crashed), flags(s(), reconnect), L(), Target(Own), "reconnected");
    row(flags(s(), reconnect), s(), L(), NoSync, "reconnected");
    row(flags(s(), crashed), s(), L(), Source(Own), "both-off");
    row(s(), flags(s(), crashed), L(), Target(Own), "both-off");
    row(flags(s(), crashed), flags(s(), crashed), arbiter(), Target(Own), "both-off");
    row(s(), s(), L(), NoSync, "both-off");
}

#[test]
fn a_missed_end_without_bits_or_without_an_up_to_date_source() {
    let missed = Retry(RetryReason::MissedEndWithoutBits);
    row(slot(side(B), A), side(B), L(), missed, "sync-source-missed-finish");
    row(slot(side(B), A), side(B), link(124, Protocol::C, false), NoSync, "both-off");
    let outdated = disk(bits(slot(side(B), A), 1), DiskState::Outdated);
    row(outdated, side(B), L(), NoSync, "sync-source-missed-finish");
    let broken = || disk(bits(slot(side(B), A), 1), DiskState::Inconsistent);
    row(broken(), side(B), L(), Target(Own), "sync-source-missed-finish");
    row(side(B), broken(), L(), Source(Own), "sync-source-peer-missed-finish");
    row(primary(broken()), side(B), L(), Target(Own), "sync-source-missed-finish");
    let attaching = disk(bits(slot(side(B), A), 1), DiskState::Negotiating);
    row(attaching, side(B), L(), Source(Own), "sync-source-missed-finish");
}

#[test]
fn a_tie_break_depends_on_who_is_primary_now() {
    let crashed = || flags(side(B), flag::CRASHED_PRIMARY);
    row(crashed(), side(B), L(), Source(Own), "both-off");
    row(crashed(), primary(bits(side(B), 3)), L(), Target(Own), "both-off");
    row(primary(crashed()), side(B), L(), Source(Own), "both-off");
    row(primary(crashed()), primary(side(B)), L(), NoSync, "both-off");
    row(crashed(), flags(primary(side(B)), flag::RECONNECT), L(), Target(Own), "reconnected");
}

#[test]
fn the_better_disk_overrides() {
    let s = || side(B);
    row(s(), disk(s(), DiskState::Inconsistent), L(), Source(Own), "both-off");
    row(disk(s(), DiskState::Inconsistent), s(), L(), Target(Own), "both-off");
    row(s(), disk(s(), DiskState::Outdated), L(), NoSync, "both-off");
    let crashed = || flags(disk(s(), DiskState::Outdated), flag::CRASHED_PRIMARY);
    row(crashed(), s(), L(), Target(Own), "both-off");
    row(flags(disk(s(), DiskState::Inconsistent), flag::SYNC_TARGET), s(), L(), Target(SetAll), "both-off");
    let negotiating = || disk(s(), DiskState::Negotiating);
    row(flags(negotiating(), flag::INCONSISTENT), s(), L(), Target(Own), "both-off");
    row(negotiating(), s(), L(), NoSync, "both-off");
    row(disk(s(), DiskState::DUnknown), disk(s(), DiskState::Inconsistent), L(), NoSync, "both-off");
}

#[test]
fn an_inconsistent_source_is_refused() {
    let ahead = disk(slot(side(B), A), DiskState::Inconsistent);
    row(ahead, side(A), L(), Refuse(RefuseReason::SourceIsInconsistent), "bitmap-self");
}

#[test]
fn discard_my_data() {
    let d = flag::DISCARD_MY_DATA;
    let (b, c) = (|| slot(side(B), A), || slot(side(C), A));
    let (hb, hc) = (|| history(side(B), &[A]), || history(side(C), &[A]));
    row(flags(b(), d), c(), L(), Target(Own), "bitmap-both");
    row(b(), flags(c(), d), L(), Source(Own), "bitmap-both");
    row(flags(hb(), d), hc(), L(), Target(SetAll), "history-both");
    row(flags(b(), d), flags(c(), d), L(), SplitBrain { auto: true }, "bitmap-both");
    let mut unstable = b();
    unstable.flags = d;
    row(unstable, c(), L(), NoSync, "bitmap-both");
    // Without split brain it turns a direction that can be turned.
    row(flags(b(), d), side(A), L(), Target(Own), "bitmap-self");
    row(flags(b(), d), side(A), link(120, Protocol::C, false), Source(Own), "bitmap-self");
    row(flags(b(), d), disk(side(A), DiskState::Inconsistent), L(), Source(Own), "bitmap-self");
    row(b(), flags(side(A), d), L(), Source(Own), "bitmap-self");
    row(flags(third(side(B), A), d), side(A), L(), Source(CopyFrom(node(2))), "bitmap-self-other");
    row(flags(side(B), d | flag::CRASHED_PRIMARY), side(B), L(), Target(Own), "both-off");
    row(flags(side(A), d), side(B), L(), Unrelated, "unrelated-data");
}

#[test]
fn a_primary_with_good_data_is_not_overwritten() {
    let refuse = Refuse(RefuseReason::PrimaryWouldBeTarget);
    let ahead = || slot(side(B), A);
    row(primary(bits(side(A), 1)), ahead(), L(), refuse, "bitmap-peer");
    row(primary(side(A)), bits(ahead(), 1), L(), refuse, "bitmap-peer");
    row(primary(side(A)), ahead(), L(), Target(Own), "bitmap-peer");
    row(primary(disk(bits(side(A), 1), DiskState::Inconsistent)), ahead(), L(), Target(Own), "bitmap-peer");
    row(primary(side(A)), history(side(C), &[A]), L(), refuse, "history-peer");
}

#[test]
fn both_ends_agree_for_all_small_identifier_sets() {
    // Restricted to what can exist: a slot or history entry is older than the current UUID (A < B < C). Two nodes
    // that are each in the other's slot are behind each other; DRBD answers "target" on both ends then.
    let mut sides: Vec<Side<'static>> = Vec::new();
    let histories: [&'static [Uuid]; 4] = [&[], &[A], &[Uuid(0xA1)], &[B, A]];
    for current in [Uuid::ZERO, Uuid(1), Uuid(4), Uuid(5), A, Uuid(0xA1), B, C, Uuid(0xC1)] {
        let older = |u: &Uuid| u.is_zero() || u.same(Uuid::UNKNOWN) || u.identity().0 < current.identity().0;
        for own in [Uuid::ZERO, Uuid::UNKNOWN, A, Uuid(0xA1), B].into_iter().filter(older) {
            for other in [Uuid::ZERO, A, B].into_iter().filter(older) {
                for entries in histories.iter().filter(|h| h.iter().all(older)) {
                    sides.push(history(third(slot(side(current), own), other), entries));
                }
            }
        }
    }
    assert!(sides.len() > 100, "{}", sides.len());
    let mut seen: Vec<&str> = Vec::new();
    for me in &sides {
        for peer in &sides {
            for (mine, bits_here) in [(0, 0), (flag::DISCARD_MY_DATA, 1)] {
                let me = bits(flags(me.clone(), mine), bits_here);
                let decision = assert_mirrored(&me, peer, L());
                if !seen.contains(&decision.rule.name()) {
                    seen.push(decision.rule.name());
                }
            }
        }
    }
    for rule in ["just-created-both", "bitmap-peer", "bitmap-self-other", "history-self", "bitmap-both", "history-both"]
    {
        assert!(seen.contains(&rule), "the universe never reaches {rule}");
    }
}

#[test]
fn both_ends_agree_for_all_flags_disks_and_roles() {
    let some_flags =
        [flag::CRASHED_PRIMARY, flag::RECONNECT, flag::PRIMARY_LOST_QUORUM, flag::DISCARD_MY_DATA, flag::SYNC_TARGET];
    let disks = [DiskState::Negotiating, DiskState::Inconsistent, DiskState::Outdated, DiskState::UpToDate];
    let mut sides: Vec<Side<'static>> = Vec::new();
    for mask in 0..1u32 << some_flags.len() {
        let set = (0..some_flags.len()).filter(|i| mask & (1 << i) != 0).fold(0, |all, i| all | some_flags[i]);
        for d in disks {
            for (role, own) in [(Role::Primary, Uuid::ZERO), (Role::Secondary, Uuid::ZERO), (Role::Secondary, A)] {
                let mut s = disk(bits(slot(flags(side(B), set), own), u64::from(mask & 1)), d);
                s.role = role;
                sides.push(s);
            }
        }
    }
    for me in &sides {
        for peer in &sides {
            for link in [link(119, Protocol::C, false), link(122, Protocol::A, true), link(124, Protocol::C, true)] {
                assert_mirrored(me, peer, link);
                let mut ahead = me.clone();
                ahead.current = C;
                ahead.bitmap_for_other = B;
                assert_mirrored(&ahead, peer, link);
            }
        }
    }
}

#[test]
fn every_rule_is_in_the_document() {
    let document = include_str!("../../../docs/states.md");
    for rule in Rule::ALL {
        assert!(document.contains(&format!("| {} |", rule.name())), "docs/states.md has no row for {}", rule.name());
    }
}

#[test]
fn the_description_names_rule_and_generations() {
    let (me, peer) = (side(A), slot(side(B), A));
    let text = decide(&me, &peer, L()).describe(&me, &peer);
    for part in ["target", "bitmap-peer", "00000000000000A0", "00000000000000B0"] {
        assert!(text.contains(part), "{text}");
    }
}

extern crate std;
use std::vec::Vec;
