//! Many pieces of one request, a few at a time.

use crate::error::Result;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// At most this many bytes of one request are started before other tasks get their turn: what a
/// 4 KiB read may have to wait for beside a huge one.
pub(super) const TURN_BYTES: usize = 1 << 20;

/// Runs `jobs` (their length in bytes beside them) to their end, at most `width` at a time, starting
/// about `turn_bytes` of them per turn, and returns their results in order, or the first error. After
/// an error no further piece starts, but those in flight are awaited: a sibling must not still be
/// writing when the caller is told.
pub(super) async fn bounded<T, F: Future<Output = Result<T>>>(
    jobs: impl IntoIterator<Item = (usize, F)>,
    width: usize,
    turn_bytes: usize,
) -> Result<Vec<T>> {
    let mut jobs = jobs.into_iter();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::with_capacity(width);
    let mut results: Vec<Option<T>> = Vec::new();
    let (mut error, mut exhausted) = (None, false);
    poll_fn(move |cx| {
        let mut turn = 0;
        loop {
            running.retain_mut(|(index, job)| match job.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(Ok(value)) => {
                    results[*index] = Some(value);
                    false
                }
                Poll::Ready(Err(e)) => {
                    error.get_or_insert(e);
                    false
                }
            });
            let mut started = false;
            while running.len() < width && turn < turn_bytes && error.is_none() && !exhausted {
                let Some((bytes, job)) = jobs.next() else {
                    exhausted = true;
                    break;
                };
                running.push((results.len(), Box::pin(job)));
                results.push(None);
                turn += bytes;
                started = true;
            }
            if started {
                continue; // the new ones have not been polled yet
            }
            if running.is_empty() && (exhausted || error.is_some()) {
                let all = std::mem::take(&mut results).into_iter();
                let all = all.map(|r| r.expect("every piece ended well"));
                return Poll::Ready(error.take().map_or_else(|| Ok(all.collect()), Err));
            }
            if running.len() < width && !exhausted && error.is_none() {
                cx.waker().wake_by_ref(); // the turn is spent, the work is not
            }
            return Poll::Pending;
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{DevId, Error, ErrorKind, Op};
    use crate::rt::Sim;
    use crate::sync::poll_once;
    use crate::units::Extent;
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    #[test]
    fn never_more_than_the_width_and_results_in_order() {
        Sim::new(5).run(|rt| async move {
            let (now, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let jobs = (0..40u64).map(|n| {
                let (rt, now, most) = (rt.clone(), Rc::clone(&now), Rc::clone(&most));
                let job = async move {
                    now.set(now.get() + 1);
                    most.set(most.get().max(now.get()));
                    let ns = rt.prng().below(50);
                    rt.sleep(Duration::from_nanos(ns)).await;
                    now.set(now.get() - 1);
                    Ok(n)
                };
                (1000, job)
            });
            let all = bounded(jobs, 4, TURN_BYTES).await.unwrap();
            assert_eq!(all, (0..40).collect::<Vec<_>>());
            assert_eq!(most.get(), 4);
        });
    }

    #[test]
    fn an_error_stops_new_pieces_and_waits_for_old_ones() {
        Sim::new(6).run(|rt| async move {
            let (started, ended) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let jobs = (0..40u64).map(|n| {
                let (rt, started, ended) = (rt.clone(), Rc::clone(&started), Rc::clone(&ended));
                let job = async move {
                    started.set(started.get() + 1);
                    rt.sleep(Duration::from_nanos(100 - n)).await;
                    ended.set(ended.get() + 1);
                    let dev = DevId::new("x");
                    match n {
                        3 => Err(Error::new(ErrorKind::Io, Op::Read, Extent::default(), &dev)),
                        _ => Ok(()),
                    }
                };
                (1000, job)
            });
            assert_eq!(bounded(jobs, 4, TURN_BYTES).await.unwrap_err().kind, ErrorKind::Io);
            assert_eq!((started.get(), ended.get()), (4, 4));
        });
    }

    #[test]
    fn a_huge_request_starts_no_more_than_a_turn_at_each_poll() {
        let done = Cell::new(0);
        let jobs = (0..32).map(|_| {
            let job = async {
                done.set(done.get() + 1);
                Ok(())
            };
            (TURN_BYTES, job)
        });
        let mut huge = Box::pin(bounded(jobs, 8, TURN_BYTES));
        let mut polls = 1;
        while poll_once(huge.as_mut()).is_pending() {
            assert_eq!(done.get(), polls);
            polls += 1;
        }
        assert_eq!(done.get(), 32);
    }
}
