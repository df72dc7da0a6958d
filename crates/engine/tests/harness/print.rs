//! One line for each message, disk operation, event. Left out: block ids, payload ids, digests, durations.

use engine::{DiskOp, Event};
use metadata::activity_log::AlBlock;
use metadata::layout::Layout;
use metadata::superblock::Superblock;
use types::ByteRange;
use wire::Message;
use wire::message::{
    BitmapChunk, BlockAck, BlockRequest, DataFlags, DataHead, TwopcHead, TwopcReply, Uuids, uuid_flag,
};

use super::names::Names;

pub fn range(range: ByteRange) -> String {
    format!("{}+{}", range.start(), range.len())
}

fn flags(word: u64, names: &[(u64, &str)]) -> String {
    let known: Vec<&str> = names.iter().filter(|(bit, _)| word & bit != 0).map(|(_, name)| *name).collect();
    let rest = word & !names.iter().fold(0, |all, (bit, _)| all | bit);
    let rest = if rest == 0 { String::new() } else { format!("|{rest:#x}") };
    format!("{}{rest}", known.join("|"))
}

const DATA_FLAGS: &[(u64, &str)] = &[
    (DataFlags::RW_SYNC as u64, "SYNC"),
    (DataFlags::MAY_SET_IN_SYNC as u64, "MAY_SET_IN_SYNC"),
    (DataFlags::UNPLUG as u64, "UNPLUG"),
    (DataFlags::FUA as u64, "FUA"),
    (DataFlags::FLUSH as u64, "FLUSH"),
    (DataFlags::DISCARD as u64, "DISCARD"),
    (DataFlags::SEND_RECEIVE_ACK as u64, "RECV_ACK"),
    (DataFlags::SEND_WRITE_ACK as u64, "WRITE_ACK"),
    (DataFlags::ZEROES as u64, "ZEROES"),
];

const UUID_FLAGS: &[(u64, &str)] = &[
    (uuid_flag::DISCARD_MY_DATA, "DISCARD_MY_DATA"),
    (uuid_flag::CRASHED_PRIMARY, "CRASHED_PRIMARY"),
    (uuid_flag::INCONSISTENT, "INCONSISTENT"),
    (uuid_flag::SKIP_INITIAL_SYNC, "SKIP_INITIAL_SYNC"),
    (uuid_flag::NEW_DATAGEN, "NEW_DATAGEN"),
    (uuid_flag::STABLE, "STABLE"),
    (uuid_flag::GOT_STABLE, "GOT_STABLE"),
    (uuid_flag::RESYNC, "RESYNC"),
    (uuid_flag::RECONNECT, "RECONNECT"),
    (uuid_flag::DISKLESS_PRIMARY, "DISKLESS_PRIMARY"),
    (uuid_flag::SYNC_TARGET, "SYNC_TARGET"),
];

fn data(head: &DataHead) -> String {
    format!("{} [{}]", range(head.range), flags(head.flags.0.into(), DATA_FLAGS))
}
fn ack(ack: &BlockAck) -> String {
    range(ack.range)
}
fn request(request: &BlockRequest) -> String {
    match request.dagtag {
        Some(d) if d.tag != 0 => format!("{} after {}@{}", range(request.range), d.tag, d.node),
        _ => range(request.range),
    }
}

fn uuids(u: &Uuids, names: &mut Names) -> String {
    let mut entries = u.bitmap.iter();
    let mut text = format!("current={} dirty={} [{}]", names.uuid(u.current), u.dirty_bits, flags(u.flags, UUID_FLAGS));
    for node in (0..32).filter(|n| u.bitmap_mask & (1 << n) != 0) {
        text += &format!(" bitmap[{node}]={}", entries.next().map_or("?".into(), |u| names.uuid(*u)));
    }
    let history: Vec<String> = u.history.iter().filter(|u| !u.is_zero()).map(|u| names.uuid(*u)).collect();
    text + &format!(" history={}", history.join(","))
}

fn state(word: wire::message::StateWord) -> String {
    let role = word.role().map_or_else(|n| n.to_string(), |r| r.to_string());
    let peer = word.peer_role().map_or_else(|n| n.to_string(), |r| r.to_string());
    let disk = word.disk().map_or_else(|n| n.to_string(), |d| d.to_string());
    let peer_disk = word.peer_disk().map_or_else(|n| n.to_string(), |d| d.to_string());
    let conn = match (word.connection(), word.replication()) {
        (Ok(c), Ok(r)) => format!("{c}/{r}"),
        (_, Ok(r)) => r.to_string(),
        (Ok(c), _) => c.to_string(),
        _ => word.conn().to_string(),
    };
    format!("role={role}/{peer} conn={conn} disk={disk}/{peer_disk}")
}

fn twopc(head: &TwopcHead, names: &mut Names) -> String {
    let target = head.target.map_or("all".into(), |t| t.to_string());
    format!("{} {}->{target}", names.transaction(head.tid), head.initiator)
}
fn vote(reply: &TwopcReply, names: &mut Names) -> String {
    format!(
        "{} reachable={:#x} primary={:#x} weak={:#x}",
        names.transaction(reply.tid),
        reply.reachable_nodes,
        reply.primary_nodes,
        reply.weak_nodes
    )
}

/// DRBD's name of the packet and what matters of its content.
pub fn message(message: &Message, names: &mut Names) -> String {
    use Message as M;
    match message {
        M::ConnectionFeatures(f) => {
            let (min, max, from, to) = (f.protocol_min, f.protocol_max, f.sender_node_id, f.receiver_node_id);
            format!("CONNECTION_FEATURES {min}..{max} {:#x} node {from} to {to}", f.features)
        }
        M::AuthChallenge(_) => "AUTH_CHALLENGE".into(),
        M::AuthResponse(_) => "AUTH_RESPONSE".into(),
        M::Protocol(p) => format!("PROTOCOL {} flags={:#x}", p.protocol, p.connection_flags),
        M::ProtocolUpdate(p) => format!("PROTOCOL_UPDATE {}", p.protocol),
        M::SyncParam(_) => "SYNC_PARAM89".into(),
        M::Sizes(s) => {
            format!(
                "SIZES disk={} user={} current={} dds={:#x}",
                s.disk_bytes, s.user_bytes, s.current_bytes, s.dds_flags
            )
        }
        M::Uuids(u) => format!("UUIDS110 {}", uuids(u, names)),
        M::CurrentUuid { uuid, weak_nodes } => format!("CURRENT_UUID {} weak={weak_nodes:#x}", names.uuid(*uuid)),
        M::State(s) => format!("STATE {}", state(*s)),
        M::EnableReplicationNext(on) => format!("ENABLE_REPLICATION_NEXT {on}"),
        M::EnableReplication(on) => format!("ENABLE_REPLICATION {on}"),
        M::Data(h) => format!("DATA {}", data(h)),
        M::Trim(h) => format!("TRIM {}", data(h)),
        M::Zeroes(h) => format!("ZEROES {}", data(h)),
        M::DataRequest(r) => format!("DATA_REQUEST {}", request(r)),
        M::DataReply(h) => format!("DATA_REPLY {}", data(h)),
        M::Barrier(n) => format!("BARRIER {n}"),
        M::OutOfSync(r) => format!("OUT_OF_SYNC {}", range(*r)),
        M::RsDataRequest(r) => format!("RS_DATA_REQUEST {}", request(r)),
        M::RsThinRequest(r) => format!("RS_THIN_REQ {}", request(r)),
        M::RsDataReply(h) => format!("RS_DATA_REPLY {}", data(h)),
        M::CsumRsRequest { request: r, .. } => format!("CSUM_RS_REQUEST {}", request(r)),
        M::RsIsInSync(a) => format!("RS_IS_IN_SYNC {}", ack(a)),
        M::OvRequest(r) => format!("OV_REQUEST {}", request(r)),
        M::OvReply { request: r, .. } => format!("OV_REPLY {}", request(r)),
        M::OvResult { ack: a, result } => {
            let word = ["skipped", "in sync", "out of sync"].get(*result as usize).unwrap_or(&"?");
            format!("OV_RESULT {} {word}", ack(a))
        }
        M::Bitmap(BitmapChunk::Plain(bytes)) => format!("BITMAP {} bytes", bytes.len()),
        M::Bitmap(BitmapChunk::Compressed(bytes)) => format!("COMPRESSED_BITMAP {} bytes", bytes.len()),
        M::TwopcPrepare(p) => {
            format!("TWOPC_PREPARE {} mask={:#x} [{}]", twopc(&p.head, names), p.mask.0, state(p.value))
        }
        M::TwopcCommit(d) => {
            let (primary, reachable) = (d.primary_nodes, d.reachable_nodes);
            format!("TWOPC_COMMIT {} primary={primary:#x} reachable={reachable:#x}", twopc(&d.head, names))
        }
        M::TwopcAbort(d) => format!("TWOPC_ABORT {}", twopc(&d.head, names)),
        M::TwopcYes(r) => format!("TWOPC_YES {}", vote(r, names)),
        M::TwopcNo(r) => format!("TWOPC_NO {}", vote(r, names)),
        M::TwopcRetry(r) => format!("TWOPC_RETRY {}", vote(r, names)),
        M::Ping => "PING".into(),
        M::PingAck => "PING_ACK".into(),
        M::RecvAck(a) => format!("RECV_ACK {}", ack(a)),
        M::WriteAck(a) => format!("WRITE_ACK {}", ack(a)),
        M::WriteAckInSync(a) => format!("WRITE_ACK_IN_SYNC {}", ack(a)),
        M::RsWriteAck(a) => format!("RS_WRITE_ACK {}", ack(a)),
        M::NegAck(a) => format!("NEG_ACK {}", ack(a)),
        M::RsNegAck(a) => format!("RS_NEG_ACK {}", ack(a)),
        M::NegDataReply(a) => format!("NEG_DREPLY {}", ack(a)),
        M::NegRsDataReply(a) => format!("NEG_RS_DREPLY {}", ack(a)),
        M::RsCancel(a) => format!("RS_CANCEL {}", ack(a)),
        M::BarrierAck { barrier, set_size } => format!("BARRIER_ACK {barrier} set_size={set_size}"),
        M::ConfirmStable { set_size, .. } => format!("CONFIRM_STABLE set_size={set_size}"),
        M::PeerAck { nodes, dagtag } => format!("PEER_ACK nodes={nodes:#x} dagtag={dagtag}"),
        M::PeersInSync { range: r, nodes } => format!("PEERS_IN_SYNC {} nodes={nodes:#x}", range(*r)),
        other => names.rename(&format!("{other:?}")),
    }
}

fn superblock(sb: &Superblock, names: &mut Names) -> String {
    let mut text = format!("current={} {:?}", names.uuid(sb.current_uuid), sb.flags);
    for (node, peer) in sb.peers.iter().enumerate().filter(|(_, p)| p.slot.is_some()) {
        text += &format!(" bitmap[{node}]={} {:?}", names.uuid(peer.bitmap_uuid), peer.flags);
    }
    let history: Vec<String> = sb.history.iter().filter(|u| !u.is_zero()).map(|u| names.uuid(*u)).collect();
    text + &format!(" history={}", history.join(","))
}

pub fn superblock_line(sb: &Superblock, names: &mut Names) -> String {
    superblock(sb, names)
}

fn meta_block(layout: &Layout, offset: u64, bytes: &[u8; 4096], names: &mut Names) -> String {
    if offset == layout.superblock {
        let sb = Superblock::decode(bytes, offset).expect("the engine writes a superblock that decodes");
        return format!("superblock {}", superblock(&sb, names));
    }
    if offset < layout.superblock && offset >= layout.bitmap && offset < layout.bitmap + layout.bitmap_bytes {
        return format!("bitmap page {}", (offset - layout.bitmap) / 4096);
    }
    match AlBlock::decode(bytes) {
        AlBlock::Transaction(t) => {
            let extents: Vec<u32> = t.updates.iter().filter_map(|u| Some(u.1?.0)).collect();
            format!("activity log {} {extents:?}", t.number)
        }
        other => format!("activity log {other:?}"),
    }
}

pub fn disk_op(layout: &Layout, op: &DiskOp, names: &mut Names) -> String {
    let fua_word = |fua: &bool| if *fua { " fua" } else { "" };
    match op {
        DiskOp::Read { range: r } | DiskOp::ReadInto { range: r, .. } => format!("read {}", range(*r)),
        DiskOp::Write { range: r, fua, .. } => format!("write {}{}", range(*r), fua_word(fua)),
        DiskOp::Flush => "flush".into(),
        DiskOp::Discard { range: r } => format!("discard {}", range(*r)),
        DiskOp::WriteZeroes { range: r, fua, .. } => format!("write-zeroes {}{}", range(*r), fua_word(fua)),
        DiskOp::MetaWrite { blocks, preflush, fua } => {
            let order = format!("{}{}", if *preflush { " preflush" } else { "" }, fua_word(fua));
            let mut blocks: Vec<String> =
                blocks.iter().map(|b| meta_block(layout, b.offset, &b.bytes, names)).collect();
            blocks.dedup();
            format!("meta{order}: {}", blocks.join("; "))
        }
    }
}

pub fn event(event: &Event, names: &mut Names) -> String {
    match event {
        Event::Role { from, to, reason } => format!("role {from} -> {to} ({reason})"),
        Event::Disk { volume, from, to, reason } => format!("disk {volume} {from} -> {to} ({reason})"),
        Event::Connection { peer, from, to, reason } => {
            format!("connection {peer} {from} -> {to} ({})", names.rename(reason))
        }
        Event::PeerRole { peer, from, to } => format!("peer {peer} role {from} -> {to}"),
        Event::Replication { peer, volume, from, to, reason } => {
            format!("replication {peer}/{volume} {from} -> {to} ({reason})")
        }
        Event::PeerDisk { peer, volume, from, to, reason } => {
            format!("peer disk {peer}/{volume} {from} -> {to} ({reason})")
        }
        Event::Handshake { peer, volume, text } => format!("handshake {peer}/{volume}: {}", names.rename(text)),
        Event::SplitBrain { peer, volume } => format!("SPLIT BRAIN {peer}/{volume}"),
        Event::NewGeneration { volume, current, reason } => {
            format!("new generation {volume} {} ({reason})", names.uuid(*current))
        }
        Event::ResyncStarted { peer, volume, source, bits } => {
            format!("resync {peer}/{volume} started as {}, {bits} bits", side(*source))
        }
        Event::ResyncFinished { peer, volume, source, failed_blocks, .. } => {
            format!("resync {peer}/{volume} finished as {}, {failed_blocks} failed", side(*source))
        }
        Event::VerifyStarted { peer, volume, driving, from, to } => {
            format!("verify {peer}/{volume} started as {}, {from} to {to}", side(*driving))
        }
        Event::VerifyFinished { peer, volume, driving, different, skipped, complete, .. } => {
            let how = if *complete { "finished" } else { "interrupted" };
            format!("verify {peer}/{volume} {how} as {}, {different} different, {skipped} skipped", side(*driving))
        }
        Event::Size { volume, bytes } => format!("size {volume} {bytes}"),
        Event::Protocol { peer, from, to, reason } => format!("protocol towards {peer} {from:?} -> {to:?} ({reason})"),
        Event::Warning { text } => format!("warning {}", names.rename(text)),
    }
}

fn side(source: bool) -> &'static str {
    if source { "source" } else { "target" }
}
