//! Locks on ranges of bytes, for the requests of one thread.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use futures_channel::oneshot;

#[derive(Debug)]
struct Held {
    id: u64,
    range: Range<u64>,
    exclusive: bool,
}

impl Held {
    fn excludes(&self, range: &Range<u64>, exclusive: bool) -> bool {
        (self.exclusive || exclusive) && self.range.start < range.end && range.start < self.range.end
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: Vec<Held>,
    /// In the order of their coming. One whose receiver is gone does not want it any more.
    waiting: Vec<(Held, oneshot::Sender<RangeGuard>)>,
}

/// Locks on ranges. Shared locks overlap each other, an exclusive lock overlaps none. Who waits is served in
/// the order of coming.
#[derive(Clone, Debug, Default)]
pub struct RangeLocks {
    state: Rc<RefCell<State>>,
}

/// A lock, held as long as it lives.
#[derive(Debug)]
pub struct RangeGuard {
    id: u64,
    locks: RangeLocks,
}

impl RangeLocks {
    /// True if nobody holds or waits for anything.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.held.is_empty() && state.waiting.is_empty()
    }

    /// Waits for a lock on `range`.
    pub async fn lock(&self, range: Range<u64>, exclusive: bool) -> RangeGuard {
        let receiver = {
            let mut state = self.state.borrow_mut();
            let id = state.next;
            state.next += 1;
            let wish = Held { id, range, exclusive };
            let free = !state.held.iter().any(|h| h.excludes(&wish.range, exclusive))
                && !state.waiting.iter().any(|(w, _)| w.excludes(&wish.range, exclusive));
            if free {
                state.held.push(wish);
                return RangeGuard { id, locks: self.clone() };
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push((wish, sender));
            receiver
        };
        receiver.await.expect("who waits is served before the locks are gone")
    }

    fn release(&self, id: u64) {
        // A guard that its receiver does not take any more is released at the end, outside of the borrow.
        let mut unwanted = Vec::new();
        let mut state = self.state.borrow_mut();
        state.held.retain(|h| h.id != id);
        let mut n = 0;
        while n < state.waiting.len() {
            let (wish, _) = &state.waiting[n];
            let free = !state.held.iter().any(|h| h.excludes(&wish.range, wish.exclusive))
                && !state.waiting[..n].iter().any(|(w, _)| w.excludes(&wish.range, wish.exclusive));
            if !free {
                n += 1;
                continue;
            }
            let (wish, sender) = state.waiting.remove(n);
            let guard = RangeGuard { id: wish.id, locks: self.clone() };
            state.held.push(wish);
            if let Err(guard) = sender.send(guard) {
                unwanted.push(guard);
            }
        }
        drop(state);
        drop(unwanted);
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.locks.release(self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn locks_exclude_what_overlaps_and_keep_the_order() {
        let locks = RangeLocks::default();
        let a = locks.lock(0..10, true).now_or_never().unwrap();
        let b = locks.lock(10..20, true).now_or_never().unwrap();
        let mut shared = Box::pin(locks.lock(5..15, false));
        assert!((&mut shared).now_or_never().is_none());
        // It waits behind the one that came first, though nobody holds what it wants.
        drop(a);
        let mut late = Box::pin(locks.lock(0..6, true));
        assert!((&mut late).now_or_never().is_none());
        drop(b);
        let c = (&mut shared).now_or_never().unwrap();
        assert!((&mut late).now_or_never().is_none());
        let d = locks.lock(6..15, false).now_or_never().unwrap();
        drop(c);
        assert!((&mut late).now_or_never().is_some());
        drop(d);
        drop(late);
        assert!(locks.is_idle());
    }

    #[test]
    fn who_gave_up_does_not_hold_others() {
        let locks = RangeLocks::default();
        let a = locks.lock(0..10, true).now_or_never().unwrap();
        let mut gone = Box::pin(locks.lock(0..10, true));
        assert!((&mut gone).now_or_never().is_none());
        let mut next = Box::pin(locks.lock(0..10, true));
        assert!((&mut next).now_or_never().is_none());
        drop(gone);
        drop(a);
        assert!(next.now_or_never().is_some());
    }
}
