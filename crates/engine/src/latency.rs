//! How long requests of the application take, stage by stage: averages over the last thousands, for `status`.
//!
//! ```text
//! submitted -> door -> log -> disk
//!                          -> peer (each)   -> completed
//! ```
//! Bookkeeping only: nothing is decided by it.

use core::time::Duration;

/// Requests after which an average forgets half of what it knows.
const MEMORY: u32 = 4096;

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Average {
    count: u32,
    sum_ns: u64,
}

impl Average {
    pub(crate) fn add(&mut self, time: Duration) {
        if self.count == MEMORY {
            self.count /= 2;
            self.sum_ns /= 2;
        }
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(time.as_nanos() as u64);
    }

    /// `None`: nothing was measured yet.
    pub fn get(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.sum_ns / u64::from(self.count)))
    }
}

/// Of one volume. What a peer takes is with the peer ([`crate::PeerDeviceStatus::answer`]).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Latency {
    /// Writes, from the application to its completion.
    pub write: Average,
    /// Of it, before it is let in: the peers have as much as they may, a handshake runs, there is no data.
    pub door: Average,
    /// Then, until it goes to disk and peers: an overlapping write, the activity log.
    pub log: Average,
    /// Then, on the own disk.
    pub disk: Average,
    pub read: Average,
    pub flush: Average,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_follows_a_change() {
        let mut average = Average::default();
        assert_eq!(average.get(), None);
        let micros = |n: u64| Duration::from_micros(n);
        (0..10_000).for_each(|_| average.add(micros(100)));
        assert_eq!(average.get(), Some(micros(100)));
        (0..20_000).for_each(|_| average.add(micros(300)));
        let now = average.get().unwrap();
        assert!(now > micros(290) && now <= micros(300), "{now:?}");
    }
}
