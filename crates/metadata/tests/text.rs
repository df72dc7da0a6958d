//! The text form: the recorded dumps of drbdmeta are reproduced byte for byte, parsed, restored, and edits that
//! drbdmeta refuses are refused with the place named.

mod common;

use common::{Stage, case, cases, json, text};
use metadata::{
    AnyDump, Bitmap, DeviceFlags, DumpOptions, Geometry, Layout, PeerFlags, PeerRecord, Placement, Superblock, check,
    parse_any_dump, parse_dump, restore, restore_v08, write_dump,
};
use proptest::prelude::*;
use types::{Slot, Uuid};

fn dump_of(stage: &Stage, members: bool) -> (Superblock, String) {
    let sb = stage.superblock().unwrap();
    let layout = check(&sb, stage.placement, stage.device_bytes).unwrap();
    let bytes = sb.geometry().bitmap_bytes(sb.last_agreed_bytes).unwrap();
    let image = stage.read(layout.bitmap, bytes as usize);
    let mut out = String::new();
    let options = DumpOptions { time: "today", command: "here> replicactl dump-md", members };
    write_dump(&mut out, options, &sb, &layout, &image).unwrap();
    (sb, out)
}

/// What lies below the three comment lines that name tool and time.
fn body(dump: &str) -> &str {
    &dump[dump.find("\nversion").expect("a version line")..]
}

/// Recorded dumps of v09 metadata: the stage, the file, does it have the member mask.
fn recorded() -> Vec<(Stage, String, bool)> {
    let mut found = Vec::new();
    for case in cases() {
        for stage in case.stages().into_iter().filter(|s| s.v09) {
            for dump in stage.json["dumps"].as_array().unwrap().clone() {
                let file = dump["stdout_file"].as_str().or(dump["forced"]["stdout_file"].as_str());
                // The one image that drbdmeta prints and we refuse.
                let Some(file) = file.filter(|f| !f.contains("index-out-of-range")) else { continue };
                found.push((stage_again(&case, &stage), file.to_string(), dump["tool"] == "drbdmeta-master"));
            }
        }
    }
    found
}

fn stage_again(case: &common::Case, stage: &Stage) -> Stage {
    case.stage(stage.json["tag"].as_str().unwrap())
}

#[test]
fn dumps_are_those_of_drbdmeta() {
    let recorded = recorded();
    assert!(recorded.len() >= 50, "only {} dumps", recorded.len());
    for (stage, file, members) in recorded {
        let (_, ours) = dump_of(&stage, members);
        assert_eq!(body(&ours), body(&text(&file)), "{file}");
        assert!(ours.starts_with("# DRBD meta data dump\n# today\n# here> replicactl dump-md\n#\n\nversion"), "{ours}");
    }
}

#[test]
fn a_parsed_dump_restores_the_image() {
    let mut restored_count = 0;
    for (stage, file, _) in recorded().iter().filter(|(_, file, _)| !file.contains("forced")) {
        let (mut sb, _) = dump_of(stage, false);
        let dump = parse_dump(&text(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let restored = restore(&dump, stage.placement, stage.device_bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
        // The text does not carry these two.
        sb.al_slots = 257;
        sb.members = dump.members.unwrap_or(0);
        assert_eq!(restored.superblock, sb, "{file}");
        let bits = sb.geometry().bits(sb.last_agreed_bytes);
        let ours = metadata::Bitmap::from_image(sb.max_peers, sb.bitmap_block_bytes, bits, restored.bitmap);
        let theirs = stage.bitmap(&sb, &restored.layout);
        for slot in ours.slots() {
            assert_eq!(common::set_ranges(&ours, slot), common::set_ranges(&theirs, slot), "{file}");
        }
        restored_count += 1;
    }
    assert!(restored_count >= 25, "only {restored_count} dumps restored");
}

#[test]
fn dumps_of_unclean_metadata_are_refused_with_the_reason() {
    let error = parse_dump(&text("v09-64m-p3-needs-apply-al.forced.dump")).unwrap_err();
    assert_eq!((error.line, error.column), (8, 1));
    assert!(error.to_string().contains("activity log was not applied"), "{error}");
    let error = parse_dump(&text("v08-64m-clean.dump")).unwrap_err();
    assert!(error.to_string().contains("v09"), "{error}");
}

/// Runs one of the recorded sed expressions, with the real sed.
fn edit(script: &str, text: &str) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut sed =
        Command::new("sed").args(["-e", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = sed.stdin.take().unwrap();
    let input = text.to_string();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let out = sed.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(out.status.success(), "sed {script}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn edited_dumps_are_judged_as_by_the_newer_drbdmeta() {
    let table = json("invalid-dumps.json");
    let edits = table["rows"].as_array().unwrap();
    assert_eq!(edits.len(), 16);
    let original = text("v09-64m-p3-bits.dump");
    for row in edits {
        let what = row["what"].as_str().unwrap();
        let edited = edit(row["sed"].as_str().unwrap(), &original);
        let newer = &row["drbdmeta-master"];
        let parsed = parse_dump(&edited);
        assert_eq!(parsed.is_ok(), newer["exit"] == 0, "{what}: {parsed:?}");
        let Err(error) = parsed else { continue };
        if let Some(line) = newer["stderr"].as_str().unwrap().split("arse error in line ").nth(1) {
            let line: u32 = line.split(':').next().unwrap().parse().unwrap();
            // The original reports the line its lexer has reached, which is at or behind the token.
            assert!(error.line <= line && error.line + 3 >= line, "{what}: {error}, drbdmeta line {line}");
        }
    }
}

#[test]
fn incomplete_or_overlong_lists_are_refused() {
    let original = text("v09-64m-p3-bits.dump");
    for (from, to) in
        [("336 times", "335 times"), ("336 times", "337 times"), ("336 times", "9999999999999999999 times")]
    {
        let dump = parse_dump(&original.replacen(from, to, 1)).unwrap();
        let error = restore(&dump, metadata::Placement::Internal, 64 << 20).unwrap_err();
        assert_eq!(error.region, metadata::Region::Bitmap, "{error}");
    }
}

#[test]
fn a_dump_does_not_fit_a_smaller_device_or_break_a_rule() {
    let dump = parse_dump(&text("v09-64m-p3-bits.dump")).unwrap();
    let error = restore(&dump, metadata::Placement::Internal, 32 << 20).unwrap_err();
    assert_eq!(error.field, "la-size-sect");
    let mut twice = dump.clone();
    twice.peers[2].slot = twice.peers[1].slot;
    assert_eq!(restore(&twice, metadata::Placement::Internal, 64 << 20).unwrap_err().field, "bitmap-index");
    let mut no_log = dump;
    no_log.geometry.al_stripes = 0;
    assert_eq!(restore(&no_log, metadata::Placement::Internal, 64 << 20).unwrap_err().field, "al-stripes");
}

fn uuids() -> impl Strategy<Value = [Uuid; 32]> {
    prop::array::uniform32(any::<u64>().prop_map(Uuid))
}

proptest! {
    /// Of any metadata that may be attached; runs of equal words and single ones.
    #[test]
    fn what_is_dumped_is_restored(
        max_peers in 1u8..=31,
        sectors in 0u64..131_072,
        (current, bitmap_uuids, history) in (any::<u64>(), uuids(), uuids()),
        (flags, peer_flags, members) in (any::<u32>(), any::<u32>(), prop::option::of(1u64..)),
        words in prop::collection::vec((any::<u64>(), 1usize..300), 1..20),
    ) {
        let geometry = Geometry::new(max_peers);
        let layout = Layout::compute(Placement::Internal, 64 << 20, geometry).unwrap();
        let mut sb = Superblock::fresh(geometry, &layout);
        sb.last_agreed_bytes = (sectors * 512).min(layout.usable_bytes);
        sb.current_uuid = Uuid(current);
        sb.flags = DeviceFlags(flags).with(DeviceFlags::AL_CLEAN);
        sb.members = members.unwrap_or(0);
        sb.history = history;
        for (node, peer) in (0u8..).zip(&mut sb.peers) {
            let slot = (node < max_peers).then_some(Slot(node));
            *peer = PeerRecord { slot, flags: PeerFlags(peer_flags), bitmap_uuid: bitmap_uuids[usize::from(node)], ..*peer };
        }
        let mut image: Vec<u8> = words.iter().flat_map(|(word, count)| word.to_le_bytes().repeat(*count)).collect();
        image.resize(geometry.bitmap_bytes(sb.last_agreed_bytes).unwrap() as usize, 0);

        let mut out = String::new();
        let options = DumpOptions { members: members.is_some(), ..DumpOptions::default() };
        write_dump(&mut out, options, &sb, &layout, &image).unwrap();
        let restored = restore(&parse_dump(&out).unwrap(), Placement::Internal, 64 << 20).unwrap();
        prop_assert_eq!(&restored.superblock, &sb);
        let bitmap = |image| Bitmap::from_image(max_peers, 4096, geometry.bits(sb.last_agreed_bytes), image);
        let (before, after) = (bitmap(image), bitmap(restored.bitmap));
        for slot in before.slots() {
            let all = |bitmap: &Bitmap| (0..bitmap.words64()).map(|w| bitmap.word64(slot, w)).collect::<Vec<_>>();
            prop_assert_eq!(all(&before), all(&after));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,200}") {
        let _ = parse_any_dump(&text);
    }

    /// Cuts and overwrites a good dump, so that the deeper parts of the grammar are reached.
    #[test]
    fn no_damage_to_a_dump_makes_parser_or_restore_panic(
        v08 in proptest::bool::ANY,
        cut in 0usize..6000,
        patch in "[-0-9a-fx{};\\[\\] \"#]{0,12}",
        skip in 0usize..8,
    ) {
        let original = text(if v08 { "v08-64m-clean.master.dump" } else { "v09-64m-p3-bits.dump" });
        let cut = cut % original.len();
        let rest = (cut + skip).min(original.len());
        let edited = format!("{}{patch}{}", &original[..cut], &original[rest..]);
        for (placement, bytes) in [(Placement::Internal, 64 << 20), (Placement::External, 1 << 20)] {
            match parse_any_dump(&edited) {
                Ok(AnyDump::V09(dump)) => _ = restore(&dump, placement, bytes),
                Ok(AnyDump::V08(dump)) => _ = restore_v08(&dump, placement, bytes),
                Err(_) => {}
            }
        }
    }
}

#[test]
fn a_comment_cannot_break_out_of_its_line() {
    let stage = case("v09-64m-p1-fresh").stage("image");
    let sb = stage.superblock().unwrap();
    let layout = check(&sb, stage.placement, stage.device_bytes).unwrap();
    let mut out = String::new();
    let options = DumpOptions { time: "t\nversion", command: "c", members: false };
    write_dump(&mut out, options, &sb, &layout, &[]).unwrap();
    assert!(parse_dump(&out).is_ok(), "{out}");
}
