//! Messages between lanes: one answer ([`oneshot`]) or a bounded queue ([`mailbox`]).

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The other end is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the other end is gone")]
pub struct Closed;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

struct One<T> {
    value: Option<T>,
    closed: bool,
    waker: Option<Waker>,
}

/// Sends the one value.
pub struct OneSender<T>(Arc<Mutex<One<T>>>);

/// A future of the one value, or [`Closed`] when the sender was dropped without sending.
pub struct OneReceiver<T>(Arc<Mutex<One<T>>>);

pub fn oneshot<T: Send>() -> (OneSender<T>, OneReceiver<T>) {
    let shared = Arc::new(Mutex::new(One { value: None, closed: false, waker: None }));
    (OneSender(Arc::clone(&shared)), OneReceiver(shared))
}

impl<T> OneSender<T> {
    pub fn send(self, value: T) {
        lock(&self.0).value = Some(value);
    }
}

impl<T> Drop for OneSender<T> {
    fn drop(&mut self) {
        let mut one = lock(&self.0);
        one.closed = true;
        let waker = one.waker.take();
        drop(one);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for OneReceiver<T> {
    type Output = Result<T, Closed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut one = lock(&self.0);
        if let Some(value) = one.value.take() {
            return Poll::Ready(Ok(value));
        }
        if one.closed {
            return Poll::Ready(Err(Closed));
        }
        one.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct Mail<T> {
    queue: VecDeque<T>,
    bound: usize,
    senders: usize,
    receiver_gone: bool,
    receiver: Option<Waker>,
    blocked: Vec<Waker>,
}

/// Puts messages into a bounded queue; clones share it.
pub struct MailSender<T>(Arc<Mutex<Mail<T>>>);

/// Takes messages out; there is one.
pub struct MailReceiver<T>(Arc<Mutex<Mail<T>>>);

/// A queue of at most `bound` messages. A full one makes senders wait.
pub fn mailbox<T: Send>(bound: usize) -> (MailSender<T>, MailReceiver<T>) {
    let mail = Mail {
        queue: VecDeque::new(),
        bound: bound.max(1),
        senders: 1,
        receiver_gone: false,
        receiver: None,
        blocked: Vec::new(),
    };
    let shared = Arc::new(Mutex::new(mail));
    (MailSender(Arc::clone(&shared)), MailReceiver(shared))
}

impl<T> MailSender<T> {
    /// Waits for room; gives the message back when the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), T> {
        let mut message = Some(message);
        poll_fn(|cx| {
            let mut mail = lock(&self.0);
            if mail.receiver_gone {
                return Poll::Ready(Err(message.take().expect("polled after the end")));
            }
            if mail.queue.len() >= mail.bound {
                mail.blocked.push(cx.waker().clone());
                return Poll::Pending;
            }
            mail.queue.push_back(message.take().expect("polled after the end"));
            let waker = mail.receiver.take();
            drop(mail);
            if let Some(waker) = waker {
                waker.wake();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Sends if there is room now.
    pub fn try_send(&self, message: T) -> Result<(), T> {
        let mut mail = lock(&self.0);
        if mail.receiver_gone || mail.queue.len() >= mail.bound {
            return Err(message);
        }
        mail.queue.push_back(message);
        let waker = mail.receiver.take();
        drop(mail);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Clone for MailSender<T> {
    fn clone(&self) -> Self {
        lock(&self.0).senders += 1;
        MailSender(Arc::clone(&self.0))
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        let mut mail = lock(&self.0);
        mail.senders -= 1;
        let waker = if mail.senders == 0 { mail.receiver.take() } else { None };
        drop(mail);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> MailReceiver<T> {
    /// The next message, or `None` when it is empty and all senders are gone.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut mail = lock(&self.0);
        let Some(message) = mail.queue.pop_front() else {
            if mail.senders == 0 {
                return Poll::Ready(None);
            }
            mail.receiver = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let blocked = std::mem::take(&mut mail.blocked);
        drop(mail);
        for waker in blocked {
            waker.wake();
        }
        Poll::Ready(Some(message))
    }
}

impl<T> Drop for MailReceiver<T> {
    fn drop(&mut self) {
        let mut mail = lock(&self.0);
        mail.receiver_gone = true;
        let queue = std::mem::take(&mut mail.queue);
        let blocked = std::mem::take(&mut mail.blocked);
        drop(mail);
        drop(queue);
        for waker in blocked {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::poll_once;

    #[test]
    fn a_full_mailbox_pushes_back_and_order_is_kept() {
        let (tx, mut rx) = mailbox::<u32>(1);
        assert!(poll_once(Box::pin(tx.send(1)).as_mut()).is_ready());
        let mut second = Box::pin(tx.send(2));
        assert!(poll_once(second.as_mut()).is_pending());
        assert_eq!(poll_once(Box::pin(rx.recv()).as_mut()), Poll::Ready(Some(1)));
        assert!(poll_once(second.as_mut()).is_ready());
        drop(second);
        drop(tx);
        assert_eq!(poll_once(Box::pin(rx.recv()).as_mut()), Poll::Ready(Some(2)));
        assert_eq!(poll_once(Box::pin(rx.recv()).as_mut()), Poll::Ready(None));
    }

    #[test]
    fn a_sender_that_dies_is_noticed() {
        let (tx, rx) = oneshot::<u32>();
        let mut rx = Box::pin(rx);
        assert!(poll_once(rx.as_mut()).is_pending());
        drop(tx);
        assert_eq!(poll_once(rx.as_mut()), Poll::Ready(Err(Closed)));
    }
}
