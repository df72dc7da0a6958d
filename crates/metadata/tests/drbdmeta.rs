//! Both directions against the real drbdmeta (Debian package drbd-utils), on plain files and on loop devices: what we
//! write it dumps and recovers as we do; what it creates and restores we decode, and dump as it does.
//!
//! Without drbdmeta each test says so loudly and passes; `cargo xtask test` installs the package before.

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

use common::set_ranges;
use metadata::activity_log::{INITIALISED, al_extents_max, block_index};
use metadata::{
    AlTransaction, Bitmap, Block, DeviceFlags, DumpOptions, Geometry, Layout, PeerFlags, Placement, Superblock,
    apply_al, check, parse_dump, recover, restore, write_dump,
};
use types::{ExtentIndex, NodeId, Slot, Uuid};

/// drbdmeta keeps one state file for all calls without a minor number.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// `None` after a loud line where drbdmeta is missing.
fn drbdmeta_or_skip(test: &str) -> Option<MutexGuard<'static, ()>> {
    if Command::new("drbdmeta").arg("--version").output().is_err() {
        common::skipped(&format!("drbdmeta not installed (Debian package drbd-utils): {test}"));
        return None;
    }
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    PlainFile,
    Loop,
}

/// A sparse file, with or without a loop device on it; both gone on drop.
struct Device {
    file: PathBuf,
    node: Option<PathBuf>,
}

impl Device {
    /// `None` where loop devices can't be made (not root, or a container): said loudly.
    fn new(kind: Kind, bytes: u64) -> Option<Device> {
        static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("replicad-metadata-{}-{n}.img", std::process::id()));
        File::create(&file).unwrap().set_len(bytes).unwrap();
        let mut device = Device { file, node: None };
        if kind == Kind::Loop {
            let out = Command::new("losetup").args(["-f", "--show"]).arg(&device.file).output();
            let Some(out) = out.ok().filter(|out| out.status.success()) else {
                common::skipped("no loop device (needs root and losetup)");
                return None;
            };
            device.node = Some(PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()));
        }
        Some(device)
    }
    fn path(&self) -> &Path {
        self.node.as_deref().unwrap_or(&self.file)
    }
    fn write(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(bytes, at).unwrap();
        file.sync_all().unwrap();
    }
    fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        File::open(self.path()).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
    fn drbdmeta(&self, placement: Placement, args: &[&str]) -> Output {
        let kind = match placement {
            Placement::Internal => "internal".to_string(),
            Placement::External => "flex-external".to_string(),
            Placement::Indexed(index) => index.to_string(),
        };
        let mut command = Command::new("drbdmeta");
        command.args(["--force", "-", "v09"]).arg(self.path()).arg(kind).args(args);
        command.output().unwrap()
    }
    /// Standard output of a call that must succeed.
    fn drbdmeta_ok(&self, placement: Placement, args: &[&str]) -> String {
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
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Everything that a volume's metadata consists of.
struct Image {
    layout: Layout,
    sb: Superblock,
    bitmap: Bitmap,
    ring: Vec<Block>,
}

const KINDS: [Kind; 2] = [Kind::PlainFile, Kind::Loop];
const PEERS: [u8; 4] = [1, 3, 7, 31];

/// Placements with device sizes, and what they carry at most.
fn devices() -> Vec<(Placement, u64, u64)> {
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

fn geometries() -> impl Iterator<Item = Geometry> {
    let striped = Geometry { al_stripes: 4, al_stripe_4k: 16, ..Geometry::new(3) };
    PEERS.into_iter().map(Geometry::new).chain([striped])
}

impl Image {
    /// Random identifiers, flags and bits; clean.
    fn random(placement: Placement, bytes: u64, volume_max: u64, geometry: Geometry, numbers: &mut Numbers) -> Image {
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
    fn crash(&mut self, slots: u16, numbers: &mut Numbers) {
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

    fn write_to(&self, device: &Device) {
        device.write(self.layout.bitmap, self.bitmap.image());
        device.write(self.layout.activity_log, self.ring.as_flattened());
        device.write(self.layout.superblock, &self.sb.encode());
    }
    fn read_from(device: &Device, placement: Placement, bytes: u64) -> Image {
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

    fn dump(&self) -> String {
        let mut out = String::new();
        write_dump(&mut out, DumpOptions::default(), &self.sb, &self.layout, self.bitmap.image()).unwrap();
        out
    }
    fn apply_al(&mut self) {
        let indicator = self.sb.flags.contains(DeviceFlags::PRIMARY_INDICATOR);
        let recovery = recover(&self.ring, self.sb.al_stripes, self.sb.al_stripe_4k, self.sb.al_slots, indicator);
        apply_al(&mut self.sb, &mut self.bitmap, &recovery);
        self.ring.fill(INITIALISED);
    }
    fn assert_same(&self, other: &Image, what: &str) {
        assert_eq!(self.sb, other.sb, "{what}");
        assert!(self.ring == other.ring, "{what}: activity log");
        for slot in self.bitmap.slots() {
            assert_eq!(set_ranges(&self.bitmap, slot), set_ranges(&other.bitmap, slot), "{what}: {slot:?}");
        }
    }
}

fn random_bits(bitmap: &mut Bitmap, slot: Slot, numbers: &mut Numbers) {
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
fn assert_same_dump(ours: &str, theirs: &str, what: &str) {
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

/// Runs `test` on every kind of device, placement, size and number of peers.
fn everywhere(name: &str, test: impl Fn(&Device, Placement, u64, u64, Geometry, &mut Numbers)) {
    let Some(_guard) = drbdmeta_or_skip(name) else { return };
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    for kind in KINDS {
        for (placement, bytes, volume_max) in devices() {
            for geometry in geometries() {
                let default_only = matches!(placement, Placement::Indexed(_)) || bytes == 1 << 20;
                if default_only && geometry != Geometry::new(geometry.max_peers) {
                    continue;
                }
                let Some(device) = Device::new(kind, bytes) else { break };
                test(&device, placement, bytes, volume_max, geometry, &mut numbers);
            }
        }
    }
}

#[test]
fn it_dumps_what_we_write_as_we_do() {
    everywhere("dump", |device, placement, bytes, volume_max, geometry, numbers| {
        let image = Image::random(placement, bytes, volume_max, geometry, numbers);
        image.write_to(device);
        let theirs = device.drbdmeta_ok(placement, &["dump-md"]);
        assert_same_dump(&image.dump(), &theirs, &format!("{placement:?} {bytes} {geometry:?}"));
    });
}

#[test]
fn it_applies_our_activity_log_as_we_do() {
    everywhere("apply-al", |device, placement, bytes, volume_max, geometry, numbers| {
        let mut image = Image::random(placement, bytes, volume_max, geometry, numbers);
        let slots_max = al_extents_max(image.layout.al_blocks) as u16;
        for slots in [67, 1237, slots_max] {
            image.crash(slots, numbers);
            image.write_to(device);
            device.drbdmeta_ok(placement, &["apply-al"]);
            image.apply_al();
            let theirs = Image::read_from(device, placement, bytes);
            image.assert_same(&theirs, &format!("{placement:?} {bytes} {geometry:?}, {slots} slots"));
            let dump = device.drbdmeta_ok(placement, &["dump-md"]);
            assert_same_dump(&theirs.dump(), &dump, &format!("{placement:?} {bytes} {geometry:?}"));
        }
    });
}

#[test]
fn what_it_creates_is_what_we_create_and_both_dump_it_alike() {
    everywhere("create-md", |device, placement, bytes, _, geometry, _| {
        let peers = geometry.max_peers.to_string();
        let stripes = geometry.al_stripes.to_string();
        let stripe_kb = (geometry.al_stripe_4k * 4).to_string();
        let mut args = vec!["create-md"];
        if geometry != Geometry::new(geometry.max_peers) {
            args.extend(["--al-stripes", &stripes, "--al-stripe-size-kB", &stripe_kb]);
        }
        args.push(&peers);
        device.drbdmeta_ok(placement, &args);
        let theirs = Image::read_from(device, placement, bytes);
        assert_eq!(theirs.sb, Superblock::fresh(geometry, &theirs.layout), "{placement:?} {bytes}");
        assert!(theirs.ring.iter().all(|block| *block == INITIALISED), "{placement:?} {bytes}");
        let dump = device.drbdmeta_ok(placement, &["dump-md"]);
        assert_same_dump(&theirs.dump(), &dump, &format!("{placement:?} {bytes} {geometry:?}"));
    });
}

#[test]
fn it_restores_our_dump_and_we_restore_its_dump() {
    everywhere("restore-md", |device, placement, bytes, volume_max, geometry, numbers| {
        let image = Image::random(placement, bytes, volume_max, geometry, numbers);
        let text = device.file.with_extension("dump");
        std::fs::write(&text, image.dump()).unwrap();
        // Into metadata that exists: what restore-md leaves alone (the log) is then defined.
        let mut blank = Image::random(placement, bytes, volume_max, geometry, numbers);
        blank.sb = Superblock::fresh(geometry, &blank.layout);
        blank.write_to(device);
        device.drbdmeta_ok(placement, &["restore-md", text.to_str().unwrap()]);
        std::fs::remove_file(&text).unwrap();
        let theirs = Image::read_from(device, placement, bytes);
        image.assert_same(&theirs, &format!("{placement:?} {bytes} {geometry:?}"));

        let dump = device.drbdmeta_ok(placement, &["dump-md"]);
        let restored = restore(&parse_dump(&dump).unwrap(), placement, bytes).unwrap();
        assert_eq!(restored.superblock, image.sb);
        assert!(restored.bitmap == image.bitmap.image(), "{placement:?} {bytes} {geometry:?}: restored bitmap");
    });
}

#[test]
fn it_accepts_the_log_we_initialise_and_finds_nothing_hot() {
    everywhere("initialised log", |device, placement, bytes, volume_max, geometry, numbers| {
        let mut image = Image::random(placement, bytes, volume_max, geometry, numbers);
        image.sb.flags = DeviceFlags(0x53);
        image.write_to(device);
        device.drbdmeta_ok(placement, &["apply-al"]);
        image.apply_al();
        image.assert_same(&Image::read_from(device, placement, bytes), &format!("{placement:?} {bytes}"));
    });
}
