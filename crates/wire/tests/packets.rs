//! One message for every packet, at the edges of what it may hold: there and back, cut, too long, on the wrong
//! socket, and random bytes. The captures do not contain all packets; this file does.

use proptest::prelude::*;
use std::collections::BTreeSet;
use types::{ByteRange, NodeId, Uuid, VolumeNumber};
use wire::codec::{ID_SYNCER, packet_of};
use wire::message::*;
use wire::packet::{Body, Packet, PacketInfo, Scope};
use wire::version::feature;
use wire::{Context, DecodeError, Header, HeaderForm, Message, Socket, decode, encode, frame_parts};

const NEWEST: Context = Context { features: 0x3ff, protocol: 124, integrity_digest_len: 0 };
/// No block ids in resync and verify yet.
const BEFORE_IDS: Context = Context { protocol: 121, ..NEWEST };
const WITH_DIGEST: Context = Context { integrity_digest_len: 20, ..NEWEST };
const WITHOUT_WSAME: Context = Context { features: 0x3ff & !feature::WSAME, ..NEWEST };

fn node(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

fn range(sector: u64, len: u64) -> ByteRange {
    ByteRange::from_sector(sector, len).unwrap()
}

fn head(len: u64, flags: u32) -> DataHead {
    DataHead { range: range(0x1234, len), block_id: 0xdead_beef_0000_0001, seq: 7, flags: DataFlags(flags) }
}

fn ack() -> BlockAck {
    BlockAck { range: range(8, 4096), block_id: 0x0102_0304_0506_0708, seq: 9 }
}

fn request(dagtag: Option<Dagtag>) -> BlockRequest {
    BlockRequest { range: range(16, 1 << 20), block_id: 3, dagtag }
}

fn tag() -> Option<Dagtag> {
    Some(Dagtag { node: u32::MAX, tag: 0x1122 })
}

fn twopc() -> TwopcHead {
    TwopcHead { tid: 0x8b13_48a1, flags: 0xc000_0000, initiator: node(31), target: None, nodes_to_reach: !3 }
}

fn decision() -> TwopcDecision {
    TwopcDecision { head: TwopcHead { target: Some(node(1)), ..twopc() }, primary_nodes: 1, reachable_nodes: 3 }
}

fn reply() -> TwopcReply {
    TwopcReply { tid: 1, initiator: node(0), reachable_nodes: 3, primary_nodes: 1, weak_nodes: !3 }
}

fn protocol(integrity_alg: &str) -> ProtocolOptions {
    ProtocolOptions {
        protocol: 3,
        after_sb_0pri: 3,
        after_sb_1pri: 8,
        after_sb_2pri: 0,
        connection_flags: 1,
        two_primaries: true,
        integrity_alg: integrity_alg.to_owned(),
    }
}

fn sizes(limits: Option<QueueLimits>) -> Message {
    Message::Sizes(Sizes {
        disk_bytes: 32688 * 512,
        user_bytes: 0,
        current_bytes: 512,
        io_bytes_max: 130560,
        queue_order: 0,
        dds_flags: 2,
        limits,
    })
}

fn limits() -> QueueLimits {
    QueueLimits {
        physical_block_bytes: 4096,
        logical_block_bytes: 512,
        alignment_offset: 1,
        io_min: 4096,
        io_opt: 2,
        discard_enabled: 1,
        discard_zeroes_data: 0,
        write_same_capable: 0,
        bitmap_block_shift: 8,
    }
}

fn uuids(bitmap_mask: u64, history: usize) -> Message {
    let bitmap = (0..(bitmap_mask as u32).count_ones()).map(|n| Uuid(n.into())).collect();
    Message::Uuids(Uuids {
        current: Uuid(0xf752_2b33_03f2_11be),
        dirty_bits: 5,
        flags: 0x120,
        node_mask: !1,
        bitmap_mask,
        bitmap,
        history: (0..history as u64).map(Uuid).collect(),
    })
}

/// Context, message. Everything with a length of its own choice is there at its shortest and longest.
fn samples() -> Vec<(Context, Message)> {
    let verify_name = "v".repeat(63);
    let features = ConnectionFeatures {
        protocol_min: 118,
        protocol_max: 124,
        features: 0x3d,
        sender_node_id: 1,
        receiver_node_id: 0,
    };
    let sync_param = SyncParam {
        resync_rate_kib: 250,
        verify_alg: verify_name.clone(),
        csums_alg: String::new(),
        plan_ahead: 20,
        delay_target: 10,
        fill_target_sectors: 100,
        max_rate_kib: 102_400,
    };
    let newest = [
        Message::ConnectionFeatures(features),
        Message::AuthChallenge(vec![7; 64]),
        Message::AuthResponse(vec![8; 64]),
        Message::AuthResponse(vec![8; 1]),
        Message::Protocol(protocol("")),
        Message::ProtocolUpdate(protocol(&verify_name)),
        Message::SyncParam(sync_param),
        sizes(Some(limits())),
        uuids(0, 0),
        uuids(u64::MAX, 64),
        uuids(0xffff_ffff_0000_0002, 32),
        Message::CurrentUuid { uuid: Uuid(1), weak_nodes: !1 },
        Message::State(StateWord(u32::MAX)),
        Message::EnableReplicationNext(0),
        Message::EnableReplication(1),
        Message::Disconnect,
        Message::Data(head(512, 0x102)),
        Message::Data(head(1 << 20, 0x102)),
        Message::Data(head(0, DataFlags::FLUSH)),
        Message::Trim(head(128 << 20, 0x142)),
        Message::Zeroes(head(512, 0x502)),
        Message::DataRequest(request(None)),
        Message::DataReply(head(512, 0)),
        Message::Barrier(0x0100_0000),
        Message::UnplugRemote,
        Message::OutOfSync(range(0, 0xffff_fe00)),
        Message::Dagtag(u64::MAX),
        Message::PeerDagtag { dagtag: 1, node: 2 },
        Message::FlushRequests(1),
        Message::FlushRequestsAck { sequence: 1, primary: 2 },
        Message::RsDataRequest(request(None)),
        Message::RsDataRequest(request(tag())),
        Message::RsThinRequest(request(None)),
        Message::RsThinRequest(request(tag())),
        Message::CsumRsRequest { request: request(None), digest: vec![1; 64] },
        Message::CsumRsRequest { request: request(tag()), digest: vec![1; 4] },
        Message::RsDataReply(head(4096, 0)),
        Message::RsDeallocated(ack()),
        Message::OvRequest(request(None)),
        Message::OvRequest(request(tag())),
        Message::OvReply { request: request(None), digest: vec![0; 1] },
        Message::OvReply { request: request(tag()), digest: vec![0; 64] },
        Message::Bitmap(BitmapChunk::Plain(vec![])),
        Message::Bitmap(BitmapChunk::Plain(vec![1; 4080])),
        Message::Bitmap(BitmapChunk::Compressed(vec![2; 2])),
        Message::Bitmap(BitmapChunk::Compressed(vec![2; 4080])),
        Message::TwopcPrepare(TwopcPrepare { head: twopc(), mask: StateWord(0x1e03), value: StateWord(0x1201) }),
        Message::TwopcPrepareResize(TwopcResize { head: twopc(), user_bytes: 512, dds_flags: 2 }),
        Message::TwopcCommit(decision()),
        Message::TwopcAbort(decision()),
        Message::Ping,
        Message::PingAck,
        Message::RecvAck(ack()),
        Message::WriteAck(BlockAck { range: range(0, 0), ..ack() }),
        Message::WriteAckInSync(ack()),
        Message::RsWriteAck(ack()),
        Message::NegAck(ack()),
        Message::RsNegAck(ack()),
        Message::NegDataReply(ack()),
        Message::NegRsDataReply(ack()),
        Message::RsIsInSync(ack()),
        Message::RsCancel(ack()),
        Message::RsCancelAhead(ack()),
        Message::OvResult { ack: ack(), result: 2 },
        Message::BarrierAck { barrier: 5, set_size: 6 },
        Message::ConfirmStable { oldest_block_id: 1, youngest_block_id: 2, set_size: 3 },
        Message::PeerAck { nodes: 3, dagtag: 4 },
        Message::PeersInSync { range: range(0, 4 << 20), nodes: 1 },
        Message::FlushForward { sequence: 1, initiator: 2 },
        Message::TwopcYes(reply()),
        Message::TwopcNo(reply()),
        Message::TwopcRetry(reply()),
    ];
    let syncer = BlockAck { block_id: ID_SYNCER, ..ack() };
    let special = [
        (WITHOUT_WSAME, sizes(None)),
        (WITH_DIGEST, Message::Data(head(4096, 0x102))),
        (WITH_DIGEST, Message::DataReply(head(1 << 20, 0))),
        (WITH_DIGEST, Message::Zeroes(head(4096, 0x502))),
        (BEFORE_IDS, Message::RsDeallocated(BlockAck { seq: 0, ..syncer })),
        (BEFORE_IDS, Message::OvResult { ack: syncer, result: 0 }),
        (BEFORE_IDS, Message::OvResult { ack: syncer, result: 2 }),
    ];
    newest.into_iter().map(|message| (NEWEST, message)).chain(special).collect()
}

fn volume_for(info: &PacketInfo) -> Option<VolumeNumber> {
    match info.scope {
        Scope::Volume => VolumeNumber::new(65534),
        Scope::Connection | Scope::Either => None,
    }
}

/// Encodes a sample as a peer would send it: header, and what stands before the data, digest included.
fn frame(ctx: &Context, message: &Message) -> (Header, Vec<u8>) {
    let info = packet_of(ctx, message).info();
    let mut out = vec![0xaa];
    encode(ctx, volume_for(info), message, &mut out);
    let form = HeaderForm::classify(out[1..9].try_into().unwrap()).unwrap();
    let header = Header::decode(&out[1..1 + form.header_bytes()]).unwrap();
    let mut fixed = out[1 + form.header_bytes()..].to_vec();
    if info.body == Body::Bulk {
        fixed.resize(fixed.len() + ctx.integrity_digest_len, 0xdd);
    }
    (header, fixed)
}

#[test]
fn every_packet_of_the_table_has_a_sample() {
    let have: BTreeSet<Packet> = samples().iter().map(|(ctx, message)| packet_of(ctx, message)).collect();
    let opens_a_socket = [Packet::InitialData, Packet::InitialMeta];
    for info in PacketInfo::all() {
        assert!(have.contains(&info.packet) || opens_a_socket.contains(&info.packet), "{}", info.name);
    }
}

#[test]
fn there_and_back() {
    for (ctx, message) in samples() {
        let info = packet_of(&ctx, &message).info();
        let (header, fixed) = frame(&ctx, &message);
        assert_eq!(header.volume, volume_for(info), "{}", info.name);
        let parts = frame_parts(&ctx, &header, info.socket).unwrap();
        assert_eq!(parts.fixed_bytes, fixed.len(), "{}", info.name);
        assert_eq!(u64::from(parts.payload_bytes), message.payload_bytes(), "{}", info.name);
        assert_eq!(decode(&ctx, &header, info.socket, &fixed), Ok(message), "{}", info.name);
    }
}

#[test]
fn a_cut_or_longer_frame_is_refused() {
    for (ctx, message) in samples() {
        let info = packet_of(&ctx, &message).info();
        let (header, fixed) = frame(&ctx, &message);
        let mut longer = fixed.clone();
        longer.push(0);
        // The bytes do not match the header.
        assert!(decode(&ctx, &header, info.socket, &longer).is_err(), "{message:?}");
        if let Some(cut) = fixed.len().checked_sub(1) {
            assert!(decode(&ctx, &header, info.socket, &fixed[..cut]).is_err(), "{message:?}");
        }
        // The header says so too. Only a part of free length may still be right, and then it is another message.
        let free = matches!(info.body, Body::Tail { step: 1, .. });
        for (len, bytes) in [
            (header.len.wrapping_sub(1), fixed.get(..fixed.len().wrapping_sub(1))),
            (header.len + 1, Some(&longer[..])),
        ] {
            let Some(bytes) = bytes else { continue };
            match decode(&ctx, &Header { len, ..header }, info.socket, bytes) {
                // What follows the NUL of a name does not count.
                Ok(other) if matches!(other, Message::Protocol(_) | Message::ProtocolUpdate(_)) => {
                    assert!(len > header.len, "{other:?}");
                }
                Ok(other) if free => assert_ne!(other, message),
                Ok(other) => panic!("{len} bytes instead of {} decoded to {other:?}", header.len),
                Err(error) => assert_eq!(error.packet, info.name),
            }
        }
    }
}

#[test]
fn lengths_end_where_the_table_says() {
    for info in PacketInfo::all() {
        let Body::Tail { fixed, min, max, .. } = info.body else { continue };
        let header =
            |len| Header { command: info.packet.number(), volume: VolumeNumber::new(0), len, form: HeaderForm::H100 };
        for (len, expected) in
            [(fixed + min, true), (fixed + max, true), (fixed + max + 8, false), (u32::MAX - 7, false)]
        {
            assert_eq!(frame_parts(&NEWEST, &header(len), info.socket).is_ok(), expected, "{}: {len}", info.name);
        }
        if let Some(len) = (fixed + min).checked_sub(1) {
            assert!(frame_parts(&NEWEST, &header(len), info.socket).is_err(), "{}: {len}", info.name);
        }
    }
}

#[test]
fn the_wrong_socket_is_refused() {
    for (ctx, message) in samples() {
        let info = packet_of(&ctx, &message).info();
        let (header, fixed) = frame(&ctx, &message);
        let wrong = if info.socket == Socket::Data { Socket::Control } else { Socket::Data };
        let error = decode(&ctx, &header, wrong, &fixed).unwrap_err();
        assert_eq!((error.packet, error.field), (info.name, "command"));
        assert!(error.violated.contains("socket"));
    }
}

#[test]
fn what_concerns_a_volume_needs_one() {
    for (ctx, message) in samples() {
        let info = packet_of(&ctx, &message).info();
        let (header, fixed) = frame(&ctx, &message);
        let result = decode(&ctx, &Header { volume: None, ..header }, info.socket, &fixed);
        assert_eq!(result.is_err(), info.scope == Scope::Volume, "{}", info.name);
    }
}

fn refusal(ctx: &Context, message: &Message, change: impl FnOnce(&mut Header, &mut Vec<u8>)) -> DecodeError {
    let info = packet_of(ctx, message).info();
    let (mut header, mut fixed) = frame(ctx, message);
    change(&mut header, &mut fixed);
    match decode(ctx, &header, info.socket, &fixed) {
        Err(error) => error,
        Ok(message) => panic!("must be refused: {message:?}"),
    }
}

/// Overwrites a field.
fn put(offset: usize, bytes: &[u8]) -> impl FnOnce(&mut Header, &mut Vec<u8>) {
    move |_, fixed| fixed[offset..offset + bytes.len()].copy_from_slice(bytes)
}

#[test]
fn values_that_no_packet_may_have() {
    let sizes_now = sizes(Some(limits()));
    let write = Message::Data(head(4096, 0x102));
    let trim = Message::Trim(head(4096, 0x142));
    let read = Message::DataRequest(request(None));
    let prepare = Message::TwopcPrepare(TwopcPrepare { head: twopc(), mask: StateWord(0), value: StateWord(0) });
    let options = Message::Protocol(protocol("sha1"));
    let grown = |len: u32| move |header: &mut Header, _: &mut Vec<u8>| header.len = len;
    let cases = [
        ("half a sector of data", refusal(&NEWEST, &write, grown(24 + 4096 + 256)), "length", 8),
        ("more than 1 MiB", refusal(&NEWEST, &write, grown(24 + (1 << 20) + 512)), "length", 8),
        ("no room for the digest", refusal(&WITH_DIGEST, &write, grown(43)), "length", 8),
        ("no data, no flush", refusal(&NEWEST, &write, grown(24)), "dp_flags", 20),
        ("an empty reply", refusal(&NEWEST, &Message::DataReply(head(512, 0)), grown(24)), "data", 0),
        ("the end wraps", refusal(&NEWEST, &write, put(0, &(u64::MAX / 512).to_be_bytes())), "sector", 0),
        ("the sector wraps", refusal(&NEWEST, &write, put(0, &[0xff; 8])), "sector", 0),
        ("a trim of nothing", refusal(&NEWEST, &trim, put(24, &[0; 4])), "size", 24),
        ("a trim too large", refusal(&NEWEST, &trim, put(24, &(1u32 << 28).to_be_bytes())), "size", 24),
        ("a read of nothing", refusal(&NEWEST, &read, put(16, &[0; 4])), "blksize", 16),
        ("a read too large", refusal(&NEWEST, &read, put(16, &(2u32 << 20).to_be_bytes())), "blksize", 16),
        ("an odd read", refusal(&NEWEST, &read, put(16, &513u32.to_be_bytes())), "blksize", 16),
        ("no transaction id", refusal(&NEWEST, &prepare, put(0, &[0; 4])), "tid", 0),
        ("initiator 32", refusal(&NEWEST, &prepare, put(10, &[32])), "initiator_node_id", 10),
        ("target -2", refusal(&NEWEST, &prepare, put(11, &[0xfe])), "target_node_id", 11),
        ("protocol D", refusal(&NEWEST, &options, put(0, &4u32.to_be_bytes())), "protocol", 0),
        ("two primaries: 2", refusal(&NEWEST, &options, put(20, &2u32.to_be_bytes())), "two_primaries", 20),
        ("a name without end", refusal(&NEWEST, &options, put(24, b"sha1!")), "integrity_alg", 24),
        ("a name with a blank", refusal(&NEWEST, &options, put(24, b"s 1\0\0")), "integrity_alg", 24),
        ("too few UUIDs", refusal(&NEWEST, &uuids(1, 0), put(32, &7u64.to_be_bytes())), "bitmap_uuids_mask", 32),
        ("a disk of 2^64 bytes", refusal(&NEWEST, &sizes_now, put(0, &[0xff; 8])), "d_size", 0),
        (
            "blocks of 1000 bytes",
            refusal(&NEWEST, &sizes_now, put(36, &1000u32.to_be_bytes())),
            "logical_block_size",
            36,
        ),
        (
            "blocks of 256 bytes",
            refusal(&NEWEST, &sizes_now, put(32, &256u32.to_be_bytes())),
            "physical_block_size",
            32,
        ),
    ];
    for (what, error, field, offset) in cases {
        assert_eq!((error.field, error.offset), (field, offset), "{what}: {error}");
    }
}

#[test]
fn verify_results_that_do_not_exist() {
    let with_id = Message::OvResult { ack: ack(), result: 1 };
    assert_eq!(refusal(&NEWEST, &with_id, put(24, &3u32.to_be_bytes())).field, "result");
    let without = Message::OvResult { ack: BlockAck { block_id: ID_SYNCER, ..ack() }, result: 1 };
    assert_eq!(refusal(&BEFORE_IDS, &without, put(8, &4713u64.to_be_bytes())).field, "block_id");
}

#[test]
fn two_phase_packets_need_the_second_layout() {
    let without = Context { features: NEWEST.features & !feature::TWOPC_V2, ..NEWEST };
    let (header, fixed) = frame(&NEWEST, &Message::TwopcCommit(decision()));
    let error = decode(&without, &header, Socket::Data, &fixed).unwrap_err();
    assert!(error.violated.contains("2PC_V2"), "{error}");
}

#[test]
fn numbers_without_a_packet_are_refused() {
    // Numbers of the 8.4 dialect, the unused ones, and the packets that may only open a socket.
    for command in [0x05, 0x0a, 0x0c, 0x0f, 0x12, 0x18, 0x1d, 0x27, 0x2a, 0x34, 0x5a, 0x100, 0xfff1, 0xfff2, 0xffff] {
        for socket in [Socket::Data, Socket::Control] {
            let header = Header { command, volume: None, len: 0, form: HeaderForm::H100 };
            let error = frame_parts(&NEWEST, &header, socket).unwrap_err();
            assert_eq!((error.field, error.value), ("command", command.into()));
        }
    }
}

#[test]
fn old_headers_only_where_they_belong() {
    let (header, fixed) = frame(&NEWEST, &Message::Ping);
    for form in [HeaderForm::H80, HeaderForm::H95, HeaderForm::H100] {
        let pinged = decode(&NEWEST, &Header { form, ..header }, Socket::Control, &fixed);
        assert_eq!(pinged, Ok(Message::Ping), "a ping may come before the agreement");
        let features = PacketInfo::of_number(0xfffe).unwrap().packet.number();
        let header = Header { command: features, volume: None, len: 72, form };
        assert!(decode(&Context::UNAGREED, &header, Socket::Data, &[0; 72]).is_ok());
    }
    let (header, fixed) = frame(&NEWEST, &Message::Barrier(1));
    assert_eq!(header.form, HeaderForm::H100);
    let old = Header { form: HeaderForm::H80, ..header };
    assert_eq!(decode(&NEWEST, &old, Socket::Data, &fixed).unwrap_err().field, "magic");
}

#[test]
fn an_error_says_packet_field_place_value_and_rule() {
    let error = refusal(&NEWEST, &Message::DataRequest(request(None)), put(16, &513u32.to_be_bytes()));
    let expected = "DATA_REQUEST: blksize at offset 16 is 513 (0x201): must be a multiple of 512";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn padding_is_not_looked_at_and_not_sent() {
    let (header, mut fixed) = frame(&NEWEST, &Message::DataRequest(request(None)));
    assert_eq!(fixed[20..], [0; 4]);
    fixed[20..].fill(0x77);
    assert_eq!(decode(&NEWEST, &header, Socket::Data, &fixed), Ok(Message::DataRequest(request(None))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    /// Any packet, any bytes of an accepted length: an error or a message that goes back to the same bytes in our
    /// layout (padding and what follows a name's NUL aside, hence decoded once more).
    #[test]
    fn random_bytes_never_panic(
        index in 0..PacketInfo::all().len(),
        contexts in prop_oneof![Just(NEWEST), Just(BEFORE_IDS), Just(WITH_DIGEST), Just(WITHOUT_WSAME)],
        len in prop_oneof![0u32..5000, Just(24 + 4096), Just(44 + 512), Just(36), Just(32), Just(28), Just(56), Just(148)],
        exact: bool,
        mut bytes in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 160),
    ) {
        let ctx = contexts;
        let info = &PacketInfo::all()[index];
        let len = match info.body { Body::Exact(expected) if exact => expected, _ => len };
        let header = Header { command: info.packet.number(), volume: VolumeNumber::new(1), len, form: HeaderForm::H100 };
        let Ok(parts) = frame_parts(&ctx, &header, info.socket) else { return Ok(()) };
        prop_assert!(parts.fixed_bytes <= 4096);
        bytes.resize(parts.fixed_bytes, 0);
        let Ok(message) = decode(&ctx, &header, info.socket, &bytes) else { return Ok(()) };
        let same_form = packet_of(&ctx, &message) == info.packet;
        if !same_form {
            // RS_DEALLOCATED and OV_RESULT in the form of the other protocol version.
            return Ok(());
        }
        let volume = if info.scope == Scope::Connection { None } else { header.volume };
        let mut out = Vec::new();
        encode(&ctx, volume, &message, &mut out);
        let form = HeaderForm::classify(out[..8].try_into().unwrap()).unwrap();
        let again = Header::decode(&out[..form.header_bytes()]).unwrap();
        let mut fixed = out[form.header_bytes()..].to_vec();
        if info.body == Body::Bulk {
            fixed.resize(fixed.len() + ctx.integrity_digest_len, 0);
        }
        prop_assert_eq!(decode(&ctx, &again, info.socket, &fixed), Ok(message));
    }

    #[test]
    fn random_headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20), magic in 0..4usize) {
        let magics: [&[u8]; 4] = [&[0x83, 0x74, 0x02, 0x67], &[0x83, 0x5a], &[0x86, 0x20, 0xec, 0x20], &[]];
        let mut bytes = bytes;
        for (byte, fixed) in bytes.iter_mut().zip(magics[magic]) {
            *byte = *fixed;
        }
        if let Ok(header) = Header::decode(&bytes) {
            for socket in [Socket::Data, Socket::Control] {
                if let Ok(parts) = frame_parts(&NEWEST, &header, socket) {
                    prop_assert!(parts.fixed_bytes <= 4096 && parts.payload_bytes <= 1 << 20);
                }
            }
        }
    }
}
