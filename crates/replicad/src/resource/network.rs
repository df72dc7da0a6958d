//! The resource's links: pairs of streams, by peer.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::{Input, LinkError};
use types::{LinkId, NodeId};
use wire::{Context, Socket};

use crate::links::{ConnectorHandle, Established, PathConfig};
use crate::payloads::Payloads;
use crate::slots::Key;
use crate::stream::{Outgoing, Owner, Streams, queue_bytes_max};

struct Link {
    id: LinkId,
    data: Key,
    control: Key,
    context: Context,
}

impl Link {
    fn stream(&self, socket: Socket) -> Key {
        match socket {
            Socket::Data => self.data,
            Socket::Control => self.control,
        }
    }
}

pub struct Network {
    connectors: BTreeMap<NodeId, ConnectorHandle>,
    links: BTreeMap<NodeId, Link>,
    /// Peers that the engine wants and does not have, with the number of the attempt.
    wanted: BTreeMap<NodeId, u64>,
    attempts: u64,
    links_made: u64,
}

impl Network {
    pub fn new(connectors: BTreeMap<NodeId, ConnectorHandle>) -> Network {
        Network { connectors, links: BTreeMap::new(), wanted: BTreeMap::new(), attempts: 0, links_made: 0 }
    }

    pub fn connect(&mut self, peer: NodeId, delay: Duration) {
        self.attempts += 1;
        self.wanted.insert(peer, self.attempts);
        let connector = self.connectors.get(&peer).unwrap_or_else(|| panic!("{peer:?} is not configured"));
        connector.connect(self.attempts, delay);
    }

    pub fn set_paths(&mut self, paths: BTreeMap<NodeId, PathConfig>) {
        for (peer, path) in paths {
            if let Some(connector) = self.connectors.get(&peer) {
                connector.configure(path);
            }
        }
    }

    pub fn stop_connecting(&mut self, peer: NodeId) {
        self.wanted.remove(&peer);
        if let Some(connector) = self.connectors.get(&peer) {
            connector.stop();
        }
    }

    /// `None`: nobody wants these sockets any more; they close.
    pub fn established(&mut self, peer: NodeId, sockets: Established, streams: &mut Streams) -> Option<Input> {
        if self.wanted.get(&peer) != Some(&sockets.attempt) {
            return None;
        }
        assert!(!self.links.contains_key(&peer), "{peer:?} is wanted while it has a link");
        self.wanted.remove(&peer);
        self.links_made += 1;
        let id = LinkId(self.links_made);
        let data = streams.open(sockets.data, Owner { peer, link: id, socket: Socket::Data });
        let control = streams.open(sockets.control, Owner { peer, link: id, socket: Socket::Control });
        self.links.insert(peer, Link { id, data, control, context: Context::UNAGREED });
        Some(Input::LinkUp { peer, link: id, arbiter: sockets.arbiter })
    }

    fn current(&self, peer: NodeId, link: LinkId) -> Option<&Link> {
        self.links.get(&peer).filter(|current| current.id == link)
    }

    pub fn context(&self, owner: Owner) -> Option<Context> {
        self.current(owner.peer, owner.link).map(|link| link.context)
    }

    pub fn set_context(&mut self, peer: NodeId, link: LinkId, protocol: u32, features: u32) {
        if let Some(current) = self.links.get_mut(&peer).filter(|current| current.id == link) {
            current.context = Context { protocol, features, integrity_digest_len: 0 };
        }
    }

    /// Queues a message; nothing happens on a link that is gone. An error is the end of the link.
    pub fn send(
        &mut self,
        to: Owner,
        outgoing: &Outgoing,
        streams: &mut Streams,
        payloads: &mut Payloads,
    ) -> Result<(), LinkError> {
        let Some(current) = self.current(to.peer, to.link) else { return Ok(()) };
        if streams.send(current.stream(to.socket), &current.context, outgoing, payloads) {
            return Ok(());
        }
        let most = queue_bytes_max(to.socket);
        Err(LinkError::Failed(format!(
            "the peer does not read: {most} bytes are queued for its {:?} socket",
            to.socket
        )))
    }

    /// The engine is through with it: what is queued still goes out.
    pub fn close(&mut self, peer: NodeId, link: LinkId, streams: &mut Streams) {
        if self.current(peer, link).is_some()
            && let Some(closing) = self.links.remove(&peer)
        {
            streams.close(closing.data);
            streams.close(closing.control);
        }
    }

    /// The link is of no use any more. `None` if it was gone already.
    pub fn fail(&mut self, peer: NodeId, link: LinkId, error: LinkError, streams: &mut Streams) -> Option<Input> {
        self.current(peer, link)?;
        let failed = self.links.remove(&peer)?;
        streams.kill(failed.data);
        streams.kill(failed.control);
        Some(Input::LinkDown { peer, link, error })
    }

    pub fn close_all(&mut self, streams: &mut Streams) {
        self.wanted.clear();
        for link in std::mem::take(&mut self.links).into_values() {
            streams.close(link.data);
            streams.close(link.control);
        }
    }
}
