//! Fields mean what an independent decoder says. Reading and writing a field in the same wrong place would go
//! unnoticed by encoding what was decoded; here each message is rendered and compared with that decoder's listing.
//!
//! A line of `listing.txt`: command, volume, length of the frame, its bytes without bulk data, then the fields.

use wire::message::*;
use wire::packet::Packet;
use wire::{Context, Header, HeaderForm, Message, decode};

const CTX: Context = Context { features: 0x3ff, protocol: 124, integrity_digest_len: 0 };

fn hex_or_zero(number: u32) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}

fn head(head: &DataHead) -> String {
    let flags = hex_or_zero(head.flags.0);
    format!("sector={} block_id={:#x} seq={} flags={flags}", head.range.start() / 512, head.block_id, head.seq)
}

fn trim(trimmed: &DataHead) -> String {
    format!("{} size={}", head(trimmed), trimmed.range.len())
}

fn block(range: types::ByteRange, block_id: u64) -> String {
    format!("sector={} block_id={block_id:#x} blksize={}", range.start() / 512, range.len())
}

fn ack(ack: &BlockAck) -> String {
    format!("{} seq={}", block(ack.range, ack.block_id), ack.seq)
}

fn request(request: &BlockRequest) -> String {
    let text = block(request.range, request.block_id);
    match request.dagtag {
        None => text,
        Some(dagtag) => format!("{text} dagtag_node={} dagtag={}", dagtag.node, dagtag.tag),
    }
}

fn protocol(options: &ProtocolOptions) -> String {
    format!(
        "protocol={} after_sb={}/{}/{} conn_flags={:#x} two_primaries={} integrity_alg='{}'",
        ["?", "A", "B", "C"][options.protocol as usize],
        options.after_sb_0pri,
        options.after_sb_1pri,
        options.after_sb_2pri,
        options.connection_flags,
        u32::from(options.two_primaries),
        options.integrity_alg
    )
}

fn sync_param(param: &SyncParam) -> String {
    format!(
        "rate={} verify_alg='{}' csums_alg='{}' plan_ahead={} delay_target={} fill_target={} max_rate={}",
        param.resync_rate_kib,
        param.verify_alg,
        param.csums_alg,
        param.plan_ahead,
        param.delay_target,
        param.fill_target_sectors,
        param.max_rate_kib
    )
}

fn sizes(sizes: &Sizes) -> String {
    let limits = sizes.limits.expect("WSAME was agreed");
    format!(
        "d_size={} u_size={} c_size={} max_bio={} queue_order={} dds_flags={:#x} phys_bs={} log_bs={} align={} io_min={} \
         io_opt={} discard={} discard_zeroes={} wsame={} bm_shift={}",
        sizes.disk_bytes / 512,
        sizes.user_bytes / 512,
        sizes.current_bytes / 512,
        sizes.io_bytes_max,
        sizes.queue_order,
        sizes.dds_flags,
        limits.physical_block_bytes,
        limits.logical_block_bytes,
        limits.alignment_offset,
        limits.io_min,
        limits.io_opt,
        limits.discard_enabled,
        limits.discard_zeroes_data,
        limits.write_same_capable,
        limits.bitmap_block_shift
    )
}

fn uuids(uuids: &Uuids) -> String {
    let mut text = format!(
        "current={:016x} dirty_bits={} flags={:#x} node_mask={:#x} bitmap_mask={:#x} bitmap",
        uuids.current.0, uuids.dirty_bits, uuids.flags, uuids.node_mask, uuids.bitmap_mask
    );
    for node in types::NodeId::all() {
        if let Some(uuid) = uuids.bitmap_of(node) {
            text += &format!(" [{node}]={:016x}", uuid.0);
        }
    }
    text
}

fn twopc(head: &TwopcHead) -> String {
    let target = head.target.map_or("-1".to_owned(), |node| node.to_string());
    format!(
        "tid={:#010x} flags={:#x} initiator={} target={target} nodes_to_reach={:#x}",
        head.tid, head.flags, head.initiator, head.nodes_to_reach
    )
}

fn decision(decision: &TwopcDecision) -> String {
    let (primary, reachable) = (decision.primary_nodes, decision.reachable_nodes);
    format!("{} primary_nodes={primary:#x} reachable_nodes={reachable:#x}", twopc(&decision.head))
}

fn reply(reply: &TwopcReply) -> String {
    format!(
        "tid={:#010x} initiator={} reachable={:#x} primary={:#x} weak={:#x}",
        reply.tid, reply.initiator, reply.reachable_nodes, reply.primary_nodes, reply.weak_nodes
    )
}

/// The name that the listing has for a number, as far as it stands in front of a slash.
fn state(word: StateWord) -> String {
    format!(
        "{:#010x} role={} peer={} conn={} disk={}:{} pdsk={}:{}",
        word.0,
        word.role().unwrap(),
        word.peer_role().unwrap(),
        word.conn(),
        word.disk().unwrap().to_wire(),
        word.disk().unwrap(),
        word.peer_disk().unwrap().to_wire(),
        word.peer_disk().unwrap()
    )
}

pub fn render(message: &Message) -> String {
    match message {
        Message::ConnectionFeatures(f) => format!(
            "min={} max={} flags={:#x} sender_node={} receiver_node={}",
            f.protocol_min, f.protocol_max, f.features, f.sender_node_id, f.receiver_node_id
        ),
        Message::AuthChallenge(bytes) => hex::encode(&bytes[..12]) + "...",
        Message::AuthResponse(bytes) => hex::encode(bytes),
        Message::Protocol(options) | Message::ProtocolUpdate(options) => protocol(options),
        Message::SyncParam(param) => sync_param(param),
        Message::Sizes(s) => sizes(s),
        Message::Uuids(u) => uuids(u),
        Message::CurrentUuid { uuid, weak_nodes } => format!("uuid={:016x} weak_nodes={weak_nodes:#x}", uuid.0),
        Message::State(word) => state(*word),
        Message::EnableReplicationNext(enable) | Message::EnableReplication(enable) => format!("enable={enable}"),
        Message::Data(d) | Message::DataReply(d) | Message::RsDataReply(d) => {
            format!("{} data={}", head(d), d.range.len())
        }
        Message::Trim(d) | Message::Zeroes(d) => trim(d),
        Message::Barrier(number) => format!("barrier={number:08x}"),
        Message::OutOfSync(range) => format!("sector={} blksize={}", range.start() / 512, range.len()),
        Message::Dagtag(dagtag) => format!("dagtag={dagtag}"),
        Message::PeerDagtag { dagtag, node } => format!("dagtag={dagtag} node={node}"),
        Message::FlushRequests(sequence) => format!("sequence={sequence}"),
        Message::FlushRequestsAck { sequence, primary } => format!("sequence={sequence} primary={primary}"),
        Message::FlushForward { sequence, initiator } => format!("sequence={sequence} initiator={initiator}"),
        Message::DataRequest(r) | Message::RsDataRequest(r) | Message::RsThinRequest(r) | Message::OvRequest(r) => {
            request(r)
        }
        Message::CsumRsRequest { request: r, digest } | Message::OvReply { request: r, digest } => {
            format!("{} digest={}", request(r), hex::encode(digest))
        }
        Message::TwopcPrepare(p) => {
            format!("{} mask={} val={}", twopc(&p.head), hex_of(p.mask), hex_of(p.value))
        }
        Message::TwopcPrepareResize(r) => {
            format!("{} user_size={} dds_flags={:#x}", twopc(&r.head), r.user_bytes / 512, r.dds_flags)
        }
        Message::TwopcCommit(d) | Message::TwopcAbort(d) => decision(d),
        Message::TwopcYes(r) | Message::TwopcNo(r) | Message::TwopcRetry(r) => reply(r),
        Message::OvResult { ack: a, result } => format!("{} result={result}", ack(a)),
        Message::BarrierAck { barrier, set_size } => format!("barrier={barrier:08x} set_size={set_size}"),
        Message::ConfirmStable { oldest_block_id, youngest_block_id, set_size } => {
            format!("oldest={oldest_block_id:#x} youngest={youngest_block_id:#x} set_size={set_size}")
        }
        Message::PeerAck { nodes, dagtag } => format!("mask={nodes:#x} dagtag={dagtag}"),
        Message::PeersInSync { range, nodes } => {
            format!("sector={} mask={nodes:#x} size={}", range.start() / 512, range.len())
        }
        Message::RecvAck(a)
        | Message::WriteAck(a)
        | Message::WriteAckInSync(a)
        | Message::RsWriteAck(a)
        | Message::NegAck(a)
        | Message::RsNegAck(a)
        | Message::NegDataReply(a)
        | Message::NegRsDataReply(a)
        | Message::RsIsInSync(a)
        | Message::RsCancel(a)
        | Message::RsCancelAhead(a)
        | Message::RsDeallocated(a) => ack(a),
        Message::Ping | Message::PingAck | Message::UnplugRemote | Message::Disconnect => String::new(),
        Message::Bitmap(_) => unreachable!("bitmaps have tests of their own"),
        Message::V84(_) => unreachable!("not in these captures"),
    }
}

fn hex_of(word: StateWord) -> String {
    format!("{:#x}", word.0)
}

/// The listing names states in both dialects ("conn=10:Connected/Established") and adds what we do not compare: the
/// data, padding, the flags of the state word in words.
fn comparable(fields: &str) -> String {
    let words = fields.split(' ').filter(|word| !word.starts_with("pad="));
    words
        .map(|word| if word.starts_with("conn=") { word.split(':').next().unwrap() } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn every_field_means_what_the_listing_says() {
    let listing = include_str!("../fixtures/listing.txt");
    let mut lines = 0;
    for line in listing.lines() {
        let (frame, fields) = line.split_once(" | ").unwrap_or((line.trim_end_matches(" |"), ""));
        let [command, volume, len, bytes] = frame.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let command = u16::from_str_radix(command, 16).unwrap();
        let header = Header {
            command,
            volume: volume.parse().ok().and_then(types::VolumeNumber::new),
            len: len.parse().unwrap(),
            form: HeaderForm::H100,
        };
        let bytes = if bytes == "-" { vec![] } else { hex::decode(bytes).unwrap() };
        let packet = Packet::from_number(command).unwrap();
        let message = decode(&CTX, &header, packet.info().socket, &bytes).unwrap_or_else(|e| panic!("{line}: {e}"));
        let (ours, theirs) = (render(&message), comparable(fields));
        let rest = theirs.strip_prefix(&ours).unwrap_or_else(|| panic!("{packet:?}\nours   {ours}\nlisting {theirs}"));
        assert!(rest.is_empty() || rest.starts_with(' '), "{packet:?}\nours   {ours}\nlisting {theirs}");
        lines += 1;
    }
    assert!(lines > 150, "{lines} lines");
}
