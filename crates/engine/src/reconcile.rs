//! What bits say where the generations say nothing: two disks of one generation, of which one or both have bits. Pure, like
//! the handshake table whose last row it is (docs/states.md); both ends come to mirrored answers.

use types::{DiskState, Role};
use wire::message::uuid_flag;

use crate::handshake::{BitmapUse, Decision, Link, Rule, Side, Strategy};
use crate::planted::{Bug, planted};

/// Equal generations, no reason to sync, but a side that never stopped has bits: it knows of blocks that the other
/// lacks, whatever the generations say (rule BM-3). Bits that a side has from before it stopped tell less, and count where
/// nobody knows more. A Primary whose disk is in use is the source in every case; without one it is the side that alone has
/// such bits, then the lower id.
/// Both sides see both counts, so they agree. A kernel peer would not follow: there the bits just stay.
pub(crate) fn reconcile_bits(
    decision: Decision,
    me: &Side<'_>,
    peer: &Side<'_>,
    link: &Link,
    peer_follows: bool,
) -> Decision {
    let comparable = me.current.same(peer.current) && !me.current.is_just_created();
    let is_good = |side: &Side<'_>| matches!(side.disk_by_metadata(), DiskState::UpToDate | DiskState::Consistent);
    let is_whole = |side: &Side<'_>| is_good(side) || side.disk_by_metadata() == DiskState::Outdated;
    if decision.strategy != Strategy::NoSync || !comparable || !is_whole(me) || !is_whole(peer) || !peer_follows {
        return decision;
    }
    let by_bitmap = |source: bool| Decision {
        strategy: if source { Strategy::Source(BitmapUse::Own) } else { Strategy::Target(BitmapUse::Own) },
        rule: Rule::BitsAtEqualGenerations,
    };
    let bits = me.dirty_bits > 0 || peer.dirty_bits > 0;
    if bits && planted(Bug::BitsOfCrashDropped) {
        return decision;
    }
    // Over a standing connection a Primary writes on without a node that it knows as Outdated, in a generation that this
    // one has not heard of yet. A connection that is being made is agreed on by both.
    let used = !link.connecting && (me.role == Role::Primary || peer.role == Role::Primary);
    if (bits || used) && is_good(me) != is_good(peer) {
        // One is Outdated, by a resync that never began or by an operator: it is made equal, not declared so.
        return by_bitmap(is_good(me));
    }
    if !is_good(me) || !is_good(peer) {
        return decision;
    }
    let knows = |side: &Side<'_>| side.dirty_bits > 0 && side.flags & uuid_flag::RECONNECT != 0;
    let tracked = |side: &Side<'_>| side.dirty_bits > 0 && side.flags & uuid_flag::TRACKED_BITS != 0;
    // A Secondary that a third node feeds, the Primary, has what the other one may have missed; two such learn it from
    // the Primary. One that is fed by the other side knows nothing better than that.
    let without_primary = me.role != Role::Primary && peer.role != Role::Primary;
    let fed = |side: &Side<'_>| without_primary && side.flags & uuid_flag::STABLE == 0;
    if fed(me) || fed(peer) {
        let told = (knows(me) || knows(peer)) && fed(me) != fed(peer);
        return if told { by_bitmap(fed(me)) } else { decision };
    }
    let primary = match (me.role, peer.role) {
        (Role::Primary, Role::Secondary) => Some(true),
        (Role::Secondary, Role::Primary) => Some(false),
        _ => None,
    };
    let lower = link.me < link.peer;
    // Who set older bits set them for what the other had not confirmed: that may be lost there.
    let (mine, its) = match (knows(me), knows(peer)) {
        (false, false) => (tracked(me), tracked(peer)),
        known => known,
    };
    match (mine, its) {
        (false, false) => decision,
        // What an application works on does not change under it, whoever knows more.
        _ => by_bitmap(primary.unwrap_or(if mine == its { lower } else { mine })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Protocol;
    use types::{NodeId, Uuid};

    fn side(bits: u64, flags: u64) -> Side<'static> {
        Side {
            current: Uuid(0xA0),
            bitmap_for_other: Uuid::ZERO,
            bitmap_for: [None; types::id::NODES_MAX],
            history: &[],
            dirty_bits: bits,
            flags: flags | uuid_flag::STABLE,
            disk: DiskState::UpToDate,
            role: Role::Secondary,
        }
    }

    /// Decides on both ends, node 0 first; they must mirror each other. `None`: no sync.
    fn source(sides: [&Side<'_>; 2]) -> Option<u8> {
        let decide = |me: u8| {
            let link = Link {
                protocol: 124,
                wire_protocol: Protocol::C,
                arbiter: me == 0,
                me: NodeId::new(me).unwrap(),
                peer: NodeId::new(1 - me).unwrap(),
                connecting: true,
                changed_since_sent: false,
            };
            let no_sync = Decision { strategy: Strategy::NoSync, rule: Rule::BothOff };
            let index = usize::from(me);
            match reconcile_bits(no_sync, sides[index], sides[1 - index], &link, true).strategy {
                Strategy::NoSync => None,
                Strategy::Source(BitmapUse::Own) => Some(me),
                Strategy::Target(BitmapUse::Own) => Some(1 - me),
                other => panic!("{other:?}"),
            }
        };
        let here = decide(0);
        assert_eq!(decide(1), here, "the two ends differ: {sides:?}");
        here
    }

    #[test]
    fn bits_that_only_the_log_brought_say_nothing() {
        assert_eq!(source([&side(9, 0), &side(0, 0)]), None);
        assert_eq!(source([&side(0, 0), &side(9, 0)]), None);
    }

    #[test]
    fn who_never_stopped_knows() {
        let knows = side(9, uuid_flag::RECONNECT);
        assert_eq!(source([&knows, &side(0, 0)]), Some(0));
        assert_eq!(source([&side(0, 0), &knows]), Some(1));
        assert_eq!(source([&side(9, uuid_flag::TRACKED_BITS), &knows]), Some(1));
        assert_eq!(source([&knows, &knows]), Some(0));
    }

    /// It set them for what the other had not confirmed; the other may have lost that with its cache.
    #[test]
    fn who_has_older_bits_is_source_if_the_other_has_none() {
        let tracked = side(9, uuid_flag::TRACKED_BITS);
        assert_eq!(source([&tracked, &side(0, 0)]), Some(0));
        assert_eq!(source([&side(0, 0), &tracked]), Some(1));
        assert_eq!(source([&tracked, &tracked]), Some(0));
    }

    #[test]
    fn a_primary_is_source_wherever_the_bits_are() {
        let primary = Side { role: Role::Primary, ..side(0, 0) };
        for bits in [uuid_flag::TRACKED_BITS, uuid_flag::RECONNECT] {
            assert_eq!(source([&side(9, bits), &primary]), Some(1));
            assert_eq!(source([&primary, &side(9, bits)]), Some(0));
        }
    }

    /// It came back to its Primary, whose own bits tell what it lacks.
    #[test]
    fn who_is_fed_by_the_other_side_is_not_its_source() {
        let primary = Side { role: Role::Primary, ..side(9, uuid_flag::RECONNECT) };
        let fed = Side { flags: 0, ..side(0, 0) };
        assert_eq!(source([&primary, &fed]), Some(0));
        assert_eq!(source([&fed, &primary]), Some(1));
        let knows = side(9, uuid_flag::RECONNECT);
        assert_eq!(source([&knows, &fed]), Some(1), "a third node feeds it");
    }

    #[test]
    fn an_outdated_end_is_target_while_anybody_has_bits() {
        let outdated = |bits| Side { disk: DiskState::Outdated, ..side(bits, 0) };
        assert_eq!(source([&outdated(0), &side(9, 0)]), Some(1));
        assert_eq!(source([&side(0, 0), &outdated(9)]), Some(0));
        assert_eq!(source([&outdated(0), &side(0, 0)]), None);
        assert_eq!(source([&outdated(9), &outdated(9)]), None);
        let primary = Side { role: Role::Primary, ..side(0, 0) };
        let decide = |connecting: bool| {
            let [me, peer] = [NodeId::new(0).unwrap(), NodeId::new(1).unwrap()];
            let (protocol, wire_protocol) = (124, Protocol::C);
            let link = Link { protocol, wire_protocol, arbiter: true, me, peer, connecting, changed_since_sent: false };
            let no_sync = Decision { strategy: Strategy::NoSync, rule: Rule::BothOff };
            reconcile_bits(no_sync, &outdated(0), &primary, &link, true).strategy
        };
        assert_eq!(decide(false), Strategy::Target(BitmapUse::Own), "the Primary may be writing without it");
        assert_eq!(decide(true), Strategy::NoSync);
    }
}
