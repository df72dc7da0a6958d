//! How much may be asked for now, at a rate: bytes that are earned with time and spent by requests. Resync and verify ask
//! ahead of their rate by one request at most.

use core::time::Duration;

use types::Time;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// Negative: asked too much.
    bytes: i64,
    at: Time,
}

impl Allowance {
    pub fn new(now: Time) -> Allowance {
        Allowance { bytes: 0, at: now }
    }

    /// `rate`: bytes a second, 0: unlimited. A tenth of a second may be saved up, but at least `request_bytes`.
    pub fn refill(&mut self, now: Time, rate: u64, request_bytes: u64) {
        if rate == 0 {
            return;
        }
        let earned = u128::from(rate) * now.since(self.at).as_nanos() / 1_000_000_000;
        let most = (rate / 10).max(request_bytes) as i64;
        if earned > 0 {
            self.bytes = self.bytes.saturating_add(earned as i64).min(most);
            self.at = now;
        }
    }

    pub fn spend(&mut self, bytes: u64) {
        self.bytes -= bytes as i64;
    }

    pub fn is_spent(&self, rate: u64) -> bool {
        rate > 0 && self.bytes <= 0
    }

    /// When something may be asked for again; `None`: now.
    pub fn ready_at(&self, rate: u64) -> Option<Time> {
        if !self.is_spent(rate) {
            return None;
        }
        let missing = (1 - self.bytes) as u128 * 1_000_000_000 / u128::from(rate);
        Some(self.at + Duration::from_nanos(missing as u64 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_earned_with_time_and_spent_by_requests() {
        let start = Time::ZERO + Duration::from_secs(5);
        let mut allowance = Allowance::new(start);
        assert!(allowance.is_spent(1000) && !allowance.is_spent(0));
        let at = allowance.ready_at(1000).unwrap();
        assert_eq!(at.since(start), Duration::from_nanos(1_000_001));
        allowance.refill(at, 1000, 4096);
        assert_eq!((allowance.bytes, allowance.ready_at(1000)), (1, None));
        allowance.spend(4096);
        assert_eq!(allowance.ready_at(1000).unwrap().since(at), Duration::from_nanos(4_096_000_001));
        allowance.refill(at + Duration::from_secs(3600), 1000, 4096);
        assert_eq!(allowance.bytes, 4096, "no more than one request is saved up");
    }
}
