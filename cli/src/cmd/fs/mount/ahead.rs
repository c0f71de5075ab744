//! Reading ahead of those who read a file from front to back.
//!
//! The kernel asks for 128 KiB at a time, often for several such pieces at once and not in order.
//! Whoever goes on where the same file was read before gets whole windows: one read of the device for
//! eight questions, and the next one under way before it is asked for. A kernel that was allowed to asks
//! for whole megabytes, ahead of its reader: nothing is left to do then.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;
use std::rc::Rc;
use varve_block::sync::Notify;
use varve_block::{Dyn, IoView, Rt};
use varve_fs::{Fs, InodeId, Result};

/// Bytes of a window.
const WINDOW: u64 = 1 << 20;
/// Pieces that may come out of order.
const PIECE: u64 = 64 << 10;
/// Who asks for so much needs no window.
const LARGE: usize = 512 << 10;
/// Windows kept for one reader: the one in use, its neighbours, the next.
const WINDOWS: usize = 4;
/// Files watched at once.
const READERS: usize = 16;
/// How far from the last read a question may lie and still be of the same run.
const NEAR: u64 = 1 << 20;

pub(super) struct Ahead {
    rt: Rt,
    fs: Rc<Fs<Dyn>>,
    /// The one that was used last at the end.
    readers: RefCell<VecDeque<Rc<Reader>>>,
}

struct Reader {
    id: InodeId,
    /// Where the farthest read of the run ended.
    reached: Cell<u64>,
    /// Reads of the run so far.
    run: Cell<u32>,
    windows: RefCell<VecDeque<Rc<Window>>>,
}

struct Window {
    start: u64,
    /// `None` while it is read, an error kept as absent bytes: who needs those reads them himself.
    bytes: RefCell<Option<Option<Vec<u8>>>>,
    ended: Notify,
}

/// What was read.
pub(super) enum Bytes {
    /// In the memory that the device put it to, which must go back before long.
    Lent(IoView),
    Own(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Lent(view) => view,
            Bytes::Own(bytes) => bytes,
        }
    }
}

impl Ahead {
    pub(super) fn new(rt: Rt, fs: Rc<Fs<Dyn>>) -> Ahead {
        Ahead { rt, fs, readers: RefCell::default() }
    }

    /// As [`Fs::read`].
    pub(super) async fn read(&self, id: InodeId, offset: u64, len: usize) -> Result<Bytes> {
        let reader = if len < LARGE { self.in_a_run(id, offset, len as u64) } else { None };
        let Some(reader) = reader else {
            return match self.fs.read_lent(id, offset, len).await? {
                Some(view) => Ok(Bytes::Lent(view)),
                None => self.fs.read(id, offset, len).await.map(Bytes::Own),
            };
        };
        let size = self.fs.inode(id).await?.size;
        let end = offset.saturating_add(len as u64).min(size);
        let mut out = Vec::with_capacity(len);
        let mut at = offset;
        let (first, last) = (offset / WINDOW, end.saturating_sub(1) / WINDOW);
        for n in first..=last + 1 {
            if n * WINDOW < size {
                self.window(&reader, n * WINDOW);
            }
        }
        while at < end {
            let window = self.window(&reader, at - at % WINDOW);
            let skip = usize::try_from(at - window.start).unwrap_or(usize::MAX);
            let want = usize::try_from(end - at).unwrap_or(usize::MAX);
            if !window.append(skip, want, &mut out).await {
                return self.fs.read(id, offset, len).await.map(Bytes::Own);
            }
            at = offset + out.len() as u64;
        }
        Ok(Bytes::Own(out))
    }

    /// The reader of a file, if this question goes on with what it did before.
    fn in_a_run(&self, id: InodeId, offset: u64, len: u64) -> Option<Rc<Reader>> {
        let end = offset.saturating_add(len);
        let mut readers = self.readers.borrow_mut();
        let known = readers.iter().position(|reader| reader.id == id);
        let Some(reader) = known.and_then(|at| readers.remove(at)) else {
            readers.truncate(READERS - 1);
            // A file's first byte is where most runs begin.
            let run = Cell::new(u32::from(offset == 0));
            let windows = RefCell::default();
            readers.push_front(Rc::new(Reader { id, reached: Cell::new(end), run, windows }));
            return None;
        };
        readers.push_front(Rc::clone(&reader));
        let reached = reader.reached.get();
        // The kernel reads ahead in larger pieces: a small one that is only near is one of many at random.
        let goes_on = offset == reached || (len >= PIECE && offset.abs_diff(reached) <= NEAR);
        if !goes_on {
            reader.reached.set(end);
            reader.run.set(0);
            reader.windows.borrow_mut().clear();
            return None;
        }
        reader.reached.set(reached.max(end));
        reader.run.set(reader.run.get().saturating_add(1));
        (reader.run.get() > 1).then_some(reader)
    }

    /// The window at `start`, under way if it was not there.
    fn window(&self, reader: &Reader, start: u64) -> Rc<Window> {
        let mut windows = reader.windows.borrow_mut();
        if let Some(known) = windows.iter().find(|window| window.start == start) {
            return Rc::clone(known);
        }
        let window = Rc::new(Window { start, bytes: RefCell::new(None), ended: Notify::new() });
        windows.truncate(WINDOWS - 1);
        windows.push_front(Rc::clone(&window));
        let (fs, id, mine) = (Rc::clone(&self.fs), reader.id, Rc::clone(&window));
        self.rt.spawn(async move {
            let bytes = fs.read(id, start, 1 << 20).await.ok();
            *mine.bytes.borrow_mut() = Some(bytes);
            mine.ended.notify_all();
        });
        window
    }
}

impl Window {
    /// Waits for the window and appends its bytes from `skip` on, at most `want`. `false` when it
    /// could not be read, or has none there.
    async fn append(&self, skip: usize, want: usize, out: &mut Vec<u8>) -> bool {
        loop {
            let ended = self.ended.notified();
            if let Some(bytes) = &*self.bytes.borrow() {
                let Some(got) = bytes.as_ref().and_then(|bytes| bytes.get(skip..)) else {
                    return false;
                };
                out.extend_from_slice(&got[..got.len().min(want)]);
                return !got.is_empty();
            }
            ended.await;
        }
    }
}
