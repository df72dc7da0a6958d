//! Cluster-wide state changes, in the layout of feature 2PC_V2. There is no other one here.

use super::LayoutV2;
use super::reader::Reader;
use super::writer;
use crate::error::DecodeError;
use crate::message::{StateWord, TwopcDecision, TwopcHead, TwopcPrepare, TwopcReply, TwopcResize};
use alloc::vec::Vec;
use types::NodeId;

/// Target -1: all nodes.
const ALL: u8 = 0xff;

fn read_head(r: &mut Reader<'_>) -> Result<TwopcHead, DecodeError> {
    let tid = read_tid(r)?;
    let flags = r.u32("flags")?;
    r.pad(2)?;
    let initiator = r.u8("initiator_node_id")?;
    let Some(initiator) = NodeId::new(initiator) else {
        return Err(r.refuse_last(1, "initiator_node_id", initiator.into(), "is no node id (0..=31)"));
    };
    let target = match r.u8("target_node_id")? {
        ALL => None,
        number => match NodeId::new(number) {
            Some(node) => Some(node),
            None => {
                let violated = "is neither a node id (0..=31) nor -1";
                return Err(r.refuse_last(1, "target_node_id", number.into(), violated));
            }
        },
    };
    Ok(TwopcHead { tid, flags, initiator, target, nodes_to_reach: r.u64("nodes_to_reach")? })
}

fn read_tid(r: &mut Reader<'_>) -> Result<u32, DecodeError> {
    match r.u32("tid")? {
        0 => Err(r.refuse_last(4, "tid", 0, "must not be zero")),
        tid => Ok(tid),
    }
}

fn write_head(head: &TwopcHead, _: LayoutV2, out: &mut Vec<u8>) {
    assert!(head.tid != 0, "a transaction needs an id: {head:?}");
    writer::u32(out, head.tid);
    writer::u32(out, head.flags);
    writer::u16(out, 0);
    out.push(head.initiator.get());
    out.push(head.target.map_or(ALL, NodeId::get));
    writer::u64(out, head.nodes_to_reach);
}

pub(super) fn read_prepare(r: &mut Reader<'_>) -> Result<TwopcPrepare, DecodeError> {
    let head = read_head(r)?;
    r.pad(8)?;
    let mask = StateWord(r.u32("mask")?);
    let value = StateWord(r.u32("val")?);
    Ok(TwopcPrepare { head, mask, value })
}

pub(super) fn write_prepare(prepare: &TwopcPrepare, layout: LayoutV2, out: &mut Vec<u8>) {
    write_head(&prepare.head, layout, out);
    writer::u64(out, 0);
    writer::u32(out, prepare.mask.0);
    writer::u32(out, prepare.value.0);
}

pub(super) fn read_resize(r: &mut Reader<'_>) -> Result<TwopcResize, DecodeError> {
    let head = read_head(r)?;
    let user_bytes = r.sectors("user_size")?;
    let dds_flags = r.u16("dds_flags")?;
    r.pad(6)?;
    Ok(TwopcResize { head, user_bytes, dds_flags })
}

pub(super) fn write_resize(resize: &TwopcResize, layout: LayoutV2, out: &mut Vec<u8>) {
    write_head(&resize.head, layout, out);
    writer::sectors(out, resize.user_bytes);
    writer::u16(out, resize.dds_flags);
    out.extend_from_slice(&[0; 6]);
}

pub(super) fn read_decision(r: &mut Reader<'_>) -> Result<TwopcDecision, DecodeError> {
    let head = read_head(r)?;
    Ok(TwopcDecision { head, primary_nodes: r.u64("primary_nodes")?, reachable_nodes: r.u64("reachable_nodes")? })
}

pub(super) fn write_decision(decision: &TwopcDecision, layout: LayoutV2, out: &mut Vec<u8>) {
    write_head(&decision.head, layout, out);
    writer::u64(out, decision.primary_nodes);
    writer::u64(out, decision.reachable_nodes);
}

pub(super) fn read_reply(r: &mut Reader<'_>) -> Result<TwopcReply, DecodeError> {
    let tid = read_tid(r)?;
    let initiator = r.node("initiator_node_id")?;
    Ok(TwopcReply {
        tid,
        initiator,
        reachable_nodes: r.u64("reachable_nodes")?,
        primary_nodes: r.u64("primary_nodes")?,
        weak_nodes: r.u64("weak_nodes")?,
    })
}

pub(super) fn write_reply(reply: &TwopcReply, out: &mut Vec<u8>) {
    assert!(reply.tid != 0, "an answer needs the transaction's id: {reply:?}");
    writer::u32(out, reply.tid);
    writer::u32(out, reply.initiator.get().into());
    writer::u64(out, reply.reachable_nodes);
    writer::u64(out, reply.primary_nodes);
    writer::u64(out, reply.weak_nodes);
}
