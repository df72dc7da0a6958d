//! Golden images: one [`Case`] per sidecar in `tests/fixtures/`, its stages with the bytes of the metadata region.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod generated;

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use metadata::{Block, Placement};
use serde_json::Value;

pub fn fixtures() -> PathBuf {
    // Not "tests/fixtures": tests of other crates use this file, too.
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../metadata/tests/fixtures")
}

pub fn text(name: &str) -> String {
    fs::read_to_string(fixtures().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub fn json(name: &str) -> Value {
    serde_json::from_str(&text(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub struct Case {
    pub name: String,
    pub json: Value,
}

pub struct Stage {
    /// "NAME" or "NAME.STAGE".
    pub name: String,
    pub json: Value,
    pub v09: bool,
    pub device_bytes: u64,
    pub placement: Placement,
    /// Where `region` starts on the metadata device. What lies around it is zero.
    pub region_at: u64,
    pub region: Vec<u8>,
}

/// Every sidecar, sorted by name.
pub fn cases() -> Vec<Case> {
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("v0") && n.ends_with(".json"))
        .collect();
    names.sort();
    assert_eq!(names.len(), 35, "sidecars in tests/fixtures");
    names.iter().map(|n| Case { name: n.trim_end_matches(".json").into(), json: json(n) }).collect()
}

pub fn case(name: &str) -> Case {
    cases().into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no fixture {name}"))
}

impl Case {
    pub fn stages(&self) -> Vec<Stage> {
        self.json["stages"].as_array().unwrap().iter().map(|stage| self.stage_of(stage)).collect()
    }
    pub fn stage(&self, tag: &str) -> Stage {
        let stages = self.json["stages"].as_array().unwrap();
        let found = stages.iter().find(|s| s["tag"] == tag);
        self.stage_of(found.unwrap_or_else(|| panic!("{} has no stage {tag}", self.name)))
    }
    pub fn has_stage(&self, tag: &str) -> bool {
        self.json["stages"].as_array().unwrap().iter().any(|s| s["tag"] == tag)
    }
    fn stage_of(&self, stage: &Value) -> Stage {
        let placement = match self.json["metadata_kind"].as_str().unwrap() {
            "internal" => Placement::Internal,
            "flex-external" => Placement::External,
            "indexed-external" => {
                let area = number(&self.json["offsets_bytes"]["superblock"]) / metadata::layout::INDEXED_AREA_BYTES;
                Placement::Indexed(area as u8)
            }
            kind => panic!("{}: kind {kind}", self.name),
        };
        let file = fs::File::open(fixtures().join(stage["region_file"].as_str().unwrap())).unwrap();
        let mut region = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut region).unwrap();
        let tag = stage["tag"].as_str().unwrap();
        Stage {
            name: if tag == "image" { self.name.clone() } else { format!("{}.{tag}", self.name) },
            json: stage.clone(),
            v09: stage["format"] == "v09",
            device_bytes: stage["device_size"].as_u64().unwrap_or_else(|| number(&self.json["device_size"])),
            placement,
            region_at: number(&stage["region_offset"]),
            region,
        }
    }
}

impl Stage {
    /// Bytes of the metadata device; zero outside the region.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let from = at.max(self.region_at);
        let to = (at + len as u64).min(self.region_at + self.region.len() as u64);
        if from < to {
            let source = &self.region[(from - self.region_at) as usize..(to - self.region_at) as usize];
            bytes[(from - at) as usize..(to - at) as usize].copy_from_slice(source);
        }
        bytes
    }
    pub fn block(&self, at: u64) -> Block {
        self.read(at, 4096).try_into().unwrap()
    }
    pub fn superblock_at(&self) -> u64 {
        metadata::layout::superblock_offset(self.placement, self.device_bytes).unwrap()
    }
    pub fn superblock(&self) -> Result<metadata::Superblock, metadata::FormatError> {
        let at = self.superblock_at();
        metadata::Superblock::decode(&self.block(at), at)
    }
    /// The bitmap of the agreed size.
    pub fn bitmap(&self, sb: &metadata::Superblock, layout: &metadata::Layout) -> metadata::Bitmap {
        let bits = sb.geometry().bits(sb.last_agreed_bytes);
        let len = metadata::Bitmap::image_bytes(sb.max_peers, bits);
        let image = self.read(layout.bitmap, len as usize);
        metadata::Bitmap::from_image(sb.max_peers, sb.bitmap_block_bytes, bits, image)
    }
    pub fn ring(&self, layout: &metadata::Layout) -> Vec<Block> {
        (0..layout.al_blocks).map(|i| self.block(layout.al_block(i))).collect()
    }
    /// Recorded set bits of a slot below `bits`.
    pub fn recorded_bits(&self, slot: u8, bits: u64) -> Vec<(u64, u64)> {
        let ranges = self.json["decoded"]["bitmap_bits_set"][slot.to_string()].as_array();
        let ranges = ranges.unwrap_or_else(|| panic!("{}: slot {slot}", self.name));
        let pair = |r: &Value| (number(&r[0]), number(&r[1]).min(bits.saturating_sub(1)));
        ranges.iter().map(pair).filter(|(first, _)| *first < bits).collect()
    }
}

/// Ranges of set bits, both ends included.
pub fn set_ranges(bitmap: &metadata::Bitmap, slot: types::Slot) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(first) = bitmap.next_set(slot, from) {
        let end = bitmap.next_clear(slot, first).unwrap_or(bitmap.bits());
        ranges.push((first, end - 1));
        from = end;
    }
    ranges
}

/// Says that something was not tested, past the harness, which hides what passing tests print.
pub fn skipped(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// A JSON number, or a string "0x...".
pub fn number(value: &Value) -> u64 {
    match value.as_str() {
        Some(hex) => u64::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap(),
        None => value.as_u64().unwrap_or_else(|| panic!("not a number: {value}")),
    }
}
