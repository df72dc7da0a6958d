//! Writes, reads, resync and verify requests, and everything that acknowledges them.

use super::reader::Reader;
use super::writer;
use crate::error::DecodeError;
use crate::message::{BlockAck, BlockRequest, Dagtag, DataFlags, DataHead, Message};
use crate::packet::{BULK_BYTES_MAX, DISCARD_BYTES_MAX};
use alloc::vec::Vec;
use types::ByteRange;
use types::range::SECTOR_BYTES;

const SECTOR: u32 = SECTOR_BYTES as u32;

/// Block id where none is meant: resync below protocol 122.
pub const ID_SYNCER: u64 = u64::MAX;

/// Result of a verified block, as OV_RESULT_ID has it.
pub mod ov_result {
    pub const SKIPPED: u32 = 0;
    pub const IN_SYNC: u32 = 1;
    pub const OUT_OF_SYNC: u32 = 2;
}

/// OV_RESULT of protocols below 122 says the result with the block id: this plus the result's number.
const OV_RESULT_BLOCK_ID: u64 = 4710;

#[inline]
fn read_head(r: &mut Reader<'_>, payload_bytes: u32) -> Result<DataHead, DecodeError> {
    let sector = r.u64("sector")?;
    let range = r.range(0, sector, payload_bytes)?;
    Ok(DataHead { range, block_id: r.u64("block_id")?, seq: r.u32("seq_num")?, flags: DataFlags(r.u32("dp_flags")?) })
}

/// DATA. Without data it is an empty flush and must say so.
pub(super) fn read_write(r: &mut Reader<'_>, payload_bytes: u32) -> Result<DataHead, DecodeError> {
    let head = read_head(r, payload_bytes)?;
    if head.range.is_empty() && !head.flags.has(DataFlags::FLUSH) {
        return Err(r.refuse_last(4, "dp_flags", head.flags.0.into(), "a write without data must be a flush"));
    }
    Ok(head)
}

/// DATA_REPLY, RS_DATA_REPLY.
pub(super) fn read_reply(r: &mut Reader<'_>, payload_bytes: u32) -> Result<DataHead, DecodeError> {
    if payload_bytes == 0 {
        return Err(r.refuse_start("data", 0, "a reply must carry data"));
    }
    read_head(r, payload_bytes)
}

pub(super) fn write_head(head: &DataHead, out: &mut Vec<u8>) {
    writer::block(out, head.range, head.block_id, head.seq, head.flags.0);
}

/// TRIM, ZEROES: no payload, no digest.
pub(super) fn read_trim(r: &mut Reader<'_>) -> Result<DataHead, DecodeError> {
    let sector = r.u64("sector")?;
    let block_id = r.u64("block_id")?;
    let seq = r.u32("seq_num")?;
    let flags = DataFlags(r.u32("dp_flags")?);
    let size = r.block_bytes("size", SECTOR, DISCARD_BYTES_MAX)?;
    Ok(DataHead { range: r.range(0, sector, size)?, block_id, seq, flags })
}

pub(super) fn write_trim(head: &DataHead, out: &mut Vec<u8>) {
    write_head(head, out);
    writer::len(out, head.range);
}

pub(super) fn read_request(r: &mut Reader<'_>, with_dagtag: bool) -> Result<BlockRequest, DecodeError> {
    let sector = r.u64("sector")?;
    let block_id = r.u64("block_id")?;
    let size = r.block_bytes("blksize", SECTOR, BULK_BYTES_MAX)?;
    let range = r.range(0, sector, size)?;
    if !with_dagtag {
        r.pad(4)?;
        return Ok(BlockRequest { range, block_id, dagtag: None });
    }
    let dagtag = Dagtag { node: r.u32("dagtag_node_id")?, tag: r.u64("dagtag")? };
    Ok(BlockRequest { range, block_id, dagtag: Some(dagtag) })
}

pub(super) fn write_request(request: &BlockRequest, out: &mut Vec<u8>) {
    let node = request.dagtag.map_or(0, |dagtag| dagtag.node);
    writer::block(out, request.range, request.block_id, writer::len_of(request.range), node);
    if let Some(dagtag) = request.dagtag {
        writer::u64(out, dagtag.tag);
    }
}

/// The length may be zero: an empty flush is acknowledged too.
pub(super) fn read_ack(r: &mut Reader<'_>) -> Result<BlockAck, DecodeError> {
    let sector = r.u64("sector")?;
    let block_id = r.u64("block_id")?;
    let size = r.block_bytes("blksize", 0, u32::MAX)?;
    Ok(BlockAck { range: r.range(0, sector, size)?, block_id, seq: r.u32("seq_num")? })
}

pub(super) fn write_ack(ack: &BlockAck, out: &mut Vec<u8>) {
    writer::block(out, ack.range, ack.block_id, writer::len_of(ack.range), ack.seq);
}

/// OUT_OF_SYNC.
pub(super) fn read_block_desc(r: &mut Reader<'_>) -> Result<ByteRange, DecodeError> {
    let sector = r.u64("sector")?;
    let size = r.block_bytes("blksize", SECTOR, u32::MAX)?;
    r.pad(4)?;
    r.range(0, sector, size)
}

pub(super) fn write_block_desc(range: ByteRange, out: &mut Vec<u8>) {
    writer::sector(out, range);
    writer::len(out, range);
    writer::u32(out, 0);
}

/// RS_DEALLOCATED of protocols below 122, which have no block id here.
pub(super) fn read_deallocated(r: &mut Reader<'_>) -> Result<BlockAck, DecodeError> {
    Ok(BlockAck { range: read_block_desc(r)?, block_id: ID_SYNCER, seq: 0 })
}

pub(super) fn read_peers_in_sync(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let sector = r.u64("sector")?;
    let nodes = r.u64("mask")?;
    let size = r.block_bytes("size", SECTOR, u32::MAX)?;
    r.pad(4)?;
    Ok(Message::PeersInSync { range: r.range(0, sector, size)?, nodes })
}

pub(super) fn write_peers_in_sync(range: ByteRange, nodes: u64, out: &mut Vec<u8>) {
    writer::sector(out, range);
    writer::u64(out, nodes);
    writer::len(out, range);
    writer::u32(out, 0);
}

/// The form below 122. The block id says the result; the message gets the id of resync.
pub(super) fn read_ov_result(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let ack = read_ack(r)?;
    let result = match ack.block_id.checked_sub(OV_RESULT_BLOCK_ID) {
        Some(0) => ov_result::SKIPPED,
        Some(1) => ov_result::IN_SYNC,
        Some(2) => ov_result::OUT_OF_SYNC,
        _ => return Err(r.refuse_at(8, "block_id", ack.block_id, "must be 4710, 4711 or 4712")),
    };
    Ok(Message::OvResult { ack: BlockAck { block_id: ID_SYNCER, ..ack }, result })
}

pub(super) fn read_ov_result_id(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let ack = read_ack(r)?;
    let result = r.u32("result")?;
    if result > ov_result::OUT_OF_SYNC {
        return Err(r.refuse_last(4, "result", result.into(), "must be 0, 1 or 2"));
    }
    r.pad(4)?;
    Ok(Message::OvResult { ack, result })
}

pub(super) fn write_ov_result(ack: &BlockAck, result: u32, with_id: bool, out: &mut Vec<u8>) {
    assert!(result <= ov_result::OUT_OF_SYNC, "verify result {result}");
    if !with_id {
        let block_id = OV_RESULT_BLOCK_ID + u64::from(result);
        return write_ack(&BlockAck { block_id, ..*ack }, out);
    }
    write_ack(ack, out);
    writer::u32(out, result);
    writer::u32(out, 0);
}

pub(super) fn read_barrier(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let barrier = r.u32("barrier")?;
    r.pad(4)?;
    Ok(Message::Barrier(barrier))
}

pub(super) fn read_barrier_ack(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    Ok(Message::BarrierAck { barrier: r.u32("barrier")?, set_size: r.u32("set_size")? })
}

pub(super) fn read_confirm_stable(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let oldest_block_id = r.u64("oldest_block_id")?;
    let youngest_block_id = r.u64("youngest_block_id")?;
    let set_size = r.u32("set_size")?;
    r.pad(4)?;
    Ok(Message::ConfirmStable { oldest_block_id, youngest_block_id, set_size })
}
