//! Dumps of metadata. Promises: a text is refused, naming a line of it, or fits a device and is printed as it was read.

use metadata::{
    AnyDump, DeviceFlags, Dump, DumpOptions, DumpV08, Placement, parse_any_dump, restore, restore_v08, write_dump,
    write_dump_v08,
};

const DEVICE_BYTES: u64 = 64 << 20;

pub fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    match parse_any_dump(text) {
        Ok(AnyDump::V09(dump)) => printed_again(&dump),
        Ok(AnyDump::V08(dump)) => printed_again_v08(&dump),
        Err(error) => {
            assert!(
                error.line >= 1 && error.line as usize <= text.split('\n').count(),
                "{error} of {} lines",
                text.lines().count()
            );
        }
    }
}

const OPTIONS: DumpOptions<'static> = DumpOptions { time: "", command: "", members: true };

fn printed_again(dump: &Dump) {
    let Ok(mut restored) = restore(dump, Placement::Internal, DEVICE_BYTES) else { return };
    // Otherwise it gets a line that nobody reads back.
    restored.superblock.flags.set(DeviceFlags::AL_CLEAN, true);
    let mut printed = String::new();
    write_dump(&mut printed, OPTIONS, &restored.superblock, &restored.layout, &restored.bitmap).expect("to a string");
    let Ok(AnyDump::V09(again)) = parse_any_dump(&printed) else { panic!("not read back:\n{printed}") };
    let again = restore(&again, Placement::Internal, DEVICE_BYTES).expect("the same device");
    assert!(again == restored, "printed as\n{printed}");
}

fn printed_again_v08(dump: &DumpV08) {
    let Ok(restored) = restore_v08(dump, Placement::Internal, DEVICE_BYTES) else { return };
    let mut printed = String::new();
    write_dump_v08(&mut printed, OPTIONS, &restored.superblock, &restored.layout, &restored.bitmap)
        .expect("to a string");
    let Ok(AnyDump::V08(again)) = parse_any_dump(&printed) else { panic!("not read back:\n{printed}") };
    let again = restore_v08(&again, Placement::Internal, DEVICE_BYTES).expect("the same device");
    assert!(again == restored, "printed as\n{printed}");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let dumps = crate::files(crate::fixtures("metadata"), ".dump");
    dumps.iter().map(|path| std::fs::read(path).expect("a readable file")).filter(|dump| dump.len() < 8192).collect()
}
