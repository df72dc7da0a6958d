//! Whatever lies on a disk where metadata should be: attach refuses it or goes on, up to a disk that the engine uses.
//! Nothing panics, and nothing takes memory that the disk does not justify.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use config::{Config, LocalResource};
use engine::{Command, CommandId, Effect, Engine, Input};
use metadata::activity_log::{AlTransaction, INITIALISED};
use metadata::layout::{Geometry, Layout, Placement};
use metadata::superblock::{FIELDS, PEER_FIELDS};
use metadata::{BLOCK_BYTES, Block, DeviceFlags, Superblock};
use types::{DiskState, ExtentIndex, Time, VolumeNumber};

const DATA_BYTES: u64 = 64 << 20;
/// Where the records of the peers begin, and the size of one (docs/ondisk.md "Superblock").
const PEERS_AT: usize = 0x70;
const PEER_BYTES: usize = 32;

/// Where fields of 32 and 64 bits change their meaning or overflow.
const EDGES: [u64; 11] = [0, 1, 2, 31, 32, 0xffff, 131_071, 0x7fff_ffff, 0xffff_ffff, 1 << 41, u64::MAX];

/// A field of the superblock, or of one peer, gets a value from the edges.
fn damage(block: &mut Block, random: &mut fastrand::Rng) {
    let numbers = &FIELDS[..16];
    let (at, width) = match random.bool() {
        true => {
            let (at, width, _) = numbers[random.usize(..numbers.len())];
            (at, width)
        }
        false => {
            let (at, width, _) = PEER_FIELDS[random.usize(..PEER_FIELDS.len())];
            (PEERS_AT + random.usize(..32) * PEER_BYTES + at, width)
        }
    };
    let value = EDGES[random.usize(..EDGES.len())];
    match width {
        "u64" => block[at..at + 8].copy_from_slice(&value.to_be_bytes()),
        _ => block[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes()),
    }
}

/// Damaged, empty, or a transaction whose checksum fits and whose content is anything.
fn any_log_block(number: u32, random: &mut fastrand::Rng) -> Block {
    match random.u8(..8) {
        0 => [random.u8(..); BLOCK_BYTES],
        1 | 2 => INITIALISED,
        _ => AlTransaction {
            number,
            slot_count: random.u16(..),
            context_first: random.u16(..),
            context: (0..random.usize(0..919)).map(|_| Some(ExtentIndex(random.u32(..)))).collect(),
            updates: (0..random.usize(0..64)).map(|_| (random.u16(..), Some(ExtentIndex(random.u32(..))))).collect(),
        }
        .encode(),
    }
}

/// Metadata of a node that crashed as Primary, so that log and bitmap count, then damaged.
fn write_metadata(file: &File, placement: Placement, bytes: u64, random: &mut fastrand::Rng) {
    let geometry = Geometry::new(random.u8(1..4));
    let layout = Layout::compute(placement, bytes, geometry).unwrap();
    let mut superblock = Superblock::fresh(geometry, &layout);
    superblock.last_agreed_bytes = layout.usable_bytes.min(DATA_BYTES);
    superblock.flags = DeviceFlags::PRIMARY_INDICATOR.with(DeviceFlags::CRASHED_PRIMARY);
    let mut block = superblock.encode();
    (0..random.usize(0..3)).for_each(|_| damage(&mut block, random));
    file.write_all_at(&block, layout.superblock).unwrap();
    for number in 0..layout.al_blocks {
        file.write_all_at(&any_log_block(number, random), layout.al_block(number)).unwrap();
    }
    let bitmap: Vec<u8> = (0..layout.bitmap_bytes.min(4096)).map(|_| random.u8(..)).collect();
    file.write_all_at(&bitmap, layout.bitmap).unwrap();
}

fn local_resource(disk: &Path, meta_disk: &str) -> LocalResource {
    let text = format!(
        "[[resource]]\nname = \"r0\"\n\
         volume = [{{ number = 0, device = \"none\", disk = \"{}\", meta-disk = \"{meta_disk}\" }}]\n\
         on = [{{ node = \"a\", node-id = 0, address = \"10.0.0.1:1\" }}, \
               {{ node = \"b\", node-id = 1, address = \"10.0.0.2:1\" }}]\n",
        disk.display()
    );
    Config::parse(Path::new("any.toml"), &text).unwrap().for_node("a").unwrap().remove(0)
}

/// The engine takes the disk, its metadata is written, it becomes Primary and lets go again.
fn use_in_engine(local: &LocalResource, disk: engine::AttachedDisk) -> DiskState {
    let volume = VolumeNumber::new(0).unwrap();
    let mut engine = Engine::new(replicad::settings::resource(local), [7; 32]);
    let commands = [
        Command::Attach { volume, disk: Box::new(disk) },
        Command::Promote { force: true },
        Command::Demote,
        Command::Detach { volume, force: false },
    ];
    let mut state = DiskState::Diskless;
    for (n, command) in commands.into_iter().enumerate() {
        let mut inputs = vec![Input::Command { id: CommandId(n as u64), command }];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            engine.handle(Time(n as u64), input, &mut effects);
            let done = |effect| match effect {
                Effect::Disk { volume, io, .. } => Some(Input::DiskDone { volume, io, result: Ok(()), payload: None }),
                _ => None,
            };
            inputs.extend(effects.into_iter().filter_map(done));
        }
        state = state.max(engine.status().volumes[&volume].disk);
    }
    state
}

#[test]
fn no_metadata_on_a_disk_does_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, meta) = (folder.path().join("disk"), folder.path().join("meta"));
    let (mut refused, mut used) = (0, 0);
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let data = File::create(&disk).unwrap();
        data.set_len(DATA_BYTES).unwrap();
        let meta_disk = match random.bool() {
            true => {
                write_metadata(&data, Placement::Internal, DATA_BYTES, &mut random);
                "internal".to_string()
            }
            false => {
                let bytes = random.u64(160..600) * 512;
                let file = File::create(&meta).unwrap();
                file.set_len(bytes).unwrap();
                write_metadata(&file, Placement::External, bytes, &mut random);
                meta.display().to_string()
            }
        };
        println!("seed {seed}, {meta_disk}");
        let local = local_resource(&disk, &meta_disk);
        match replicad::attach::open("r0/0", &local.volumes()[0]) {
            Err(refusal) => {
                refused += 1;
                assert!(!refusal.message.is_empty() && !refusal.next_step.is_empty(), "{refusal:?}");
            }
            Ok(opened) => used += u32::from(use_in_engine(&local, *opened.attached) > DiskState::Attaching),
        }
    }
    assert!(refused > 25 && used > 25, "{refused} refused, {used} used: the test does not go deep");
}
