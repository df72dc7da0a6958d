//! Digests of payloads. The engine has no bytes: it asks the driver ([`Effect::Digest`]) and keeps the payload until the
//! answer comes. Who asked may be gone by then (a link that broke, a disk that failed): the answer finds nobody, and the
//! payload goes.
//!
//! What is compared by digest: blocks of a resync that the target may have already (`resync`, `serve`; rule RS-10), and
//! blocks of an online verify (`verify`; rules VF-*).

use alloc::format;

use types::{NodeId, PayloadId};
use wire::digest::{Digest, DigestAlgorithm};
use wire::message::SyncParam;

use crate::Engine;
use crate::api::{DigestId, Effect};
use crate::slab::Key;

/// A payload that the driver digests.
pub(crate) struct Digesting {
    payload: PayloadId,
    owner: DigestOwner,
}

/// What a digest is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DigestOwner {
    /// A sync target's own block, which the source is to compare.
    Resync(Key),
    /// A block that a peer asked for with a digest of its own, or whose digest it asked for.
    Served(Key),
    /// A verify source's own block.
    Verify(Key),
}

/// The hashes that the peer said it has, by name; empty: none.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct PeerHashes {
    verify: alloc::string::String,
    csums: alloc::string::String,
}

impl Engine {
    /// The payload belongs to this room until the driver has answered.
    pub(crate) fn digest(&mut self, payload: PayloadId, algorithm: DigestAlgorithm, owner: DigestOwner) {
        let id = DigestId(self.digests.insert(Digesting { payload, owner }));
        self.emit(Effect::Digest { id, payload, algorithm });
    }

    pub(crate) fn digest_done(&mut self, id: DigestId, digest: Digest) {
        let Some(Digesting { payload, owner }) = self.digests.remove(id.0) else {
            panic!("the driver answered {id:?}, which was not asked for");
        };
        match owner {
            DigestOwner::Resync(key) => self.resync_block_digested(key, payload, digest),
            DigestOwner::Served(key) => self.served_digested(key, payload, digest),
            DigestOwner::Verify(key) => self.verify_block_digested(key, payload, digest),
        }
    }

    // ------------------------------------------------------------------ what was agreed on

    pub(crate) fn sync_param_received(&mut self, peer: NodeId, param: SyncParam) {
        let theirs = PeerHashes { verify: param.verify_alg, csums: param.csums_alg };
        let Some(link) = &mut self.peer_mut(peer).link else { return };
        // Said once a volume, and again when it changes.
        if link.hashes.as_ref() == Some(&theirs) {
            return;
        }
        let config = &self.peer(peer).config;
        let differs =
            [("verify-alg", &config.verify_alg, &theirs.verify), ("csums-alg", &config.csums_alg, &theirs.csums)];
        let warnings: alloc::vec::Vec<_> = differs
            .into_iter()
            .filter(|(_, mine, theirs)| mine != theirs)
            .map(|(option, mine, theirs)| {
                format!("{option} is {mine:?} here and {theirs:?} on node {peer}: it is not used until they are equal")
            })
            .collect();
        warnings.into_iter().for_each(|text| self.warn(text));
        self.peer_mut(peer).link.as_mut().expect("looked at it above").hashes = Some(theirs);
    }

    /// Both ends compare blocks of a resync by this hash.
    pub(crate) fn agreed_csums(&self, peer: NodeId) -> Option<DigestAlgorithm> {
        let entry = self.peer(peer);
        let theirs = entry.link.as_ref()?.hashes.as_ref()?;
        DigestAlgorithm::parse(&theirs.csums).filter(|_| entry.config.csums_alg == theirs.csums)
    }

    /// Both ends verify by this hash.
    pub(crate) fn agreed_verify(&self, peer: NodeId) -> Option<DigestAlgorithm> {
        let entry = self.peer(peer);
        let theirs = entry.link.as_ref()?.hashes.as_ref()?;
        DigestAlgorithm::parse(&theirs.verify).filter(|_| entry.config.verify_alg == theirs.verify)
    }
}
