//! What is played, what is not, and where we differ from the kernel.

use super::Capture;
use super::Do::*;
use super::player::Difference;

use engine::Protocol::{A, B, C};
use wire::auth::HmacAlgorithm::{Sha1, Sha256};

/// Where an engine may differ from a kernel.
#[derive(Debug)]
pub struct Row {
    /// Empty: everywhere.
    pub capture: &'static str,
    /// ' ': both.
    pub node: char,
    pub what: What,
    /// The kernel's behaviour is not ruled out as the better one.
    pub open: bool,
    pub reason: &'static str,
}

#[derive(Debug)]
pub enum What {
    Missing(&'static str),
    Extra(&'static str),
    Late(&'static str),
    Repeated(&'static str),
    Field(&'static str, &'static str),
}
use What::{Extra, Field, Late, Missing, Repeated};

impl Row {
    pub fn is_for(&self, capture: &str, node: char) -> bool {
        (self.capture.is_empty() || self.capture == capture) && (self.node == ' ' || self.node == node)
    }

    pub fn difference(&self) -> Difference {
        match self.what {
            Missing(kind) => Difference::Missing(kind.into()),
            Extra(kind) => Difference::Extra(kind.into()),
            Repeated(kind) => Difference::Repeated(kind.into()),
            Late(kind) => Difference::Late(kind.into()),
            Field(kind, field) => Difference::Field(kind.into(), field.into()),
        }
    }
}

const fn everywhere(what: What, reason: &'static str) -> Row {
    Row { capture: "", node: ' ', what, open: false, reason }
}

const fn on(node: char, what: What, reason: &'static str) -> Row {
    Row { capture: "", node, what, open: false, reason }
}

pub const TABLE: &[Row] = &[
    everywhere(Field("ConnectionFeatures", "features"), "we offer fewer features"),
    everywhere(Field("ConnectionFeatures", "protocol_min"), "we offer 118..=124, the kernel 8.4's versions as well"),
    everywhere(Missing("EnableReplicationNext"), "needs a feature that we do not offer"),
    everywhere(Missing("UnplugRemote"), "a hint"),
    everywhere(Missing("Dagtag"), "goes out before the first write of a connection, not at connect"),
    on('a', Field("Uuids", "bitmap 0"), "no bitmap UUID for the own node"),
    on('b', Field("Uuids", "bitmap 1"), "no bitmap UUID for the own node"),
    everywhere(Missing("PeersInSync"), "only from a Primary with several peers"),
    everywhere(Missing("EnableReplication"), "needs a feature that we do not offer"),
    Row {
        capture: "",
        node: 'a',
        what: Field("Uuids", "node_mask 0xfffffffffffffffe/0x0"),
        open: true,
        reason: "a Primary that reconnects names weak nodes; we name them only with NEW_DATAGEN",
    },
    everywhere(Extra("Dagtag"), "goes out before the first write of a connection, not at connect"),
    everywhere(Extra("Ping"), "we ping where we wait for the answer, and when idle"),
    everywhere(Repeated("Uuids"), "the kernel says the same twice"),
    everywhere(Extra("State"), "one more where disk and peer's disk change one after the other; it only informs"),
    everywhere(Field("State", "peer_disk 9/5"), "initial sync skipped: told by the peer's STATE, not assumed before"),
    Row {
        capture: "",
        node: ' ',
        what: Field("Uuids", "flag 256"),
        open: true,
        reason: "RECONNECT in the UUIDS110 of a first connection once it is connected; kernels look at it in handshakes",
    },
    Row {
        capture: "9-02f-unrelated-data",
        node: 'a',
        what: Field("Uuids", "bitmap 1"),
        open: false,
        reason: "bit 0 of a bitmap UUID is no part of it; node b of the same capture has it set as we do",
    },
    everywhere(Missing("Ping"), "we ping where we wait for the answer, and when idle"),
    Row {
        capture: "9-03-full-sync",
        node: 'a',
        what: Field("Uuids", "bitmap 1"),
        open: false,
        reason: "bit 0 of a bitmap UUID is no part of it",
    },
    Row {
        capture: "9-03-full-sync",
        node: 'a',
        what: Field("Uuids", "node_mask 0xfffffffffffffffc/0x0"),
        open: true,
        reason: "a forced Primary names weak nodes; we name them only with NEW_DATAGEN",
    },
    Row {
        capture: "9-03-full-sync",
        node: 'a',
        what: Late("Uuids"),
        open: true,
        reason: "the kernel says its UUIDS110 once more before the peer's answer",
    },
    Row {
        capture: "9-03-full-sync",
        node: 'a',
        what: Field("State", "conn 10/13"),
        open: true,
        reason: "the kernel sends STATE before it begins the bitmap exchange, we behind that",
    },
    Row {
        capture: "9-03-full-sync",
        node: 'b',
        what: Extra("Uuids"),
        open: true,
        reason: "we answer the forced Primary's UUIDS110 with ours",
    },
    Row {
        capture: "9-11-split-brain",
        node: 'a',
        what: Field("RsDataRequest", "node"),
        open: false,
        reason: "of a dagtag 0, which means no dependency",
    },
    Row {
        capture: "9-11-split-brain",
        node: 'a',
        what: Field("Uuids", "history 0"),
        open: true,
        reason: "after discard-my-data our history has one generation more, in front of the kernel's",
    },
    Row {
        capture: "9-11-split-brain",
        node: 'a',
        what: Field("Uuids", "history 1"),
        open: true,
        reason: "the same, the kernel's entry moved one further",
    },
    Row {
        capture: "9-11-split-brain",
        node: 'a',
        what: Repeated("State"),
        open: false,
        reason: "the kernel says the same STATE twice at the end of a resync",
    },
    Row {
        capture: "9-11-split-brain",
        node: 'b',
        what: Field("Uuids", "history 0"),
        open: true,
        reason: "a forced promotion puts the former generation into the kernel's history as well as into the bitmap UUID",
    },
    Row {
        capture: "9-11-split-brain",
        node: 'b',
        what: Field("State", "peer_disk 8/6"),
        open: true,
        reason: "the kernel sees the peer's disk as Consistent, we as Outdated, until the resync begins",
    },
    Row {
        capture: "9-08-csums-resync",
        node: 'b',
        what: Field("Uuids", "history 0"),
        open: false,
        reason: "a target's former generation goes into its history at the end of a resync; the kernel forgets it",
    },
    Row {
        capture: "9-08-csums-resync",
        node: 'b',
        what: Repeated("State"),
        open: false,
        reason: "the kernel says the same STATE twice at the end of a resync",
    },
    Row {
        capture: "9-08-verify",
        node: ' ',
        what: Late("OvRequest"),
        open: false,
        reason: "no more than 256 blocks at once; the kernel asks for all 512 before the first answer",
    },
    Row {
        capture: "9-08-verify",
        node: 'b',
        what: Field("OvReply", "value"),
        open: false,
        reason: "of the one block that was overwritten on the backing disk; the capture does not say with what",
    },
];

const EPOCHS: &str =
    "pieces of one large request are submitted one by one here, so epochs end elsewhere than in the kernel";
const DEPTH: &str = "in deep queues it depends on timing which writes share an epoch";
const NO_NEW_GENERATION: &str =
    "open: the kernel begins a generation at the first write after a change of Primary, its peer connected; we do not";
const REQUESTS: &str = "our resync requests are larger, the source's replies in the capture do not fit";

const BY_BITS: &str =
    "with its features reduced the kernel looks like one of us, which would resync by the bits that the verify has set";

const MIB: u64 = 1 << 20;
const SECRET: &str = "fixture-secret-1";

const PLAIN: Capture = Capture {
    name: "",
    zero: 0.0,
    device_bytes: 16 * MIB,
    protocol: [C, C],
    auth: [None, None],
    fixed_rate: true,
    use_rle: true,
    verify_alg: "",
    csums_alg: "",
    size_max_bytes: None,
    writes_from_capture: true,
    until: &[],
    physical_block_bytes: 4096,
    script: &[],
};

pub const RUNS: &[Capture] = &[
    Capture {
        name: "9-01-first-connect",
        zero: 1795203831.0419,
        fixed_rate: false,
        script: &[
            (-0.3865, 'a', Connect),
            (1.4798, 'b', Connect),
            (15.6287, 'a', SkipInitialSync),
            (19.7496, 'a', Disconnect),
            (20.3288, 'b', Disconnect),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-02a-auth-sha256",
        zero: 1795203990.6898,
        auth: [Some((Sha256, SECRET)), Some((Sha256, SECRET))],
        script: &[(-0.6848, 'a', Connect), (0.1106, 'b', Connect), (3.7135, 'a', Disconnect)],
        ..PLAIN
    },
    Capture {
        name: "9-02b-auth-wrong-secret",
        zero: 1795204005.2282,
        auth: [Some((Sha1, SECRET)), Some((Sha1, "other-secret"))],
        script: &[(-0.6063, 'a', Connect), (0.0444, 'b', Connect)],
        ..PLAIN
    },
    Capture {
        name: "9-02c-auth-one-side",
        zero: 1795204024.1202,
        auth: [Some((Sha1, SECRET)), None],
        script: &[(-0.6281, 'a', Connect), (0.0354, 'b', Connect)],
        ..PLAIN
    },
    Capture {
        name: "9-02d-auth-sha1",
        zero: 1795204040.5855,
        auth: [Some((Sha1, SECRET)), Some((Sha1, SECRET))],
        script: &[(-0.2307, 'a', Connect), (0.0127, 'b', Connect), (3.1433, 'a', Disconnect)],
        ..PLAIN
    },
    Capture {
        name: "9-02e-protocol-mismatch",
        zero: 1795205447.4577,
        protocol: [C, A],
        fixed_rate: false,
        script: &[(-0.2651, 'a', Connect), (0.0162, 'b', Connect)],
        ..PLAIN
    },
    Capture {
        name: "9-02f-unrelated-data",
        zero: 1795205459.9747,
        fixed_rate: false,
        script: &[
            (-1.4153, 'a', PromoteForced),
            (-1.1457, 'a', Write { at: 0, len: 4096 }),
            (-0.9912, 'a', Demote),
            (-0.8693, 'b', PromoteForced),
            (-0.7400, 'b', Write { at: 0, len: 4096 }),
            (-0.6011, 'b', Demote),
            (-0.1212, 'a', Connect),
            (0.0142, 'b', Connect),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-12-roles",
        zero: 1795204823.6488,
        writes_from_capture: false,
        until: &[('b', 10.0, NO_NEW_GENERATION)],
        script: &[
            (-0.4133, 'a', Connect),
            (0.0377, 'b', Connect),
            (2.4215, 'a', SkipInitialSync),
            (3.6986, 'a', Promote),
            (5.2741, 'b', PromoteRefused),
            (6.6546, 'a', Write { at: 0, len: 4096 }),
            (7.6461, 'a', Demote),
            (9.3101, 'b', Promote),
            (10.0171, 'b', Write { at: 4096, len: 4096 }),
            (10.8012, 'b', Demote),
            (11.7184, 'a', Promote),
            (12.9027, 'a', DisconnectForced),
            (15.6282, 'b', Outdate),
            (17.6195, 'b', PromoteRefused),
            (18.1995, 'a', Connect),
            (24.0633, 'a', Down),
            (24.4912, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-04-writes-C",
        zero: 1795204050.1647,
        until: &[('a', 6.2, EPOCHS)],
        script: &[
            (-0.3928, 'a', Connect),
            (0.0199, 'b', Connect),
            (1.4665, 'a', SkipInitialSync),
            (2.2538, 'a', Promote),
            (18.5146, 'a', Down),
            (18.8162, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-04-writes-A",
        zero: 1795204075.0428,
        protocol: [A, A],
        until: &[('a', 5.6, EPOCHS)],
        script: &[
            (-0.2552, 'a', Connect),
            (0.0156, 'b', Connect),
            (1.3601, 'a', SkipInitialSync),
            (2.0269, 'a', Promote),
            (15.2880, 'a', Down),
            (15.5199, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-04-writes-B",
        zero: 1795204097.3430,
        protocol: [B, B],
        until: &[('a', 6.4, EPOCHS), ('b', 12.55, DEPTH)],
        script: &[
            (-0.3011, 'a', Connect),
            (0.0173, 'b', Connect),
            (1.4167, 'a', SkipInitialSync),
            (2.1641, 'a', Promote),
            (16.1065, 'a', Down),
            (16.4525, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-04-writes-flush",
        zero: 1795205003.8434,
        device_bytes: 24 * MIB,
        physical_block_bytes: 512,
        until: &[('a', 6.8, EPOCHS)],
        script: &[
            (-0.3727, 'a', Connect),
            (0.0117, 'b', Connect),
            (1.9091, 'a', SkipInitialSync),
            (2.8438, 'a', Promote),
            (14.8622, 'a', Down),
            (15.1434, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-06-disconnect-by-primary",
        zero: 1795204173.7358,
        writes_from_capture: false,
        script: &[
            (-0.3084, 'a', Connect),
            (0.0349, 'b', Connect),
            (1.7130, 'a', SkipInitialSync),
            (2.5743, 'a', Promote),
            (2.7766, 'a', Write { at: 0, len: 4096 }),
            (3.5682, 'a', Disconnect),
            (6.8475, 'a', Connect),
            (10.1940, 'a', Demote),
            (10.6405, 'a', Disconnect),
            (13.9688, 'a', Connect),
            (17.7212, 'a', Down),
            (18.3631, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-06-reconnect-rle-yes",
        zero: 1795204147.3287,
        writes_from_capture: false,
        until: &[('b', 14.29, REQUESTS)],
        script: &[
            (-0.2723, 'a', Connect),
            (0.7317, 'b', Connect),
            (2.2189, 'a', SkipInitialSync),
            (2.9452, 'a', Promote),
            (3.1895, 'a', Write { at: 0, len: 4096 }),
            (9.0011, 'b', Disconnect),
            (11.1274, 'a', Write { at: 20480, len: 4096 }),
            (11.3954, 'a', Write { at: 24576, len: 4096 }),
            (11.7809, 'a', Write { at: 409600, len: 4096 }),
            (11.9675, 'a', Write { at: 413696, len: 4096 }),
            (12.2492, 'a', Write { at: 417792, len: 4096 }),
            (12.4079, 'a', Write { at: 4096000, len: 4096 }),
            (12.5917, 'a', Write { at: 8384512, len: 4096 }),
            (12.8238, 'a', Write { at: 12288000, len: 4096 }),
            (13.5216, 'b', Connect),
            (16.9640, 'a', Down),
            (17.2000, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-06-reconnect-rle-no",
        zero: 1795204121.5896,
        writes_from_capture: false,
        use_rle: false,
        until: &[('b', 11.595, REQUESTS)],
        script: &[
            (-0.2656, 'a', Connect),
            (0.0128, 'b', Connect),
            (1.4345, 'a', SkipInitialSync),
            (2.5384, 'a', Promote),
            (3.2749, 'a', Write { at: 0, len: 4096 }),
            (6.9578, 'b', Disconnect),
            (8.7271, 'a', Write { at: 20480, len: 4096 }),
            (8.9304, 'a', Write { at: 24576, len: 4096 }),
            (9.1040, 'a', Write { at: 409600, len: 4096 }),
            (9.2568, 'a', Write { at: 413696, len: 4096 }),
            (9.4710, 'a', Write { at: 417792, len: 4096 }),
            (9.6822, 'a', Write { at: 4096000, len: 4096 }),
            (9.9670, 'a', Write { at: 8384512, len: 4096 }),
            (10.1893, 'a', Write { at: 12288000, len: 4096 }),
            (10.8861, 'b', Connect),
            (15.6186, 'a', Down),
            (16.0166, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-03-full-sync",
        zero: 1795203861.4537,
        writes_from_capture: false,
        fixed_rate: false,
        size_max_bytes: Some(4 * MIB),
        until: &[('b', 1.6041, REQUESTS)],
        script: &[
            (-0.4726, 'a', Connect),
            (0.0185, 'b', Connect),
            (1.3651, 'a', PromoteForced),
            (3.7298, 'a', Demote),
            (5.4718, 'a', Down),
            (5.7053, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-11-split-brain",
        zero: 1795204508.8783,
        writes_from_capture: false,
        script: &[
            (-0.2910, 'a', Connect),
            (0.0147, 'b', Connect),
            (1.4718, 'a', SkipInitialSync),
            (2.8634, 'a', Disconnect),
            (3.1206, 'b', Disconnect),
            (3.9781, 'a', PromoteForced),
            (4.2607, 'a', Write { at: 0, len: 4096 }),
            (4.4264, 'a', Demote),
            (4.5887, 'b', PromoteForced),
            (4.7713, 'b', Write { at: 4096, len: 4096 }),
            (4.9327, 'b', Demote),
            (5.5582, 'a', Connect),
            (5.6951, 'b', Connect),
            (10.4059, 'a', Disconnect),
            (10.5776, 'b', Disconnect),
            (11.2570, 'a', ConnectDiscarding),
            (11.5002, 'b', Connect),
            (15.0488, 'a', Down),
            (15.2818, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-08-csums-resync",
        zero: 1795204284.2107,
        csums_alg: "sha1",
        script: &[
            (-0.3581, 'a', Connect),
            (0.0289, 'b', Connect),
            (1.9511, 'a', SkipInitialSync),
            (2.8180, 'a', Promote),
            (3.7439, 'b', Disconnect),
            (4.6974, 'a', Write { at: 0, len: 4096 }),
            (4.6975, 'a', Write { at: 4096, len: 4096 }),
            (4.6976, 'a', Write { at: 8192, len: 4096 }),
            (4.6977, 'a', Write { at: 12288, len: 4096 }),
            (4.6978, 'a', Write { at: 16384, len: 4096 }),
            (4.6979, 'a', Write { at: 20480, len: 4096 }),
            (4.6980, 'a', Write { at: 24576, len: 4096 }),
            (4.6981, 'a', Write { at: 28672, len: 4096 }),
            (4.9781, 'a', Write { at: 409600, len: 4096 }),
            (5.2889, 'a', Rewrite { at: 36864 }),
            (5.5487, 'b', Connect),
            (8.6380, 'a', Down),
            (8.8920, 'b', Down),
        ],
        ..PLAIN
    },
    Capture {
        name: "9-08-verify",
        zero: 1795204255.6085,
        verify_alg: "crc32c",
        until: &[('a', 12.6, BY_BITS), ('b', 12.6, BY_BITS)],
        size_max_bytes: Some(2 * MIB),
        script: &[
            (-0.6884, 'a', Connect),
            (0.0146, 'b', Connect),
            (1.9344, 'a', SkipInitialSync),
            (2.9641, 'a', Promote),
            (4.3195, 'b', Corrupt { at: 81920, len: 4096 }),
            (4.6497, 'a', Verify { start: None, stop: None }),
            (7.1965, 'a', Verify { start: Some(1024), stop: Some(2048) }),
            (9.6741, 'b', Verify { start: Some(3000), stop: None }),
            (11.3947, 'b', Disconnect),
            (12.6386, 'b', Connect),
            (17.9951, 'a', Down),
            (18.4568, 'b', Down),
        ],
        ..PLAIN
    },
];

/// Captures of DRBD 9 that are not played.
pub const SKIPPED: &[(&str, &str)] = &[
    ("9-03-writes-during-resync", "not reached yet"),
    ("9-03-writes-during-resync-2", "not reached yet"),
    ("9-04-confirm-stable", "not reached yet"),
    ("9-05-discard-unsupported-by-peer", "not reached yet"),
    ("9-05-thin-resync", "not reached yet"),
    ("9-06-bitmap-fallback", "not reached yet"),
    ("9-06-bitmap-multi-packet", "not reached yet"),
    ("9-07-invalidate", "not reached yet"),
    ("9-07-invalidate-keep-bitmap", "not reached yet"),
    ("9-09-integrity-crc32c", "integrity algorithms are refused"),
    ("9-09-integrity-sha1", "integrity algorithms are refused"),
    ("9-09-integrity-zeroes", "integrity algorithms are refused"),
    ("9-10-detach-primary", "not reached yet"),
    ("9-10-detach-refused", "not reached yet"),
    ("9-10-io-errors", "not reached yet"),
    ("9-10-read-errors", "not reached yet"),
    ("9-10-resync-errors", "not reached yet"),
    ("9-11-split-brain-auto", "after-split-brain policies are refused"),
    ("9-12-concurrent-2pc", "not reached yet"),
    ("9-12-concurrent-promote", "not reached yet"),
    ("9-12-two-primaries", "not supported by the engine"),
    ("9-13-resize", "not supported by the engine"),
    ("9-14-peer-lost", "needs a link that swallows packets"),
    ("9-15-pull-ahead", "not supported by the engine"),
    ("9-16-diskless-client", "three nodes, the player has two"),
    ("9-16-three-nodes", "three nodes, the player has two"),
    ("9-16-three-nodes-primary-lost", "three nodes, the player has two"),
    ("9-16-three-nodes-quorum", "three nodes, the player has two"),
    ("9-17-protocol-update", "not reached yet"),
    ("9-17-two-volumes", "not reached yet"),
];
