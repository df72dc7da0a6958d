//! What is wrong with metadata: where, what was found, which rule it breaks, what to do next.

use alloc::string::{String, ToString};
use core::fmt;

/// Part of the metadata that a [`FormatError`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Region {
    /// The device itself: its size against what the metadata needs.
    Device,
    Superblock,
    ActivityLog,
    Bitmap,
}

impl Region {
    pub const fn name(self) -> &'static str {
        match self {
            Region::Device => "metadata device",
            Region::Superblock => "superblock",
            Region::ActivityLog => "activity log",
            Region::Bitmap => "bitmap",
        }
    }
}

/// Metadata that this program will not use. Nothing was changed. `Display` is one sentence for a person.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormatError {
    pub region: Region,
    /// DRBD's name of the field.
    pub field: &'static str,
    /// Absolute, bytes from the start of the metadata device.
    pub offset: u64,
    /// As found.
    pub value: String,
    /// The rule that `value` breaks.
    pub violated: String,
    /// What a person can do.
    pub next: &'static str,
}

/// Next step for metadata that is damaged or not ours.
pub(crate) const NEXT_RESTORE: &str =
    "check that this is the right device and meta-disk setting; else restore-md from a dump, or create-md anew";
/// Next step for a device that can't carry the metadata.
pub(crate) const NEXT_GEOMETRY: &str = "use a larger device, or fewer peers, or a smaller activity log";

impl FormatError {
    pub(crate) fn new(
        region: Region,
        field: &'static str,
        offset: u64,
        value: impl ToString,
        violated: impl Into<String>,
    ) -> FormatError {
        let next = if region == Region::Device { NEXT_GEOMETRY } else { NEXT_RESTORE };
        FormatError { region, field, offset, value: value.to_string(), violated: violated.into(), next }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} at byte {} is {}: {}; {}",
            self.region.name(),
            self.field,
            self.offset,
            self.value,
            self.violated,
            self.next
        )
    }
}

impl core::error::Error for FormatError {}
