//! Uses one CPU for a given time, so that there is a load to scale on.

use std::{hint::black_box, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::Semaphore;

/// The longest burn, in milliseconds, so that load made by mistake ends by itself.
pub const LONGEST_MS: u64 = 10_000;

/// How many burns may run at once.
const PLACES: usize = 64;

/// Bounds how many burns run at once.
#[derive(Clone)]
pub struct Burner {
    places: Arc<Semaphore>,
}

/// Why nothing was burned.
#[derive(Debug)]
pub enum Refusal {
    /// As many burns run as may.
    Busy,
    /// The thread's clock could not be read, or the thread ended early.
    Broken(anyhow::Error),
}

impl Burner {
    /// Returns a burner with all its places free.
    pub fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(PLACES)) }
    }

    /// Uses one CPU until a thread has spent `time` on it, however long it has to wait for that CPU.
    ///
    /// # Errors
    /// [`Refusal::Busy`] at once when all places are taken.
    pub async fn burn(&self, time: Duration) -> Result<(), Refusal> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refusal::Busy)?;
        let burned = tokio::task::spawn_blocking(move || {
            let _place = place; // held by the thread: a client that goes away does not free the CPU
            spend(time)
        });
        burned.await.context("wait for the burning thread").and_then(|spent| spent).map_err(Refusal::Broken)
    }
}

fn spend(time: Duration) -> Result<()> {
    let began = thread_cpu_time()?;
    let mut number = 1_u64;
    while thread_cpu_time()? - began < time {
        for _ in 0..10_000 {
            number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    Ok(())
}

fn thread_cpu_time() -> Result<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).context("read the thread's CPU time")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_burn_takes_at_least_its_time() {
        let began = Instant::now();

        Burner::new().burn(Duration::from_millis(30)).await.unwrap();

        assert!(began.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn a_burn_without_a_place_is_refused_at_once() {
        let burner = Burner { places: Arc::new(Semaphore::new(0)) };

        let refused = burner.burn(Duration::from_secs(1)).await;

        assert!(matches!(refused, Err(Refusal::Busy)));
    }
}
