//! Bugs that are planted on purpose, one at a time, to see whether the simulator finds them. Only with the feature
//! `planted`, which nothing that is shipped turns on: without it [`planted`] is a constant.

/// Each breaks one rule at one place, and keeps both nodes talking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bug {
    LogNotAwaited = 1,
    LogWithoutEvictedPages,
    IndicatorForgotten,
    BitsForgottenAtRetirement,
    UnsentWritesForgotten,
    BitClearedWhenServed,
    BitsOfCrashDropped,
    PeerDiskNotAwaited,
    FlushForgetsPeers,
    FuaForgotten,
    EpochNotFlushed,
    EpochsNotOrdered,
    ResyncNotFlushed,
    ReadBesideWrite,
    ResyncBesideWrite,
    TargetNotInconsistent,
    GenerationNotBegun,
    GenerationNotDurable,
    BitmapRowSaysEqual,
    StateNotTold,
    SecondPrimaryAllowed,
    OutdatedPromoted,
    LostCacheAccepted,
    WriteMadeUpToDate,
    ReceiptForgotten,
    VerifyNotHeld,
    VerifyNotMarked,
    CsumNotFlushed,
}

pub const ALL: [Bug; 28] = [
    Bug::LogNotAwaited,
    Bug::LogWithoutEvictedPages,
    Bug::IndicatorForgotten,
    Bug::BitsForgottenAtRetirement,
    Bug::UnsentWritesForgotten,
    Bug::BitClearedWhenServed,
    Bug::BitsOfCrashDropped,
    Bug::PeerDiskNotAwaited,
    Bug::FlushForgetsPeers,
    Bug::FuaForgotten,
    Bug::EpochNotFlushed,
    Bug::EpochsNotOrdered,
    Bug::ResyncNotFlushed,
    Bug::ReadBesideWrite,
    Bug::ResyncBesideWrite,
    Bug::TargetNotInconsistent,
    Bug::GenerationNotBegun,
    Bug::GenerationNotDurable,
    Bug::BitmapRowSaysEqual,
    Bug::StateNotTold,
    Bug::SecondPrimaryAllowed,
    Bug::OutdatedPromoted,
    Bug::LostCacheAccepted,
    Bug::WriteMadeUpToDate,
    Bug::ReceiptForgotten,
    Bug::VerifyNotHeld,
    Bug::VerifyNotMarked,
    Bug::CsumNotFlushed,
];

#[cfg(feature = "planted")]
mod switch {
    use super::Bug;
    use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    static PLANTED: AtomicU8 = AtomicU8::new(0);
    static MET: AtomicU64 = AtomicU64::new(0);

    /// For the whole process, from now on.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.store(bug.map_or(0, |bug| bug as u8), Ordering::Relaxed);
        MET.store(0, Ordering::Relaxed);
    }

    /// How often the planted bug made a difference: each place asks for it last, when nothing else decides.
    pub fn met() -> u64 {
        MET.load(Ordering::Relaxed)
    }

    pub(crate) fn planted(bug: Bug) -> bool {
        let is_planted = PLANTED.load(Ordering::Relaxed) == bug as u8;
        if is_planted {
            MET.fetch_add(1, Ordering::Relaxed);
        }
        is_planted
    }
}

#[cfg(feature = "planted")]
pub(crate) use switch::planted;
#[cfg(feature = "planted")]
pub use switch::{met, plant};

#[cfg(not(feature = "planted"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
