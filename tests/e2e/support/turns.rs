//! Beds that tests have to themselves, one after the other.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use super::Installed;

/// As many beds of a kind as tests may have one at the same time. Each is started when it is first needed.
pub struct Turns<const BEDS: usize> {
    beds: [Turn; BEDS],
    next: AtomicUsize,
}

struct Turn {
    taken: Mutex<()>,
    bed: OnceCell<Installed>,
}

impl<const BEDS: usize> Turns<BEDS> {
    pub const fn new() -> Self {
        Self {
            beds: [const {
                Turn {
                    taken: Mutex::const_new(()),
                    bed: OnceCell::const_new(),
                }
            }; BEDS],
            next: AtomicUsize::new(0),
        }
    }

    /// A bed for as long as the guard lives.
    pub async fn take<Start: Future<Output = Result<Installed>>>(
        &'static self,
        start: impl FnOnce() -> Start,
    ) -> Result<(MutexGuard<'static, ()>, &'static Installed)> {
        let mut free = self.beds.iter();
        let free = free.find_map(|turn| Some((turn.taken.try_lock().ok()?, turn)));
        let (guard, turn) = if let Some(free) = free {
            free
        } else {
            let turn = &self.beds[self.next.fetch_add(1, Ordering::Relaxed) % BEDS];
            (turn.taken.lock().await, turn)
        };
        let installed = turn.bed.get_or_try_init(start).await?;
        Ok((guard, installed))
    }
}
