//! Waiting for a condition, with a deadline and an error that says what was last seen.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

/// The first pause between two looks; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Calls `probe` until it returns `Ok`, and returns that value.
///
/// `Err` means "not yet" and carries what was seen instead, for the error. One call of `probe` may
/// not outlast the deadline either: it is dropped then. Fails when `deadline` has passed, with
/// `what` and the last thing seen.
///
/// ```
/// # use std::time::Duration;
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let mut n = 0;
/// let seen = lictor_testbed::wait::until("three looks", Duration::from_secs(1), async || {
///     n += 1;
///     if n >= 3 { Ok(n) } else { Err(format!("only {n}")) }
/// })
/// .await?;
/// assert_eq!(seen, 3);
/// # anyhow::Ok(()) })?;
/// # anyhow::Ok(())
/// ```
pub async fn until<T, E, F>(what: &str, deadline: Duration, mut probe: F) -> Result<T>
where
    E: Display,
    F: AsyncFnMut() -> Result<T, E>,
{
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut last = String::from("nothing: the first look did not return");
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = format!("{seen:#}"),
            Err(_) => {}
        }
        if started.elapsed() + pause > deadline {
            return Err(anyhow!(
                "waited {:.1} s in vain for {what}; last seen: {last}",
                started.elapsed().as_secs_f64()
            ));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_names_the_wish_and_the_last_sight() {
        let error = until("rain", Duration::from_millis(60), async || {
            Err::<(), _>("sunshine")
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("rain") && error.contains("sunshine"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_probe_that_hangs_ends_at_the_deadline() {
        let started = Instant::now();
        let result = until("an answer", Duration::from_millis(50), async || {
            std::future::pending::<()>().await;
            Err::<(), _>("never")
        })
        .await;
        assert!(result.is_err());
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
