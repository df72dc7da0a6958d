//! How far a resync or verify is: percent, rate, seconds left. Like DRBD: a ring of marks 3 s apart, so that the rate
//! is that of the last 18 to 21 s and not of the whole run.

use core::time::Duration;

use types::Time;

/// Distance of two marks.
pub const MARK_STEP: Duration = Duration::from_secs(3);
/// Marks kept. Source: DRBD.
pub const MARKS: usize = 8;

/// What is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    pub total_bits: u64,
    pub left_bits: u64,
    /// 0..=10000, rounded down: 100 % is reached only with nothing left.
    pub done_percent_hundredths: u32,
    pub rate_kib: u64,
    /// `None`: nothing moved lately.
    pub left_seconds: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    time: Time,
    left_bits: u64,
}

#[derive(Clone, Debug)]
pub struct Marks {
    total_bits: u64,
    /// Storage behind one bit. Bytes.
    block_bytes: u64,
    ring: [Mark; MARKS],
    newest: usize,
}

impl Marks {
    /// At the start of a run over `total_bits` bits.
    pub fn new(now: Time, total_bits: u64, block_bytes: u64) -> Marks {
        let start = Mark { time: now, left_bits: total_bits };
        Marks { total_bits, block_bytes, ring: [start; MARKS], newest: 0 }
    }

    /// To be called whenever bits fell, at least every few seconds. A run that does not move sets no mark, so the rate
    /// sinks slowly instead of jumping to zero.
    pub fn update(&mut self, now: Time, left_bits: u64) {
        let newest = self.ring[self.newest];
        if now.since(newest.time) < MARK_STEP || left_bits == newest.left_bits {
            return;
        }
        self.newest = (self.newest + 1) % MARKS;
        self.ring[self.newest] = Mark { time: now, left_bits };
    }

    /// After a pause: what went on before it says nothing about the rate now.
    pub fn restart(&mut self, now: Time, left_bits: u64) {
        self.ring = [Mark { time: now, left_bits }; MARKS];
        self.newest = 0;
    }

    /// Speed since the second-newest mark; compared with `c-min-rate` by the brake. KiB/s.
    pub fn late_rate_kib(&self, now: Time, left_bits: u64) -> u64 {
        self.rate_since(self.ring[(self.newest + MARKS - 1) % MARKS], now, left_bits)
    }

    pub fn progress(&self, now: Time, left_bits: u64) -> Progress {
        // The oldest mark but one: the oldest is about to be replaced.
        let mark = self.ring[(self.newest + 2) % MARKS];
        // Bits that were set during the run can make more than there were.
        let total = self.total_bits.max(left_bits);
        let done = u128::from(total - left_bits);
        let done_percent_hundredths = if total == 0 { 10_000 } else { (done * 10_000 / u128::from(total)) as u32 };
        let moved = mark.left_bits.saturating_sub(left_bits);
        let left_seconds = match (left_bits, moved) {
            (0, _) => Some(0),
            (_, 0) => None,
            _ => {
                let nanos = now.since(mark.time).as_nanos() * u128::from(left_bits) / u128::from(moved);
                Some(u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX))
            }
        };
        let rate_kib = self.rate_since(mark, now, left_bits);
        Progress { total_bits: total, left_bits, done_percent_hundredths, rate_kib, left_seconds }
    }

    fn rate_since(&self, mark: Mark, now: Time, left_bits: u64) -> u64 {
        let bytes = u128::from(mark.left_bits.saturating_sub(left_bits)) * u128::from(self.block_bytes);
        // Less than a millisecond is no measurement.
        let millis = now.since(mark.time).as_millis().max(1);
        u64::try_from(bytes * 1000 / millis / 1024).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_steady_run() {
        let mut marks = Marks::new(at(100), 100_000, 4096);
        // 1000 bits of 4 KiB in a second = 4000 KiB/s.
        for second in 0..=30 {
            marks.update(at(100 + second), 100_000 - second * 1000);
        }
        let progress = marks.progress(at(130), 70_000);
        assert_eq!(
            progress,
            Progress {
                total_bits: 100_000,
                left_bits: 70_000,
                done_percent_hundredths: 3000,
                rate_kib: 4000,
                left_seconds: Some(70)
            }
        );
        assert_eq!(marks.late_rate_kib(at(130), 70_000), 4000);
    }

    #[test]
    fn the_rate_is_that_of_the_last_marks() {
        let mut marks = Marks::new(at(0), 1_000_000, 4096);
        let mut left = 1_000_000;
        // 30 s at 10000 bits/s, then 60 s at 100 bits/s = 400 KiB/s: only the slow part is left in the ring.
        for second in 1..=90 {
            left -= if second <= 30 { 10_000 } else { 100 };
            marks.update(at(second), left);
        }
        assert_eq!(left, 694_000);
        let progress = marks.progress(at(90), left);
        assert_eq!((progress.rate_kib, progress.left_seconds), (400, Some(6940)));
        // The ring: marks at 69, 72, .. 90; the oldest but one is 72.
        assert_eq!(marks.ring[(marks.newest + 2) % MARKS].time, at(72));
    }

    #[test]
    fn a_run_that_stands_still_has_no_end() {
        let mut marks = Marks::new(at(0), 10, 4096);
        marks.update(at(60), 10);
        let progress = marks.progress(at(60), 10);
        assert_eq!((progress.done_percent_hundredths, progress.rate_kib, progress.left_seconds), (0, 0, None));
    }

    #[test]
    fn the_ends_of_the_scale() {
        let marks = Marks::new(at(0), 0, 4096);
        assert_eq!(marks.progress(at(0), 0).done_percent_hundredths, 10_000);
        let marks = Marks::new(at(0), 1_000_000, 4096);
        assert_eq!(marks.progress(at(1), 1).done_percent_hundredths, 9_999);
        assert_eq!(marks.progress(at(1), 0).left_seconds, Some(0));
        // More bits than at the start: writes came in between.
        assert_eq!(marks.progress(at(1), 2_000_000).done_percent_hundredths, 0);
        let huge = Marks::new(at(0), u64::MAX, 1 << 20);
        assert_eq!(huge.progress(at(0), 1).rate_kib, u64::MAX);
    }
}
