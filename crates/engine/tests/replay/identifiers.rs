//! Numbers that differ from run to run, and which of the kernel's stands for which of ours.
//!
//! Each space is a bijection, learned where the engine sends what the replaced kernel sent; from then on it must hold.
//! What the other kernel made up stands for itself. Block ids are addresses that a kernel uses again: a new request
//! binds its id anew.

use std::collections::{BTreeMap, BTreeSet};
use types::{NodeId, Uuid};
use wire::Message;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Space {
    Uuid,
    Transaction,
    Barrier,
    Block,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Made by the sender of the message.
    Sender,
    /// Made by its receiver, echoed.
    Receiver,
    /// Made by the sender in an earlier message.
    SenderBefore,
    /// Either, known by the bijection.
    Anybody,
}

#[derive(Clone, Default)]
pub struct Identifiers {
    known: BTreeMap<(Space, u64), u64>,
    taken: BTreeSet<(Space, u64)>,
}

impl Identifiers {
    pub fn new() -> Identifiers {
        let mut new = Identifiers::default();
        for uuid in [0, Uuid::JUST_CREATED.0 >> 1] {
            new.bind(Space::Uuid, uuid, uuid);
        }
        new
    }

    fn bind(&mut self, space: Space, kernel: u64, ours: u64) {
        self.known.insert((space, kernel), ours);
        self.taken.insert((space, ours));
    }

    /// Barriers and block ids mean nothing on another link.
    pub fn new_link(&mut self) {
        self.known.retain(|(space, _), _| *space < Space::Barrier);
        self.taken.retain(|(space, _)| *space < Space::Barrier);
    }

    /// A message of the other kernel to the replaced one, as it would have been for the engine.
    pub fn for_engine(&mut self, message: &Message) -> Message {
        let mut message = message.clone();
        visit(&mut message, &mut |space, _, origin, id| {
            let known = self.known.get(&(space, *id)).copied();
            match (origin, space, known) {
                (Origin::Sender | Origin::SenderBefore, ..) => {}
                (_, _, Some(ours)) => *id = ours,
                (_, Space::Uuid | Space::Transaction, None) => self.bind(space, *id, *id),
                _ => {}
            }
        });
        message
    }

    /// What the replaced kernel sent in the engine's identifiers, learned from what the engine `sent` in its place.
    pub fn expected(&mut self, message: &Message, sent: &Message) -> Message {
        let mut ours: BTreeMap<String, u64> = BTreeMap::new();
        visit(&mut sent.clone(), &mut |_, key, _, id| {
            ours.insert(key, *id);
        });
        let mut message = message.clone();
        visit(&mut message, &mut |space, key, origin, id| {
            let ours = ours.get(&key).copied();
            match (origin, self.known.get(&(space, *id)).copied(), ours) {
                (Origin::Receiver, ..) => {}
                (Origin::Sender, _, Some(ours)) if space == Space::Block => {
                    self.bind(space, *id, ours);
                    *id = ours;
                }
                (_, Some(known), _) => *id = known,
                (Origin::SenderBefore, ..) => {}
                (_, None, Some(ours)) if !self.taken.contains(&(space, ours)) => {
                    self.bind(space, *id, ours);
                    *id = ours;
                }
                _ => {}
            }
        });
        message
    }
}

fn visit(message: &mut Message, f: &mut dyn FnMut(Space, String, Origin, &mut u64)) {
    let mut block = |origin, id: &mut u64| f(Space::Block, "block".into(), origin, id);
    match message {
        Message::Data(h) | Message::Trim(h) | Message::Zeroes(h) => block(Origin::Sender, &mut h.block_id),
        Message::DataRequest(r) | Message::RsDataRequest(r) | Message::RsThinRequest(r) | Message::OvRequest(r) => {
            block(Origin::Sender, &mut r.block_id);
        }
        Message::CsumRsRequest { request, .. } => block(Origin::Sender, &mut request.block_id),
        // The id is that of the target's request, which sends this.
        Message::OvResult { ack, .. } => block(Origin::SenderBefore, &mut ack.block_id),
        Message::OvReply { request, .. } => block(Origin::Receiver, &mut request.block_id),
        Message::RsWriteAck(a) | Message::RsNegAck(a) => block(Origin::SenderBefore, &mut a.block_id),
        Message::DataReply(h) | Message::RsDataReply(h) => block(Origin::Receiver, &mut h.block_id),
        Message::RecvAck(a)
        | Message::WriteAck(a)
        | Message::WriteAckInSync(a)
        | Message::NegAck(a)
        | Message::NegDataReply(a)
        | Message::NegRsDataReply(a)
        | Message::RsIsInSync(a)
        | Message::RsDeallocated(a)
        | Message::RsCancel(a) => block(Origin::Receiver, &mut a.block_id),
        Message::Barrier(barrier) => small(f, Space::Barrier, Origin::Sender, barrier),
        Message::BarrierAck { barrier, .. } => small(f, Space::Barrier, Origin::Receiver, barrier),
        Message::TwopcPrepare(p) => small(f, Space::Transaction, Origin::Anybody, &mut p.head.tid),
        Message::TwopcCommit(d) | Message::TwopcAbort(d) => {
            small(f, Space::Transaction, Origin::Anybody, &mut d.head.tid)
        }
        Message::TwopcYes(r) | Message::TwopcNo(r) | Message::TwopcRetry(r) => {
            small(f, Space::Transaction, Origin::Anybody, &mut r.tid);
        }
        Message::CurrentUuid { uuid, .. } => generation(f, "current".into(), uuid),
        Message::Uuids(u) => {
            generation(f, "current".into(), &mut u.current);
            let nodes = NodeId::all().filter(|n| u.bitmap_mask & (1 << n.get()) != 0);
            for (node, uuid) in nodes.zip(&mut u.bitmap) {
                generation(f, format!("bitmap {node}"), uuid);
            }
            for (age, uuid) in u.history.iter_mut().enumerate() {
                generation(f, format!("history {age}"), uuid);
            }
        }
        _ => {}
    }
}

fn small(f: &mut dyn FnMut(Space, String, Origin, &mut u64), space: Space, origin: Origin, id: &mut u32) {
    let mut wide = u64::from(*id);
    f(space, String::new(), origin, &mut wide);
    *id = u32::try_from(wide).expect("identifiers of one space have one width");
}

/// The lowest bit says whether a Primary uses it; it is compared, not mapped.
fn generation(f: &mut dyn FnMut(Space, String, Origin, &mut u64), key: String, uuid: &mut Uuid) {
    let mut upper = uuid.0 >> 1;
    f(Space::Uuid, key, Origin::Anybody, &mut upper);
    *uuid = Uuid(upper << 1 | uuid.0 & 1);
}
