//! A branch of `select!` that may not be there.

/// Waits for `future`, or for ever where there is none.
///
/// # Cancel safety
/// That of `future`.
pub async fn or_never<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
