//! Features, options, sizes and generations.

use super::reader::Reader;
use super::writer;
use crate::error::DecodeError;
use crate::message::{ConnectionFeatures, Message, ProtocolOptions, QueueLimits, Sizes, SyncParam, Uuids};
use crate::packet::NAME_BYTES_MAX;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use types::Uuid;
use types::range::SECTOR_BYTES;

/// Zero bytes between receiver_node_id and the end of CONNECTION_FEATURES.
const FEATURES_RESERVED: usize = 52;

pub(super) fn read_features(r: &mut Reader<'_>) -> Result<ConnectionFeatures, DecodeError> {
    let protocol_min = r.u32("protocol_min")?;
    let features = r.u32("feature_flags")?;
    let protocol_max = r.u32("protocol_max")?;
    let sender_node_id = r.u32("sender_node_id")?;
    let receiver_node_id = r.u32("receiver_node_id")?;
    // A newer peer may use these: they are for extensions.
    r.pad(FEATURES_RESERVED)?;
    Ok(ConnectionFeatures { protocol_min, protocol_max, features, sender_node_id, receiver_node_id })
}

pub(super) fn write_features(features: &ConnectionFeatures, out: &mut Vec<u8>) {
    writer::u32(out, features.protocol_min);
    writer::u32(out, features.features);
    writer::u32(out, features.protocol_max);
    writer::u32(out, features.sender_node_id);
    writer::u32(out, features.receiver_node_id);
    out.extend_from_slice(&[0; FEATURES_RESERVED]);
}

pub(super) fn read_protocol(r: &mut Reader<'_>) -> Result<ProtocolOptions, DecodeError> {
    let protocol = r.u32("protocol")?;
    if !(1..=3).contains(&protocol) {
        return Err(r.refuse_last(4, "protocol", protocol.into(), "must be 1 (A), 2 (B) or 3 (C)"));
    }
    let after_sb_0pri = r.u32("after_sb_0p")?;
    let after_sb_1pri = r.u32("after_sb_1p")?;
    let after_sb_2pri = r.u32("after_sb_2p")?;
    let connection_flags = r.u32("conn_flags")?;
    let two_primaries = r.u32("two_primaries")?;
    if two_primaries > 1 {
        return Err(r.refuse_last(4, "two_primaries", two_primaries.into(), "must be 0 or 1"));
    }
    let rest = r.rest_len();
    let integrity_alg = read_name(r, "integrity_alg", rest)?;
    Ok(ProtocolOptions {
        protocol,
        after_sb_0pri,
        after_sb_1pri,
        after_sb_2pri,
        connection_flags,
        two_primaries: two_primaries == 1,
        integrity_alg,
    })
}

pub(super) fn write_protocol(options: &ProtocolOptions, out: &mut Vec<u8>) {
    writer::u32(out, options.protocol);
    writer::u32(out, options.after_sb_0pri);
    writer::u32(out, options.after_sb_1pri);
    writer::u32(out, options.after_sb_2pri);
    writer::u32(out, options.connection_flags);
    writer::u32(out, options.two_primaries.into());
    check_name(&options.integrity_alg);
    out.extend_from_slice(options.integrity_alg.as_bytes());
    out.push(0);
}

pub(super) fn read_sync_param(r: &mut Reader<'_>) -> Result<SyncParam, DecodeError> {
    Ok(SyncParam {
        resync_rate_kib: r.u32("resync_rate")?,
        verify_alg: read_name(r, "verify_alg", NAME_BYTES_MAX as usize)?,
        csums_alg: read_name(r, "csums_alg", NAME_BYTES_MAX as usize)?,
        plan_ahead: r.u32("c_plan_ahead")?,
        delay_target: r.u32("c_delay_target")?,
        fill_target_sectors: r.u32("c_fill_target")?,
        max_rate_kib: r.u32("c_max_rate")?,
    })
}

pub(super) fn write_sync_param(param: &SyncParam, out: &mut Vec<u8>) {
    writer::u32(out, param.resync_rate_kib);
    for name in [&param.verify_alg, &param.csums_alg] {
        check_name(name);
        out.extend_from_slice(name.as_bytes());
        out.resize(out.len() + NAME_BYTES_MAX as usize - name.len(), 0);
    }
    writer::u32(out, param.plan_ahead);
    writer::u32(out, param.delay_target);
    writer::u32(out, param.fill_target_sectors);
    writer::u32(out, param.max_rate_kib);
}

/// An algorithm name that ends with NUL inside `len` bytes. What follows the NUL is not looked at.
fn read_name(r: &mut Reader<'_>, field: &'static str, len: usize) -> Result<String, DecodeError> {
    let bytes = r.take(field, len)?;
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else {
        return Err(r.refuse_last(len, field, len as u64, "this many bytes without the NUL that ends a name"));
    };
    match core::str::from_utf8(&bytes[..end]) {
        Ok(name) if name.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(name.to_string()),
        _ => Err(r.refuse_last(len, field, end as u64, "the name has characters that no algorithm name has")),
    }
}

fn check_name(name: &str) {
    assert!(name.len() < NAME_BYTES_MAX as usize, "algorithm name of {} bytes", name.len());
    assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "algorithm name {name:?}");
}

pub(super) fn read_sizes(r: &mut Reader<'_>, with_limits: bool) -> Result<Sizes, DecodeError> {
    Ok(Sizes {
        disk_bytes: r.sectors("d_size")?,
        user_bytes: r.sectors("u_size")?,
        current_bytes: r.sectors("c_size")?,
        io_bytes_max: r.u32("max_bio_size")?,
        queue_order: r.u16("queue_order_type")?,
        dds_flags: r.u16("dds_flags")?,
        limits: if with_limits { Some(read_limits(r)?) } else { None },
    })
}

/// Bytes; 0 says nothing. Anything but a power of two would let an application begin a request inside a sector.
fn read_block_size(r: &mut Reader<'_>, field: &'static str) -> Result<u32, DecodeError> {
    let bytes = r.u32(field)?;
    if bytes == 0 || (bytes.is_power_of_two() && u64::from(bytes) >= SECTOR_BYTES) {
        return Ok(bytes);
    }
    Err(r.refuse_last(4, field, bytes.into(), "must be 0 or a power of two from 512 on"))
}

fn read_limits(r: &mut Reader<'_>) -> Result<QueueLimits, DecodeError> {
    Ok(QueueLimits {
        physical_block_bytes: read_block_size(r, "physical_block_size")?,
        logical_block_bytes: read_block_size(r, "logical_block_size")?,
        alignment_offset: r.u32("alignment_offset")?,
        io_min: r.u32("io_min")?,
        io_opt: r.u32("io_opt")?,
        discard_enabled: r.u8("discard_enabled")?,
        discard_zeroes_data: r.u8("discard_zeroes_data")?,
        write_same_capable: r.u8("write_same_capable")?,
        bitmap_block_shift: r.u8("bitmap_block_shift")?,
    })
}

pub(super) fn write_sizes(sizes: &Sizes, with_limits: bool, out: &mut Vec<u8>) {
    assert_eq!(sizes.limits.is_some(), with_limits, "SIZES has queue limits exactly with feature WSAME: {sizes:?}");
    writer::sectors(out, sizes.disk_bytes);
    writer::sectors(out, sizes.user_bytes);
    writer::sectors(out, sizes.current_bytes);
    writer::u32(out, sizes.io_bytes_max);
    writer::u16(out, sizes.queue_order);
    writer::u16(out, sizes.dds_flags);
    let Some(limits) = &sizes.limits else { return };
    writer::u32(out, limits.physical_block_bytes);
    writer::u32(out, limits.logical_block_bytes);
    writer::u32(out, limits.alignment_offset);
    writer::u32(out, limits.io_min);
    writer::u32(out, limits.io_opt);
    out.push(limits.discard_enabled);
    out.push(limits.discard_zeroes_data);
    out.push(limits.write_same_capable);
    out.push(limits.bitmap_block_shift);
}

/// How many bitmap UUIDs a mask announces: only bits 0..=31 count, the rest comes from NOT.
fn announced(bitmap_mask: u64) -> usize {
    (bitmap_mask as u32).count_ones() as usize
}

pub(super) fn read_uuids(r: &mut Reader<'_>) -> Result<Uuids, DecodeError> {
    let current = Uuid(r.u64("current")?);
    let dirty_bits = r.u64("dirty_bits")?;
    let flags = r.u64("uuid_flags")?;
    let node_mask = r.u64("node_mask")?;
    let bitmap_mask = r.u64("bitmap_uuids_mask")?;
    let entries = r.rest_len() / 8;
    let Some(history_len) = entries.checked_sub(announced(bitmap_mask)) else {
        let violated = "announces more bitmap UUIDs than the packet holds";
        return Err(r.refuse_last(8, "bitmap_uuids_mask", bitmap_mask, violated));
    };
    let bitmap = read_uuid_list(r, "bitmap_uuid", announced(bitmap_mask))?;
    let history = read_uuid_list(r, "history_uuid", history_len)?;
    Ok(Uuids { current, dirty_bits, flags, node_mask, bitmap_mask, bitmap, history })
}

fn read_uuid_list(r: &mut Reader<'_>, field: &'static str, len: usize) -> Result<Vec<Uuid>, DecodeError> {
    (0..len).map(|_| r.u64(field).map(Uuid)).collect()
}

pub(super) fn write_uuids(uuids: &Uuids, out: &mut Vec<u8>) {
    let (given, announced) = (uuids.bitmap.len(), announced(uuids.bitmap_mask));
    assert_eq!(given, announced, "bitmap UUIDs given and announced by mask {:#x}", uuids.bitmap_mask);
    writer::u64(out, uuids.current.0);
    writer::u64(out, uuids.dirty_bits);
    writer::u64(out, uuids.flags);
    writer::u64(out, uuids.node_mask);
    writer::u64(out, uuids.bitmap_mask);
    for uuid in uuids.bitmap.iter().chain(&uuids.history) {
        writer::u64(out, uuid.0);
    }
}

pub(super) fn read_current_uuid(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    Ok(Message::CurrentUuid { uuid: Uuid(r.u64("uuid")?), weak_nodes: r.u64("weak_nodes")? })
}

pub(super) fn read_enable(r: &mut Reader<'_>) -> Result<u8, DecodeError> {
    let enable = r.u8("enable")?;
    r.pad(3)?;
    Ok(enable)
}
