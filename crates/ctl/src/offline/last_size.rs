//! The size that a device with internal metadata had last, in a small file beside the metadata: once the device has grown,
//! nothing on it says where its metadata lies. A memory, not a proof: what lies there is checked as always.
//!
//! Text as in drbdmeta's `drbd-minor-N.lkbd`, so that either program finds the other's: size and name in a line, then the
//! device UUID if there is one.

use std::io;
use std::path::Path;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastSize {
    pub bytes: u64,
    /// 0: not known.
    pub device_uuid: u64,
}

/// `None`: nothing is remembered, or nothing that can be read.
pub fn recall(file: &Path) -> Option<LastSize> {
    parse(&std::fs::read_to_string(file).ok()?)
}

fn parse(text: &str) -> Option<LastSize> {
    let mut lines = text.lines();
    let bytes = lines.next()?.split('\t').next()?.parse().ok()?;
    let uuid = lines.next().and_then(|line| line.strip_prefix("uuid:\t"));
    let device_uuid = uuid.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    Some(LastSize { bytes, device_uuid })
}

/// `disk`: for people who look into the file. Makes the folder if it is missing.
pub fn remember(file: &Path, disk: &Path, last: LastSize) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut text = format!("{}\t{}\n", last.bytes, disk.display());
    if last.device_uuid != 0 {
        text.push_str(&format!("uuid:\t{:016X}\n", last.device_uuid));
    }
    // Whole or not at all: half a number would be another size.
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_recalled() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/b.lkbd");
        assert_eq!(recall(&file), None);
        for device_uuid in [0, 0xA1] {
            let last = LastSize { bytes: 67_108_864, device_uuid };
            remember(&file, Path::new("/dev/loop0"), last).unwrap();
            assert_eq!(recall(&file), Some(last));
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "67108864\t/dev/loop0\nuuid:\t00000000000000A1\n");
        assert_eq!(parse("lots\t/dev/loop0\n"), None);
    }
}
