//! A token's two limits: requests at once, and calls a day.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use std::time::Duration;

use jiff::civil::Date;
use tokio::time::Instant;

use super::answer::Refusal;

/// A request that takes one of its token's slots.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    /// Unique.
    pub(super) id: u64,
    /// The connection that it came on.
    pub(super) socket: Arc<TcpStream>,
}

impl Holder {
    /// Whether its client has left. The client's next request, on another connection, can arrive before the task that serves this one
    /// notices it. So the socket itself is asked.
    fn has_left(&self) -> bool {
        match self.socket.peek(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// A token's limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Requests at once.
    pub(super) simultaneous: usize,
    /// Calls a day.
    pub(super) daily: u64,
}

/// A token's requests in progress, and the calls that it has spent.
#[derive(Debug, Default)]
pub(super) struct TokenUsage {
    holders: Vec<Holder>,
    peak: usize,
    day: Option<Date>,
    used: u64,
    /// The number that a slow counter shows, and when it was counted.
    shown: Option<(Instant, u64)>,
}

impl TokenUsage {
    /// Takes a slot and spends `cost` calls; returns the calls spent today. A refused request spends none.
    pub(super) fn admit(&mut self, limits: Limits, today: Date, holder: Holder, cost: u64) -> Result<u64, Refusal> {
        let allowed = limits.simultaneous;
        if self.holders.len() >= allowed {
            self.holders.retain(|holder| !holder.has_left());
        }
        self.peak = self.peak.max(self.holders.len() + 1);
        if self.holders.len() >= allowed {
            return Err(Refusal::TooMany(allowed));
        }
        if self.day != Some(today) {
            self.day = Some(today);
            self.used = 0;
        }
        if cost > 0 && self.used >= limits.daily {
            return Err(Refusal::QuotaUsedUp);
        }
        self.used += cost;
        self.holders.push(holder);
        Ok(self.used)
    }

    /// The calls spent today, as shown by a counter that can be up to `age` old.
    pub(super) fn shown(&mut self, age: Duration) -> u64 {
        match self.shown {
            Some((at, used)) if at.elapsed() < age => used,
            _ => {
                self.shown = Some((Instant::now(), self.used));
                self.used
            }
        }
    }

    /// Frees the slot of the request with this id.
    pub(super) fn release(&mut self, id: u64) {
        self.holders.retain(|holder| holder.id != id);
    }

    /// The most requests at once, refused ones too.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }

    /// Resets the counts. Requests in progress stay, and the peak starts with their number.
    pub(super) fn forget(&mut self) {
        self.used = 0;
        self.shown = None;
        self.peak = self.holders.len();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const fn limits(daily: u64) -> Limits {
        Limits { simultaneous: 2, daily }
    }

    fn day(day: i8) -> Date {
        jiff::civil::date(2026, 7, day)
    }

    /// The client's end of a connection, and a holder on the server's end.
    fn holder(id: u64) -> (TcpStream, Holder) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = Arc::new(socket);
        (client, Holder { id, socket })
    }

    #[test]
    fn token_refuses_a_third_request_until_one_is_done_or_has_left() {
        let (limits, today) = (limits(10), day(1));
        let mut usage = TokenUsage::default();
        let clients: Vec<_> = (1..=5).map(holder).collect();
        let mut admit = |index: usize| usage.admit(limits, today, clients[index].1.clone(), 1);
        assert_eq!((admit(0), admit(1)), (Ok(1), Ok(2)));
        assert_eq!(admit(2), Err(Refusal::TooMany(2)));
        clients[0].0.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(admit(2), Ok(3));
        assert_eq!(admit(3), Err(Refusal::TooMany(2)));
        usage.release(2);
        assert_eq!(usage.admit(limits, today, clients[4].1.clone(), 1), Ok(4));
        assert_eq!(usage.peak(), 3);
    }

    #[test]
    fn quota_starts_again_with_the_day_and_refusals_spend_nothing() {
        let limits = limits(2);
        let mut usage = TokenUsage::default();
        let (_client, holder) = holder(1);
        for (today, answer) in [(1, Ok(1)), (1, Ok(2)), (1, Err(Refusal::QuotaUsedUp)), (2, Ok(1))] {
            let admitted = usage.admit(limits, day(today), holder.clone(), 1);
            assert_eq!(admitted, answer);
            usage.release(1);
        }
        usage.forget();
        assert_eq!(usage.admit(limits, day(2), holder, 1), Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_counter_shows_an_earlier_count() {
        let mut usage = TokenUsage { used: 3, ..TokenUsage::default() };
        let age = Duration::from_secs(60);
        assert_eq!(usage.shown(age), 3);
        usage.used = 5;
        assert_eq!((usage.shown(age), usage.shown(Duration::ZERO)), (3, 5));
        usage.used = 7;
        tokio::time::advance(age).await;
        assert_eq!(usage.shown(age), 7);
    }
}
