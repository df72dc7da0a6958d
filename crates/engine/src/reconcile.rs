//! What bits say where the generations say nothing: two disks of one generation, of which one or both have bits. Pure, like
//! the handshake table whose last row it is (docs/states.md); both ends come to mirrored answers.

use types::{DiskState, Role};
use wire::message::uuid_flag;

use crate::handshake::{BitmapUse, Decision, Link, Rule, Side, Strategy};

/// Equal generations, no reason to sync, but a side that never stopped has bits: it knows of blocks that the other
/// lacks, whatever the generations say (rule BM-3). It is the source; of two such sides the Primary, then the lower id.
/// Bits that a side has from before it stopped only say that the two differ: the same order decides.
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
    let bits = me.dirty_bits > 0 || peer.dirty_bits > 0;
    if bits && is_good(me) != is_good(peer) {
        // One is Outdated, by a resync that never began: it is made equal, not declared so.
        let own = BitmapUse::Own;
        let strategy = if is_good(me) { Strategy::Source(own) } else { Strategy::Target(own) };
        return Decision { strategy, rule: Rule::BitsAtEqualGenerations };
    }
    if !is_good(me) || !is_good(peer) {
        return decision;
    }
    let knows = |side: &Side<'_>| side.dirty_bits > 0 && side.flags & uuid_flag::RECONNECT != 0;
    let tracked = |side: &Side<'_>| side.dirty_bits > 0 && side.flags & uuid_flag::TRACKED_BITS != 0;
    // A Secondary that a Primary feeds has what the other one may have missed; two such learn it from the Primary.
    let fed = |side: &Side<'_>| side.flags & uuid_flag::STABLE == 0;
    if fed(me) || fed(peer) {
        if !(knows(me) || knows(peer)) || fed(me) == fed(peer) {
            return decision;
        }
        let strategy = if fed(me) { Strategy::Source(BitmapUse::Own) } else { Strategy::Target(BitmapUse::Own) };
        return Decision { strategy, rule: Rule::BitsAtEqualGenerations };
    }
    let first = match (me.role, peer.role) {
        (Role::Primary, Role::Secondary) => true,
        (Role::Secondary, Role::Primary) => false,
        _ => link.me < link.peer,
    };
    let source = match (knows(me), knows(peer)) {
        (false, false) if tracked(me) || tracked(peer) => first,
        (false, false) => return decision,
        (true, false) => true,
        (false, true) => false,
        (true, true) => first,
    };
    let strategy = if source { Strategy::Source(BitmapUse::Own) } else { Strategy::Target(BitmapUse::Own) };
    Decision { strategy, rule: Rule::BitsAtEqualGenerations }
}
