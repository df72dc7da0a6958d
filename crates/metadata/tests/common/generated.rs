//! Generated metadata, and the real drbdmeta to show it to. Numbers come from a fixed seed: a failure comes back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

use metadata::activity_log::{INITIALISED, block_index};
use metadata::{
    AlTransaction, Bitmap, Block, DeviceFlags, DumpOptions, Geometry, Layout, PeerFlags, Placement, Superblock,
    apply_al, check, recover, write_dump,
};
use types::{ExtentIndex, NodeId, Slot, Uuid};

use super::set_ranges;

/// drbdmeta keeps one state file for all calls without a minor number.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// `None` after a loud line where drbdmeta is missing.
pub fn drbdmeta_or_skip(test: &str) -> Option<MutexGuard<'static, ()>> {
    if Command::new("drbdmeta").arg("--version").output().is_err() {
        super::skipped(&format!("drbdmeta not installed (Debian package drbd-utils): {test}"));
        return None;
    }
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    PlainFile,
    Loop,
}

/// A sparse file, with or without a loop device on it; both gone on drop.
pub struct Device {
    pub file: PathBuf,
    node: Option<PathBuf>,
}

impl Device {
    /// `None` where loop devices can't be made (not root, or a container): said loudly.
    pub fn new(kind: Kind, bytes: u64) -> Option<Device> {
        static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("replicad-metadata-{}-{n}.img", std::process::id()));
        File::create(&file).unwrap().set_len(bytes).unwrap();
        let mut device = Device { file, node: None };
        if kind == Kind::Loop {
            let out = Command::new("losetup").args(["-f", "--show"]).arg(&device.file).output();
            let Some(out) = out.ok().filter(|out| out.status.success()) else {
                super::skipped("no loop device (needs root and losetup)");
                return None;
            };
            device.node = Some(PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()));
        }
        Some(device)
    }
    pub fn path(&self) -> &Path {
        self.node.as_deref().unwrap_or(&self.file)
    }
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(bytes, at).unwrap();
        file.sync_all().unwrap();
    }
    pub fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        File::open(self.path()).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
    pub fn drbdmeta(&self, placement: Placement, args: &[&str]) -> Output {
        self.drbdmeta_as("v09", placement, args)
    }
    pub fn drbdmeta_as(&self, format: &str, placement: Placement, args: &[&str]) -> Output {
        let kind = match placement {
            Placement::Internal => "internal".to_string(),
            Placement::External => "flex-external".to_string(),
            Placement::Indexed(index) => index.to_string(),
        };
        let mut command = Command::new("drbdmeta");
        command.args(["--force", "-", format]).arg(self.path()).arg(kind).args(args);
        command.output().unwrap()
    }
    /// Standard output of a call that must succeed.
    pub fn drbdmeta_ok(&self, placement: Placement, args: &[&str]) -> String {
        let out = self.drbdmeta(placement, args);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "drbdmeta {args:?} on {:?}: {} {stderr}", self.path(), out.status);
        String::from_utf8(out.stdout).unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(node) = &self.node {
            let out = Command::new("losetup").arg("-d").arg(node).output();
            if !out.is_ok_and(|out| out.status.success()) {
                eprintln!("losetup -d {} failed: detach it by hand", node.display());
            }
        }
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Deterministic numbers, so that a failure comes back.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Everything that a volume's metadata consists of.
pub struct Image {
    pub layout: Layout,
    pub sb: Superblock,
    pub bitmap: Bitmap,
    pub ring: Vec<Block>,
}

pub const KINDS: [Kind; 2] = [Kind::PlainFile, Kind::Loop];
const PEERS: [u8; 4] = [1, 3, 7, 31];

/// Placements with device sizes, and what they carry at most.
pub fn devices() -> Vec<(Placement, u64, u64)> {
    let all = u64::MAX;
    vec![
        (Placement::Internal, 1 << 20, all),
        (Placement::Internal, 64 << 20, all),
        (Placement::Internal, (1 << 30) + 512, all),
        (Placement::Internal, (3 << 30) + 12288, all),
        (Placement::External, 2 << 20, 300 << 20),
        (Placement::External, (2 << 20) + 512, (1 << 30) + 1536),
        (Placement::Indexed(1), 300 << 20, 500 << 20),
    ]
}

pub fn geometries() -> impl Iterator<Item = Geometry> {
    let striped = Geometry { al_stripes: 4, al_stripe_4k: 16, ..Geometry::new(3) };
    PEERS.into_iter().map(Geometry::new).chain([striped])
}

impl Image {
    /// Random identifiers, flags and bits; clean.
    pub fn random(
        placement: Placement,
        bytes: u64,
        volume_max: u64,
        geometry: Geometry,
        numbers: &mut Numbers,
    ) -> Image {
        let layout = Layout::compute(placement, bytes, geometry).unwrap();
        let mut sb = Superblock::fresh(geometry, &layout);
        sb.last_agreed_bytes = layout.usable_bytes.min(volume_max);
        sb.current_uuid = Uuid(numbers.next());
        sb.device_uuid = numbers.next();
        sb.flags = DeviceFlags(0x91);
        sb.peer_max_io_bytes = 1 << 20;
        sb.node_id = NodeId::new(31);
        for slot in 0..geometry.max_peers {
            let peer = &mut sb.peers[usize::from(slot)];
            peer.slot = Some(Slot(geometry.max_peers - 1 - slot));
            peer.bitmap_uuid = Uuid(numbers.next());
            peer.bitmap_dagtag = numbers.next();
            // All named ones and one unknown: drbdmeta cuts the comment off after 79 characters, we do not.
            peer.flags = PeerFlags(numbers.next() as u32 & 0x0101_001F);
        }
        sb.history = std::array::from_fn(|i| Uuid(if i < 5 { numbers.next() } else { 0 }));
        let bits = geometry.bits(sb.last_agreed_bytes);
        let mut bitmap = Bitmap::new(geometry.max_peers, geometry.bitmap_block_bytes, bits);
        for slot in bitmap.slots() {
            random_bits(&mut bitmap, slot, numbers);
        }
        let ring = vec![INITIALISED; layout.al_blocks as usize];
        Image { layout, sb, bitmap, ring }
    }

    /// Makes it a crashed primary: several transactions of a writer with `slots` slots, the ring wrapped.
    pub fn crash(&mut self, slots: u16, numbers: &mut Numbers) {
        let extents = self.sb.last_agreed_bytes.div_ceil(types::range::EXTENT_BYTES);
        let (stripes, stripe_4k) = (self.sb.al_stripes, self.sb.al_stripe_4k);
        let mut table: Vec<Option<ExtentIndex>> = vec![None; usize::from(slots)];
        let mut window = 0;
        let first = numbers.next() as u32;
        for step in 0..self.layout.al_blocks + 3 {
            let end = (window + 919).min(table.len());
            let mut t = AlTransaction {
                number: first.wrapping_add(step),
                slot_count: slots,
                context_first: window as u16,
                context: table[window..end].to_vec(),
                updates: Vec::new(),
            };
            for _ in 0..1 + numbers.below(64) {
                let slot = numbers.below(table.len() as u64) as usize;
                let extent = ExtentIndex(numbers.below(extents) as u32);
                if t.updates.iter().any(|(s, _)| usize::from(*s) == slot) || table.contains(&Some(extent)) {
                    continue;
                }
                table[slot] = Some(extent);
                t.updates.push((slot as u16, Some(extent)));
            }
            window = if end == table.len() { 0 } else { end };
            self.ring[block_index(t.number, stripes, stripe_4k) as usize] = t.encode();
        }
        self.sb.flags = DeviceFlags(0x53);
        self.sb.al_slots = slots.into();
    }

    pub fn write_to(&self, device: &Device) {
        device.write(self.layout.bitmap, self.bitmap.image());
        device.write(self.layout.activity_log, self.ring.as_flattened());
        device.write(self.layout.superblock, &self.sb.encode());
    }
    pub fn read_from(device: &Device, placement: Placement, bytes: u64) -> Image {
        let at = metadata::layout::superblock_offset(placement, bytes).unwrap();
        let block: Block = device.read(at, 4096).try_into().unwrap();
        let sb = Superblock::decode(&block, at).unwrap();
        let layout = check(&sb, placement, bytes).unwrap();
        assert_eq!(sb.encode(), block);
        let bits = sb.geometry().bits(sb.last_agreed_bytes);
        let image = device.read(layout.bitmap, Bitmap::image_bytes(sb.max_peers, bits));
        let bitmap = Bitmap::from_image(sb.max_peers, sb.bitmap_block_bytes, bits, image);
        let ring = device.read(layout.activity_log, u64::from(layout.al_blocks) * 4096);
        let ring = ring.chunks_exact(4096).map(|b| b.try_into().unwrap()).collect();
        Image { layout, sb, bitmap, ring }
    }

    pub fn dump(&self) -> String {
        let mut out = String::new();
        write_dump(&mut out, DumpOptions::default(), &self.sb, &self.layout, self.bitmap.image()).unwrap();
        out
    }
    pub fn apply_al(&mut self) {
        let indicator = self.sb.flags.contains(DeviceFlags::PRIMARY_INDICATOR);
        let recovery = recover(&self.ring, self.sb.al_stripes, self.sb.al_stripe_4k, self.sb.al_slots, indicator);
        apply_al(&mut self.sb, &mut self.bitmap, &recovery);
        self.ring.fill(INITIALISED);
    }
    pub fn assert_same(&self, other: &Image, what: &str) {
        assert_eq!(self.sb, other.sb, "{what}");
        assert!(self.ring == other.ring, "{what}: activity log");
        for slot in self.bitmap.slots() {
            assert_eq!(set_ranges(&self.bitmap, slot), set_ranges(&other.bitmap, slot), "{what}: {slot:?}");
        }
    }
}

pub fn random_bits(bitmap: &mut Bitmap, slot: Slot, numbers: &mut Numbers) {
    match numbers.below(5) {
        0 => {}
        1 => _ = bitmap.set_all(slot),
        2 => (0..200).for_each(|_| {
            let bit = numbers.below(bitmap.bits());
            bitmap.set(slot, bit..bit + 1);
        }),
        3 => (0..40).for_each(|_| {
            let start = numbers.below(bitmap.bits());
            let end = start + numbers.below(2000);
            bitmap.set(slot, start..end);
        }),
        _ => (0..bitmap.words64().min(3000)).for_each(|i| {
            let word = numbers.next();
            bitmap.or_word64(slot, i, word);
        }),
    }
}

/// Equal below the three comment lines that name tool and time; shows the first line that differs.
pub fn assert_same_dump(ours: &str, theirs: &str, what: &str) {
    let ours_from = ours.find("\nversion").expect("a version line");
    let theirs_from = theirs.find("\nversion").unwrap_or_else(|| panic!("{what}: no version line in {theirs}"));
    let (ours, theirs) = (&ours[ours_from..], &theirs[theirs_from..]);
    if ours == theirs {
        return;
    }
    let (mut a, mut b) = (ours.lines(), theirs.lines());
    let mut before = String::new();
    for n in 1.. {
        let (ours, theirs) = (a.next(), b.next());
        assert!(ours.is_some() || theirs.is_some(), "{what}: only line ends differ");
        assert_eq!(ours, theirs, "{what}: line {n} below the comments, after {before:?}");
        before = ours.unwrap_or_default().to_string();
    }
}
