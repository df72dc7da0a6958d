//! Identifiers. All are plain numbers on the wire or on disk; here each is a type of its own.

use core::fmt;

/// Largest number of nodes in a cluster. Source: DRBD 9, node ids 0..=31 (docs/wire.md "features").
pub const NODES_MAX: usize = 32;

/// A node of the cluster, 0..=31, the same on every node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u8", into = "u8"))]
pub struct NodeId(u8);

#[cfg(feature = "serde")]
impl TryFrom<u8> for NodeId {
    type Error = &'static str;
    fn try_from(id: u8) -> Result<NodeId, Self::Error> {
        NodeId::new(id).ok_or("a node id is 0 to 31")
    }
}
#[cfg(feature = "serde")]
impl From<NodeId> for u8 {
    fn from(id: NodeId) -> u8 {
        id.0
    }
}

impl NodeId {
    /// `None` above 31.
    pub const fn new(id: u8) -> Option<NodeId> {
        if (id as usize) < NODES_MAX { Some(NodeId(id)) } else { None }
    }
    pub const fn get(self) -> u8 {
        self.0
    }
    pub const fn index(self) -> usize {
        self.0 as usize
    }
    pub fn all() -> impl Iterator<Item = NodeId> {
        (0..NODES_MAX as u8).map(NodeId)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.0)
    }
}
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of nodes, bit n = node n. The wire carries it as u64; masks made there with NOT have bits above 31 set,
/// `from_wire` drops them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct NodeSet(u32);

impl NodeSet {
    pub const EMPTY: NodeSet = NodeSet(0);
    pub const ALL: NodeSet = NodeSet(u32::MAX);

    pub const fn only(node: NodeId) -> NodeSet {
        NodeSet(1 << node.0)
    }
    pub const fn from_wire(mask: u64) -> NodeSet {
        NodeSet(mask as u32)
    }
    pub const fn to_wire(self) -> u64 {
        self.0 as u64
    }
    /// The form DRBD puts on the wire for "all but these": NOT over 64 bits.
    pub const fn complement_to_wire(self) -> u64 {
        !(self.0 as u64)
    }
    pub const fn complement(self) -> NodeSet {
        NodeSet(!self.0)
    }
    pub const fn contains(self, node: NodeId) -> bool {
        self.0 & (1 << node.0) != 0
    }
    pub const fn with(self, node: NodeId) -> NodeSet {
        NodeSet(self.0 | (1 << node.0))
    }
    pub const fn without(self, node: NodeId) -> NodeSet {
        NodeSet(self.0 & !(1 << node.0))
    }
    pub const fn union(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 | other.0)
    }
    pub const fn intersection(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 & other.0)
    }
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }
    /// Ascending.
    pub fn iter(self) -> impl Iterator<Item = NodeId> + use<> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let node = NodeId::new(left.trailing_zeros() as u8)?;
            left &= left - 1;
            Some(node)
        })
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> NodeSet {
        nodes.into_iter().fold(NodeSet::EMPTY, NodeSet::with)
    }
}
impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(NodeId::get)).finish()
    }
}

/// A volume of a resource, 0..=65534. 65535 on the wire means "the whole connection".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u16", into = "u16"))]
pub struct VolumeNumber(u16);

#[cfg(feature = "serde")]
impl TryFrom<u16> for VolumeNumber {
    type Error = &'static str;
    fn try_from(number: u16) -> Result<VolumeNumber, Self::Error> {
        VolumeNumber::new(number).ok_or("a volume number is 0 to 65534")
    }
}
#[cfg(feature = "serde")]
impl From<VolumeNumber> for u16 {
    fn from(number: VolumeNumber) -> u16 {
        number.0
    }
}

impl VolumeNumber {
    pub const fn new(number: u16) -> Option<VolumeNumber> {
        if number < u16::MAX { Some(VolumeNumber(number)) } else { None }
    }
    pub const fn get(self) -> u16 {
        self.0
    }
}
impl fmt::Debug for VolumeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vol{}", self.0)
    }
}
impl fmt::Display for VolumeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A bitmap slot of a volume's metadata, 0..max_peers. Which node owns it is written in the superblock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Slot(pub u8);

/// One request of the application, chosen by the frontend, unique among those not completed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct RequestId(pub u64);

/// One operation on a disk, chosen by the engine, unique over the life of the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct IoId(pub u64);

/// A buffer that the driver holds for the engine: the engine moves the token, never the bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct PayloadId(pub u32);

/// One life of a connection: the pair of sockets between two nodes. Chosen by the driver, never reused for a peer,
/// so that what comes late from an old pair is recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct LinkId(pub u64);
