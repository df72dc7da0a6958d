//! Links between nodes: each is a pair of sockets, each socket two streams of bytes.
//!
//! Fault model:
//! - A stream is in order; the two sockets and the two directions of a link are independent of each other. A frame
//!   arrives after its transmission time (bandwidth, per stream) plus latency plus jitter.
//! - A cut breaks a link at one moment: of each stream a prefix of its bytes arrives, cut at any byte; an incomplete
//!   frame is not seen by the engine. Each side learns of it at its own time; in a half-open link one side learns of it
//!   only late, when its own next frame is answered by a reset, or by its engine's timeouts.
//! - While the path between two nodes is down no link comes up. A crashed node's links are reset at the peer like cut
//!   ones (late ones included: a machine without power sends nothing).
//! - While a direction stalls, what is sent there arrives when the stall is over, if both still hold the link: an outage
//!   that TCP bridges, longer or shorter than the engine's patience.
//! - A link comes up when both ends want it; a coin decides who accepted the control socket (arbiter).
//! - Not modelled: corrupted bytes (TCP's checksum and the data integrity option), reordering inside a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use types::{LinkId, NodeId, VolumeNumber};
use wire::{Context, Header, HeaderForm, Message, Socket};

use crate::disk::{Runs, SECTOR, sectors};

/// One message on its way: the real bytes of everything but the bulk data, which travels as stamps.
#[derive(Clone)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub data: Option<Rc<Runs>>,
}

impl Frame {
    pub fn encode(
        context: &Context,
        volume: Option<VolumeNumber>,
        message: &Message,
        data: Option<Rc<Runs>>,
    ) -> Result<Frame, String> {
        let announced = message.payload_bytes();
        let carried = data.as_deref().map_or(0, |runs| sectors(runs) * SECTOR);
        if announced != carried {
            return Err(format!("{message:?} announces {announced} bytes and comes with {carried}"));
        }
        let mut bytes = Vec::new();
        wire::encode(context, volume, message, &mut bytes);
        Ok(Frame { bytes, data })
    }

    /// The packet's number too.
    pub fn decode(&self, context: &Context, socket: Socket) -> Result<(u16, Option<VolumeNumber>, Message), String> {
        let first = self.bytes.first_chunk::<8>().ok_or("a frame shorter than a header")?;
        let head = HeaderForm::classify(*first).map_err(|e| e.to_string())?.header_bytes();
        let header = Header::decode(self.bytes.get(..head).ok_or("a cut header")?).map_err(|e| e.to_string())?;
        let parts = wire::frame_parts(context, &header, socket).map_err(|e| e.to_string())?;
        let fixed = &self.bytes[head..];
        let carried = self.data.as_deref().map_or(0, |runs| sectors(runs) * SECTOR);
        if u64::from(parts.payload_bytes) != carried {
            return Err(format!("header announces {} bytes of data, {carried} follow", parts.payload_bytes));
        }
        let message = wire::decode(context, &header, socket, fixed).map_err(|e| e.to_string())?;
        Ok((header.command, wire::volume_of(context, &header), message))
    }

    pub fn len(&self) -> u64 {
        self.bytes.len() as u64 + self.data.as_deref().map_or(0, |runs| sectors(runs) * SECTOR)
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndState {
    /// The link exists, this side has not been told yet.
    Coming,
    Up,
    /// This side closed it or was told that it is gone.
    Down,
}

pub struct End {
    pub state: EndState,
    pub context: Context,
    /// When the last bytes of the data and the control stream *towards* this end arrive.
    arrival: [u64; 2],
}

/// Two ends, in order of node id.
pub struct Link {
    pub nodes: [NodeId; 2],
    pub arbiter: NodeId,
    ends: [End; 2],
    /// Bytes that arrive later than this are lost.
    pub cut: Option<u64>,
}

impl Link {
    fn index(&self, node: NodeId) -> usize {
        usize::from(self.nodes[1] == node)
    }
    pub fn end(&self, node: NodeId) -> &End {
        &self.ends[self.index(node)]
    }
    pub fn end_mut(&mut self, node: NodeId) -> &mut End {
        let index = self.index(node);
        &mut self.ends[index]
    }
    pub fn other(&self, node: NodeId) -> NodeId {
        self.nodes[1 - self.index(node)]
    }
    /// When a frame sent now arrives at `to`; None: never.
    pub fn arrival(&mut self, to: NodeId, socket: Socket, now: u64, transmission: u64, delay: u64) -> Option<u64> {
        let lane = usize::from(socket == Socket::Control);
        let end = self.end_mut(to);
        let at = (end.arrival[lane] + transmission).max(now + transmission + delay);
        end.arrival[lane] = at;
        self.cut.is_none_or(|cut| at <= cut).then_some(at)
    }
    pub fn last_arrival(&self, to: NodeId) -> u64 {
        let end = self.end(to);
        end.arrival[0].max(end.arrival[1])
    }
    /// Something is on its way on a data socket. Control sockets are not asked: pings never end.
    pub fn carries_data(&self, now: u64) -> bool {
        self.is_up() && self.ends.iter().any(|end| end.arrival[0] > now)
    }
    pub fn carries_anything(&self, now: u64) -> bool {
        self.ends.iter().any(|end| end.arrival.iter().any(|at| *at > now))
    }
    pub fn is_up(&self) -> bool {
        self.cut.is_none() && self.ends.iter().all(|end| end.state == EndState::Up)
    }
}

pub fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    if a < b { (a, b) } else { (b, a) }
}

#[derive(Default)]
pub struct Network {
    pub links: BTreeMap<LinkId, Link>,
    /// (who, to whom): since when a connection is wanted.
    pub wants: BTreeMap<(NodeId, NodeId), u64>,
    pub down: BTreeSet<(NodeId, NodeId)>,
    /// (from, to): until when nothing gets through.
    pub stalled: BTreeMap<(NodeId, NodeId), u64>,
    next: u64,
}

impl Network {
    /// A new link between two nodes (in order of id) that both want one; their wishes are fulfilled. `up_at`: when
    /// each is told; nothing arrives before.
    pub fn establish(&mut self, a: NodeId, b: NodeId, first_is_arbiter: bool, up_at: [u64; 2]) -> LinkId {
        let (a, b) = pair(a, b);
        self.wants.remove(&(a, b));
        self.wants.remove(&(b, a));
        self.next += 1;
        let id = LinkId(self.next);
        let end = |at| End { state: EndState::Coming, context: Context::UNAGREED, arrival: [at; 2] };
        let arbiter = if first_is_arbiter { a } else { b };
        self.links.insert(id, Link { nodes: [a, b], arbiter, ends: [end(up_at[0]), end(up_at[1])], cut: None });
        id
    }
    pub fn is_path_up(&self, a: NodeId, b: NodeId) -> bool {
        !self.down.contains(&pair(a, b))
    }
    /// Both ends know that it is gone.
    pub fn forget_dead(&mut self) {
        self.links.retain(|_, link| link.ends.iter().any(|end| end.state != EndState::Down));
    }
    /// The link that this node believes in.
    pub fn link_of(&self, node: NodeId, peer: NodeId) -> Option<(LinkId, &Link)> {
        let nodes = pair(node, peer);
        self.links
            .iter()
            .find(|(_, l)| (l.nodes[0], l.nodes[1]) == nodes && l.end(node).state == EndState::Up)
            .map(|(id, l)| (*id, l))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_in_order_whatever_the_jitter() {
        let (a, b) = (NodeId::new(0).unwrap(), NodeId::new(1).unwrap());
        let mut net = Network::default();
        let id = net.establish(a, b, true, [0, 0]);
        let link = net.links.get_mut(&id).unwrap();
        let slow = link.arrival(b, Socket::Data, 0, 10, 1000).unwrap();
        let fast = link.arrival(b, Socket::Data, 1, 10, 0).unwrap();
        assert!(fast > slow);
        let control = link.arrival(b, Socket::Control, 1, 10, 0).unwrap();
        assert!(control < slow, "the sockets are independent");
    }

    #[test]
    fn what_arrives_after_the_cut_is_lost() {
        let (a, b) = (NodeId::new(0).unwrap(), NodeId::new(1).unwrap());
        let mut net = Network::default();
        let id = net.establish(a, b, true, [0, 0]);
        let link = net.links.get_mut(&id).unwrap();
        link.cut = Some(100);
        assert!(link.arrival(b, Socket::Data, 0, 0, 50).is_some());
        assert!(link.arrival(b, Socket::Data, 0, 0, 150).is_none());
    }

    #[test]
    fn messages_travel_as_bytes() {
        let frame = Frame::encode(&Context::UNAGREED, None, &Message::Ping, None).unwrap();
        assert_eq!(
            frame.decode(&Context::UNAGREED, Socket::Control),
            Ok((wire::Packet::Ping.number(), None, Message::Ping))
        );
        assert!(frame.decode(&Context::UNAGREED, Socket::Data).is_err());
    }
}
