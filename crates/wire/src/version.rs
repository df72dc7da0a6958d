//! What we offer in CONNECTION_FEATURES and what comes out of two offers.

use crate::message::ConnectionFeatures;
use core::fmt;
use types::NodeId;

/// Lowest protocol version of the DRBD 9 dialect that we speak: the first that the released kernels 9.1 to 9.3 share beyond the 8.4 dialect.
/// Lower needs another order of the handshake (110..=117) or the 8.4 dialect.
pub const PROTOCOL_MIN: u32 = 118;

/// Highest protocol version we speak: that of DRBD 9.2 and 9.3. Higher is unknown.
pub const PROTOCOL_MAX: u32 = 124;

/// Lowest and highest version of the 8.4 dialect that we speak (`v84`). Below 100 frames have other headers and a
/// connection has one volume; every release of 8.4 has at least 100.
pub const V84_MIN: u32 = 100;
pub const V84_MAX: u32 = 101;

/// Maxima in this gap were never released or lie between the dialects; 9.1 and newer refuse them too.
const GAP: core::ops::RangeInclusive<u32> = 102..=117;

/// 9.2.0 to 9.2.2 agreed on this version with RESYNC_DAGTAG and acknowledged merged discards wrongly.
const PROTOCOL_WITHOUT_RESYNC_DAGTAG: u32 = 121;

/// Feature bits. Meaning of each: docs/wire.md "Features and our offer".
pub mod feature {
    pub const TRIM: u32 = 0x001;
    pub const THIN_RESYNC: u32 = 0x002;
    pub const WSAME: u32 = 0x004;
    pub const WZEROES: u32 = 0x008;
    pub const RESYNC_DAGTAG: u32 = 0x010;
    pub const TWOPC_V2: u32 = 0x020;
    pub const RS_SKIP_UUID: u32 = 0x040;
    pub const RESYNC_WITHOUT_REPLICATION: u32 = 0x080;
    pub const BM_BLOCK_SHIFT: u32 = 0x100;
    pub const RECONCILE_RECONNECT: u32 = 0x200;

    /// Every bit with DRBD's name for it, ascending.
    pub const NAMES: [(u32, &str); 10] = [
        (TRIM, "TRIM"),
        (THIN_RESYNC, "THIN_RESYNC"),
        (WSAME, "WSAME"),
        (WZEROES, "WZEROES"),
        (RESYNC_DAGTAG, "RESYNC_DAGTAG"),
        (TWOPC_V2, "2PC_V2"),
        (RS_SKIP_UUID, "RS_SKIP_UUID"),
        (RESYNC_WITHOUT_REPLICATION, "RESYNC_WITHOUT_REPLICATION"),
        (BM_BLOCK_SHIFT, "BM_BLOCK_SHIFT"),
        (RECONCILE_RECONNECT, "RECONCILE_RECONNECT"),
    ];
}

/// The features we offer. Each one more is behaviour that we would have to show; reasons: docs/wire.md
/// "Features and our offer".
pub const FEATURES_OFFERED: u32 =
    feature::TRIM | feature::WSAME | feature::WZEROES | feature::RESYNC_DAGTAG | feature::TWOPC_V2;

/// A connection of the DRBD 9 dialect without these is refused: we have no other layout for the two-phase packets.
pub const FEATURES_REQUIRED: u32 = feature::TWOPC_V2;

/// The same in the 8.4 dialect: what our device promises to an application, a peer must be able to take. The last
/// releases of 8.4 have them.
pub const FEATURES_REQUIRED_V84: u32 = feature::TRIM | feature::WSAME | feature::WZEROES;

const _: () = assert!(FEATURES_OFFERED == 0x3d);
const _: () = assert!(FEATURES_OFFERED & FEATURES_REQUIRED == FEATURES_REQUIRED);
const _: () = assert!(PROTOCOL_MIN > *GAP.end() && V84_MAX < *GAP.start());

/// Which dialects a node offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialects {
    /// DRBD 9 only: a resource of more than two nodes, which 8.4 does not know.
    Nine,
    Both,
    /// 8.4 only.
    V84,
}

/// Features that the 8.4 dialect has; the others belong to DRBD 9, whatever was offered.
const FEATURES_V84: u32 = feature::TRIM | feature::THIN_RESYNC | feature::WSAME | feature::WZEROES;

/// Our CONNECTION_FEATURES from `own` to `peer`.
pub fn offer(own: NodeId, peer: NodeId, dialects: Dialects) -> ConnectionFeatures {
    ConnectionFeatures {
        protocol_min: if dialects == Dialects::Nine { PROTOCOL_MIN } else { V84_MIN },
        protocol_max: if dialects == Dialects::V84 { V84_MAX } else { PROTOCOL_MAX },
        features: if dialects == Dialects::V84 { FEATURES_OFFERED & FEATURES_V84 } else { FEATURES_OFFERED },
        sender_node_id: own.get().into(),
        receiver_node_id: peer.get().into(),
    }
}

/// What both sides speak from here on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    pub protocol: u32,
    pub features: u32,
}

impl Agreed {
    pub const fn is_v84(&self) -> bool {
        is_v84(self.protocol)
    }
}

/// An agreed version of the 8.4 dialect. 0: nothing is agreed yet.
pub const fn is_v84(protocol: u32) -> bool {
    0 < protocol && protocol <= V84_MAX
}

/// Why two offers do not go together. All of them last until one side's software or configuration changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The ranges have no version in common.
    NoCommonProtocol { mine: (u32, u32), theirs: (u32, u32) },
    /// The peer's maximum lies between the dialects.
    Gap { their_max: u32 },
    /// Version 121 with RESYNC_DAGTAG.
    FaultyResyncDagtag,
    /// Features we cannot do without.
    FeaturesMissing { missing: u32 },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoCommonProtocol { mine, theirs } => write!(
                f,
                "no protocol version in common: we speak {}..={}, the peer {}..={}; DRBD 9.1 or newer is needed, or 8.4 \
                 in a resource of two nodes",
                mine.0, mine.1, theirs.0, theirs.1
            ),
            Refusal::Gap { their_max } => {
                write!(f, "the peer's highest protocol version {their_max} lies between the dialects (102..=117)")
            }
            Refusal::FaultyResyncDagtag => f.write_str(
                "protocol version 121 with RESYNC_DAGTAG (DRBD 9.2.0 to 9.2.2) acknowledges discards wrongly; upgrade the peer",
            ),
            Refusal::FeaturesMissing { missing } => {
                write!(f, "the peer lacks features {missing:#x} that we need; DRBD 9.1 or newer or the last 8.4 is needed")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// Both sides compute the same. Node ids are checked by the caller, who knows the configuration.
pub fn negotiate(mine: &ConnectionFeatures, theirs: &ConnectionFeatures) -> Result<Agreed, Refusal> {
    let my_range = (mine.protocol_min, effective_max(mine));
    let their_range = (theirs.protocol_min, effective_max(theirs));
    if my_range.1 < their_range.0 || my_range.0 > their_range.1 {
        return Err(Refusal::NoCommonProtocol { mine: my_range, theirs: their_range });
    }
    if GAP.contains(&their_range.1) {
        return Err(Refusal::Gap { their_max: their_range.1 });
    }
    let mut agreed = Agreed { protocol: my_range.1.min(their_range.1), features: mine.features & theirs.features };
    if agreed.is_v84() {
        agreed.features &= FEATURES_V84;
    }
    if agreed.protocol == PROTOCOL_WITHOUT_RESYNC_DAGTAG && agreed.features & feature::RESYNC_DAGTAG != 0 {
        return Err(Refusal::FaultyResyncDagtag);
    }
    let required = if agreed.is_v84() { FEATURES_REQUIRED_V84 } else { FEATURES_REQUIRED };
    let missing = required & !agreed.features;
    if missing != 0 {
        return Err(Refusal::FeaturesMissing { missing });
    }
    Ok(agreed)
}

/// A maximum of 0 means: the same as the minimum.
fn effective_max(offer: &ConnectionFeatures) -> u32 {
    if offer.protocol_max == 0 { offer.protocol_min } else { offer.protocol_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> ConnectionFeatures {
        offer(NodeId::new(0).unwrap(), NodeId::new(1).unwrap(), Dialects::Both)
    }

    fn theirs(protocol_min: u32, protocol_max: u32, features: u32) -> ConnectionFeatures {
        ConnectionFeatures { protocol_min, protocol_max, features, sender_node_id: 1, receiver_node_id: 0 }
    }

    #[test]
    fn the_released_kernels() {
        let cases = [
            ("9.3.3", theirs(86, 124, 0x3ff), Ok(Agreed { protocol: 124, features: 0x3d })),
            ("9.2.19", theirs(86, 124, 0x27f), Ok(Agreed { protocol: 124, features: 0x3d })),
            ("9.1.23", theirs(86, 121, 0x06f), Ok(Agreed { protocol: 121, features: 0x2d })),
            ("9.2.2", theirs(86, 121, 0x07f), Err(Refusal::FaultyResyncDagtag)),
            ("9.0.32", theirs(86, 121, 0x00f), Err(Refusal::FeaturesMissing { missing: 0x20 })),
            ("8.4.11", theirs(86, 101, 0x00f), Ok(Agreed { protocol: 101, features: 0x0d })),
            ("8.4.0", theirs(86, 100, 0x000), Err(Refusal::FeaturesMissing { missing: 0x0d })),
            ("8.3", theirs(86, 97, 0x000), Err(Refusal::NoCommonProtocol { mine: (100, 124), theirs: (86, 97) })),
        ];
        for (release, their_offer, expected) in cases {
            assert_eq!(negotiate(&ours(), &their_offer), expected, "{release}");
        }
    }

    #[test]
    fn a_resource_of_more_nodes_does_not_offer_the_8_4_dialect() {
        let more = offer(NodeId::new(0).unwrap(), NodeId::new(1).unwrap(), Dialects::Nine);
        let refusal = negotiate(&more, &theirs(86, 101, 0x00f)).unwrap_err();
        assert_eq!(refusal, Refusal::NoCommonProtocol { mine: (118, 124), theirs: (86, 101) });
        assert_eq!(negotiate(&more, &theirs(86, 124, 0x3ff)).unwrap().protocol, 124);
    }

    #[test]
    fn a_maximum_of_zero_means_the_minimum() {
        let agreed = negotiate(&ours(), &theirs(119, 0, 0x3ff));
        assert_eq!(agreed, Ok(Agreed { protocol: 119, features: 0x3d }));
    }

    #[test]
    fn the_gap_is_refused_even_where_the_ranges_meet() {
        let wide = ConnectionFeatures { protocol_min: 100, ..ours() };
        for max in [102, 110, 117] {
            assert_eq!(negotiate(&wide, &theirs(86, max, 0x3ff)), Err(Refusal::Gap { their_max: max }));
        }
        assert_eq!(negotiate(&wide, &theirs(86, 118, 0x3ff)).unwrap().protocol, 118);
    }

    #[test]
    fn a_peer_that_only_speaks_newer_versions() {
        let refusal = negotiate(&ours(), &theirs(125, 130, 0xfff)).unwrap_err();
        assert_eq!(refusal, Refusal::NoCommonProtocol { mine: (100, 124), theirs: (125, 130) });
        assert_eq!(negotiate(&ours(), &theirs(120, 130, 0x3ff)).unwrap().protocol, 124);
    }
}
