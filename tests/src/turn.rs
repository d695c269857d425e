//! Who may run beside whom: tests share the machine, a leak check needs it for itself.
//!
//! BPF programs and maps have no owner that can be read back, so a test that compares them before
//! and after must be the only one that makes any. Ordinary tests hold a shared turn through their
//! namespaces; a leak check holds the exclusive one. Within one thread turns nest.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

struct State {
    shared: usize,
    exclusive: bool,
}

static STATE: Mutex<State> = Mutex::new(State { shared: 0, exclusive: false });
static CHANGED: Condvar = Condvar::new();

/// No test takes as long.
const LONGEST: Duration = Duration::from_mins(10);

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// The right to use the machine; given back on drop, on the thread that took it.
#[derive(Debug)]
pub struct Turn {
    /// Whether this one, not an outer one of the same thread, changed the state, and how.
    exclusive: bool,
    /// A turn is counted by thread: it must not move to another.
    not_send: PhantomData<MutexGuard<'static, ()>>,
}

impl Turn {
    /// A turn beside other tests.
    pub fn shared() -> Self {
        Self::take(false)
    }

    /// A turn alone. Take it before any namespace.
    pub fn exclusive() -> Self {
        assert_eq!(
            HELD.get(),
            0,
            "take the leak baseline (exclusive turn) before the first namespace of the test"
        );
        Self::take(true)
    }

    fn take(exclusive: bool) -> Self {
        if HELD.get() == 0 {
            let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut state, wait) = CHANGED
                .wait_timeout_while(state, LONGEST, |now| {
                    now.exclusive || (exclusive && now.shared > 0)
                })
                .unwrap_or_else(PoisonError::into_inner);
            assert!(
                !wait.timed_out(),
                "no turn for {LONGEST:?}: does a thread of this very test hold one?"
            );
            if exclusive {
                state.exclusive = true;
            } else {
                state.shared += 1;
            }
            drop(state);
        }
        HELD.set(HELD.get() + 1);
        Self { exclusive, not_send: PhantomData }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        if HELD.get() > 0 {
            assert!(
                !self.exclusive || std::thread::panicking(),
                "a namespace of this test outlives its leak baseline: drop it before"
            );
            return;
        }
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        // The last to go of this thread gives back what its first took.
        if state.exclusive {
            state.exclusive = false;
        } else {
            state.shared -= 1;
        }
        drop(state);
        CHANGED.notify_all();
    }
}
