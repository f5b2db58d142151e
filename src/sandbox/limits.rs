//! A token's two limits: requests at once, and calls a day.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use super::Options;
use super::answer::Refusal;

/// A request that holds one of its token's places.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    /// Unlike every other's.
    pub(super) id: u64,
    /// The connection that it came on.
    pub(super) socket: Arc<TcpStream>,
}

impl Holder {
    /// Whether its client has left. The task that serves it may be told only after a request that the client has sent since
    /// on another connection, so the socket itself is asked.
    fn has_left(&self) -> bool {
        match self.socket.peek(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// What a token has in hand and has used.
#[derive(Debug, Default)]
pub(super) struct Use {
    holders: Vec<Holder>,
    peak: usize,
    day: i64,
    used: u64,
}

impl Use {
    /// Takes a place and spends a call; returns the calls spent today. A refused request spends none.
    pub(super) fn admit(&mut self, options: &Options, today: i64, holder: Holder) -> Result<u64, Refusal> {
        let allowed = options.max_simultaneous.get();
        if self.holders.len() >= allowed {
            self.holders.retain(|holder| !holder.has_left());
        }
        self.peak = self.peak.max(self.holders.len() + 1);
        if self.holders.len() >= allowed {
            return Err(Refusal::TooMany(allowed));
        }
        if self.day != today {
            self.day = today;
            self.used = 0;
        }
        if self.used >= options.daily_limit {
            return Err(Refusal::QuotaUsedUp);
        }
        self.used += 1;
        self.holders.push(holder);
        Ok(self.used)
    }

    /// Frees the place of the request with this id.
    pub(super) fn release(&mut self, id: u64) {
        self.holders.retain(|holder| holder.id != id);
    }

    /// The most requests at once, refused ones too.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }

    /// Starts the counts again, with the requests in hand.
    pub(super) fn forget(&mut self) {
        self.used = 0;
        self.peak = self.holders.len();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use super::*;

    fn options(daily_limit: u64) -> Options {
        Options {
            listen: ([127, 0, 0, 1], 0).into(),
            tokens: Vec::new(),
            operation: String::new(),
            latency: Duration::ZERO,
            max_simultaneous: NonZeroUsize::new(2).unwrap(),
            daily_limit,
            faults: Vec::new(),
            seed: None,
        }
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
    fn refuses_a_third_until_one_is_done_or_has_left() {
        let (options, today) = (options(10), 1);
        let mut usage = Use::default();
        let clients: Vec<_> = (1..=5).map(holder).collect();
        let mut admit = |index: usize| usage.admit(&options, today, clients[index].1.clone());
        assert_eq!((admit(0), admit(1)), (Ok(1), Ok(2)));
        assert_eq!(admit(2), Err(Refusal::TooMany(2)));
        clients[0].0.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(admit(2), Ok(3));
        assert_eq!(admit(3), Err(Refusal::TooMany(2)));
        usage.release(2);
        assert_eq!(usage.admit(&options, today, clients[4].1.clone()), Ok(4));
        assert_eq!(usage.peak(), 3);
    }

    #[test]
    fn starts_the_quota_again_with_the_day_and_spends_none_on_refusals() {
        let options = options(2);
        let mut usage = Use::default();
        let (_client, holder) = holder(1);
        for (day, answer) in [(1, Ok(1)), (1, Ok(2)), (1, Err(Refusal::QuotaUsedUp)), (2, Ok(1))] {
            let admitted = usage.admit(&options, day, holder.clone());
            assert_eq!(admitted, answer);
            usage.release(1);
        }
        usage.forget();
        assert_eq!(usage.admit(&options, 2, holder), Ok(1));
    }
}
