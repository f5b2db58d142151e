//! Who waits at the gate, first come, first served.

use std::collections::VecDeque;

use tokio::sync::oneshot::Sender;

/// So many may wait before those are looked for who have left.
const FEW: usize = 64;

/// Those who wait for a `T`. Who has left is dropped when it comes to the head, and elsewhere only once their number has
/// doubled: the queue is as long as the prefetch, and it is looked at several times for each message.
pub(super) struct Waiting<T> {
    queue: VecDeque<Sender<T>>,
    /// The length at which those who have left are dropped next.
    full: usize,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), full: FEW }
    }
}

impl<T> Waiting<T> {
    /// Another one waits.
    pub(super) fn push(&mut self, waiting: Sender<T>) {
        if self.queue.len() >= self.full {
            self.queue.retain(|waiting| !waiting.is_closed());
            self.full = FEW.max(self.queue.len() * 2);
        }
        self.queue.push_back(waiting);
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&mut self) -> bool {
        while self.queue.front().is_some_and(Sender::is_closed) {
            self.queue.pop_front();
        }
        self.queue.is_empty()
    }

    /// Takes the one who has waited longest.
    pub(super) fn next(&mut self) -> Option<Sender<T>> {
        (!self.is_empty()).then(|| self.queue.pop_front()).flatten()
    }

    /// Sends everybody away.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::{Receiver, channel};

    use super::*;

    fn wait(waiting: &mut Waiting<usize>) -> Receiver<usize> {
        let (sender, receiver) = channel();
        waiting.push(sender);
        receiver
    }

    #[test]
    fn who_has_left_is_passed_over() {
        let mut waiting = Waiting::default();
        let [first, mut second, third] = [(); 3].map(|()| wait(&mut waiting));
        drop((first, third));
        assert!(!waiting.is_empty());
        waiting.next().unwrap().send(2).unwrap();
        assert_eq!(second.try_recv(), Ok(2));
        assert!(waiting.is_empty() && waiting.next().is_none());
    }

    #[test]
    fn who_has_left_behind_one_who_stays_takes_no_room_for_ever() {
        let mut waiting = Waiting::default();
        let _stays = wait(&mut waiting);
        for _ in 0..100_000 {
            drop(wait(&mut waiting));
            assert!(waiting.queue.len() <= FEW);
        }
        let many: Vec<_> = (0..FEW * 3).map(|_| wait(&mut waiting)).collect();
        assert!(waiting.queue.len() > many.len(), "who waits is kept");
    }
}
