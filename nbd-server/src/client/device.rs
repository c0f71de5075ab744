//! [`NbdDevice`]: an export as a block device.

use super::link::{Call, Done, Failure, Link};
use super::says::Says;
use super::status::runs;
use crate::nbd::answer::Asked;
use crate::nbd::wire::{CommandFlags, TransmissionFlags, command};
use std::cell::Cell;
use std::rc::Rc;
use varve_block::sync::try_join_all;
use varve_block::{
    BlockDevice, BufPool, Data, Durability, Error, ErrorKind, Extent, ExtentStatus, Geometry,
    IoBuf, IoView, Op, Result, Sector, Sectors, Zero, chain,
};

/// Requests without data are cut into pieces of 1 GiB: their length is a `u32`, and each is one
/// step of a server that may work through it in one go.
const PIECE_WITHOUT_DATA: Sectors = Sectors(1 << 21);

/// An export, on one lane. Dropping it says goodbye to the server.
///
/// # Durability
/// A flush is the server's. Where the server has none, nothing is promised, which is said once.
///
/// # Locks
/// NBD has none: whether somebody else writes to the same export is the server's business.
pub struct NbdDevice {
    link: Rc<Link>,
    geometry: Geometry,
    /// The most that one request moves, for this server.
    piece: Sectors,
    /// Memory for zeroes that have to be sent.
    pool: BufPool,
    /// Writes that have finished without being durable; and how many of them a flush has covered.
    finished: Cell<u64>,
    flushed: Cell<u64>,
    /// A flush, or a write that includes one, has failed; or the connection, with writes not flushed.
    poisoned: Cell<bool>,
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        self.link.leave();
    }
}

impl NbdDevice {
    /// `piece`: the most that one request may move.
    pub(super) fn new(link: Rc<Link>, geometry: Geometry, piece: Sectors) -> NbdDevice {
        NbdDevice {
            link,
            geometry,
            piece,
            pool: BufPool::new(0),
            finished: Cell::new(0),
            flushed: Cell::new(0),
            poisoned: Cell::new(false),
        }
    }

    /// Waits for the end of the connection: why it was lost, or `None` when this device was dropped.
    pub fn lost(&self) -> impl Future<Output = Option<String>> + use<> {
        let link = Rc::clone(&self.link);
        async move { link.end().await.map(|lost| lost.to_string()) }
    }

    fn offers(&self, flags: TransmissionFlags) -> bool {
        self.link.terms.flags.contains(flags)
    }

    fn error(&self, kind: ErrorKind, op: Op, at: Extent) -> Error {
        Error::new(kind, op, at, &self.geometry.dev)
    }

    fn admit(&self, op: Op, at: Extent) -> Result<()> {
        self.geometry.admit(op, at)?;
        let reads = matches!(op, Op::Read | Op::Extents | Op::Prefetch);
        if reads || !self.poisoned.get() {
            return Ok(());
        }
        let error = self.error(ErrorKind::Poisoned, op, at);
        Err(match self.link.lost() {
            Some(lost) => error.with(lost.to_string()),
            None => error,
        })
    }

    /// One request of at most [`Self::piece`] sectors, or of any length if it moves no data.
    async fn ask(&self, op: Op, at: Extent, ask: Ask) -> Result<Done> {
        let length = u32::try_from(at.len.bytes()).expect("requests are cut into pieces");
        let (offset, length) = match ask.command {
            command::FLUSH => (0, 0),
            _ => (at.start.byte(), length),
        };
        let Ask { command, flags, asked, buf, data } = ask;
        let call = Call { command, flags, offset, length, asked };
        self.link.call(call, buf, data).await.map_err(|failure| self.failed(op, at, failure))
    }

    fn failed(&self, op: Op, at: Extent, failure: Failure) -> Error {
        match failure {
            Failure::Refused(refused) => {
                let says = Says(refused);
                self.error(says.kind(), op, at).with(says)
            }
            Failure::Lost(lost) => {
                // What was written is not durable, and no flush can make it so any more.
                if self.finished.get() != self.flushed.get() {
                    self.poisoned.set(true);
                }
                self.error(ErrorKind::Io, op, at).with(lost.to_string())
            }
        }
    }

    /// A flush did not happen. What was promised may be lost, and the server may have forgotten that.
    fn poison(&self, error: Error) -> Error {
        self.poisoned.set(true);
        let told = chain(&error);
        let dev = &self.geometry.dev;
        tracing::error!(
            %dev,
            error = %told,
            "a flush failed: nothing more is written until the export is opened again"
        );
        error
    }

    /// The flag of a request that has to be durable, where the server knows it.
    fn fua(&self, how: Durability) -> CommandFlags {
        match how {
            Durability::Fua if self.geometry.cheap_fua => CommandFlags::FUA,
            _ => CommandFlags::empty(),
        }
    }

    /// What is left to do for `how` once requests with [`Self::fua`] have ended.
    async fn settle(&self, how: Durability) -> Result<()> {
        if how == Durability::Fua && self.geometry.cheap_fua {
            return Ok(());
        }
        self.finished.set(self.finished.get() + 1);
        if how == Durability::Fua { self.flush().await } else { Ok(()) }
    }

    /// After a failed request that includes a flush: it may be the flush that failed, unless the
    /// server has refused to begin.
    fn judge_fua(&self, flags: CommandFlags, error: Error) -> Error {
        let refused =
            matches!(error.kind, ErrorKind::ReadOnly | ErrorKind::Unsupported | ErrorKind::Stopped);
        if refused || !flags.contains(CommandFlags::FUA) { error } else { self.poison(error) }
    }

    async fn write_piece(&self, at: Extent, data: IoView, flags: CommandFlags) -> Result<()> {
        let written = self.ask(Op::Write, at, Ask::write(flags, data.clone())).await;
        let Err(error) = written else { return Ok(()) };
        if error.kind == ErrorKind::NoSpace && flags.contains(CommandFlags::FUA) {
            // Was it the room, or the flush behind the write? Without the flush it shows.
            let again = Ask::write(CommandFlags::empty(), data);
            if self.ask(Op::Write, at, again).await.is_err() {
                return Err(error);
            }
        }
        Err(self.judge_fua(flags, error))
    }

    async fn written_zeroes(&self, range: Extent, flags: CommandFlags) -> Result<()> {
        let longest = range.len.min(self.piece);
        let zeroes = self.pool.take_zeroed(longest).await.freeze();
        for piece in range.pieces(longest) {
            self.write_piece(piece, zeroes.slice(0..piece.len.byte_len()), flags).await?;
        }
        Ok(())
    }

    async fn zero_pieces(&self, range: Extent, how: Zero, fua: CommandFlags) -> Result<()> {
        let mut flags = fua;
        flags.set(CommandFlags::NO_HOLE, !how.may_unmap);
        flags.set(CommandFlags::FAST_ZERO, how.only_if_fast);
        for piece in range.pieces(PIECE_WITHOUT_DATA) {
            let zeroed = self.ask(Op::WriteZeroes, piece, Ask::of(command::WRITE_ZEROES, flags));
            zeroed.await.map_err(|error| self.judge_fua(flags, error))?;
            // A refusal must have changed nothing, so only the first piece may be refused.
            flags.remove(CommandFlags::FAST_ZERO);
        }
        Ok(())
    }
}

/// A request, as the device makes it.
struct Ask {
    command: u16,
    flags: CommandFlags,
    asked: Asked,
    buf: Option<IoBuf>,
    data: Option<IoView>,
}

impl Ask {
    fn of(command: u16, flags: CommandFlags) -> Ask {
        Ask { command, flags, asked: Asked::Plain, buf: None, data: None }
    }

    fn write(flags: CommandFlags, data: IoView) -> Ask {
        Ask { data: Some(data), ..Ask::of(command::WRITE, flags) }
    }
}

impl BlockDevice for NbdDevice {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        self.admit(Op::Read, range)?;
        let structured = self.link.terms.structured;
        let one = async |at: Extent, buf: IoBuf| {
            let asked = Asked::Read { structured };
            let ask = Ask::of(command::READ, CommandFlags::empty());
            let done = self.ask(Op::Read, at, Ask { asked, buf: Some(buf), ..ask }).await?;
            Ok(done.buf.expect("a read brings its buffer home"))
        };
        if range.is_empty() {
            return Ok(buf);
        }
        if range.len <= self.piece {
            return one(range, buf).await;
        }
        let mut rest = Some(buf);
        let pieces = range.pieces(self.piece).map(|piece| {
            let (head, tail) = rest.take().expect("a buffer for each piece").split_at(piece.len);
            rest = Some(tail);
            one(piece, head)
        });
        let read = try_join_all(pieces.collect::<Vec<_>>()).await?;
        Ok(read.into_iter().reduce(IoBuf::join).expect("at least one piece"))
    }

    /// What comes back is frozen: the socket may still hold the bytes.
    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let range = Extent::new(at, data.sectors());
        self.admit(Op::Write, range)?;
        let view = data.freeze();
        let flags = self.fua(how);
        let pieces = range.pieces(self.piece).map(|piece| {
            let start = (piece.start - at).byte_len();
            self.write_piece(piece, view.slice(start..start + piece.len.byte_len()), flags)
        });
        try_join_all(pieces.collect::<Vec<_>>()).await?;
        self.settle(how).await?;
        Ok(Data::Shared(view))
    }

    async fn flush(&self) -> Result<()> {
        let all = Extent::new(Sector::ZERO, self.geometry.len);
        self.admit(Op::Flush, all)?;
        if self.geometry.read_only || !self.geometry.volatile_cache {
            return Ok(());
        }
        let finished = self.finished.get();
        let nothing = Extent::default();
        let ask = Ask::of(command::FLUSH, CommandFlags::empty());
        match self.ask(Op::Flush, nothing, ask).await {
            Ok(_) => {
                self.flushed.set(self.flushed.get().max(finished));
                Ok(())
            }
            Err(error) => Err(self.poison(Error { at: all, ..error })),
        }
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.admit(Op::Discard, range)?;
        if !self.geometry.can_discard {
            return Err(self.error(ErrorKind::Unsupported, Op::Discard, range));
        }
        for piece in range.pieces(PIECE_WITHOUT_DATA) {
            let ask = Ask::of(command::TRIM, CommandFlags::empty());
            self.ask(Op::Discard, piece, ask).await?;
        }
        self.settle(Durability::Cached).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.admit(Op::WriteZeroes, range)?;
        if range.is_empty() {
            return Ok(());
        }
        if how.only_if_fast && !self.geometry.fast_zero {
            return Err(self.error(ErrorKind::Unsupported, Op::WriteZeroes, range));
        }
        let flags = self.fua(how.durability);
        match self.offers(TransmissionFlags::SEND_WRITE_ZEROES) {
            true => self.zero_pieces(range, how, flags).await?,
            false => self.written_zeroes(range, flags).await?,
        }
        self.settle(how.durability).await
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.admit(Op::Extents, range)?;
        let (Some(context), false) = (self.link.terms.allocation, range.is_empty()) else {
            return Ok(vec![ExtentStatus::data(range)]);
        };
        let limit = limit.max(1);
        let range = Extent::new(range.start, range.len.min(PIECE_WITHOUT_DATA));
        let flags = if limit == 1 { CommandFlags::REQ_ONE } else { CommandFlags::empty() };
        let ask = Ask {
            asked: Asked::Status { context, limit },
            ..Ask::of(command::BLOCK_STATUS, flags)
        };
        let done = self.ask(Op::Extents, range, ask).await?;
        let mut runs = runs(range, self.geometry.block, &done.extents);
        runs.truncate(limit);
        Ok(runs)
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        self.admit(Op::Prefetch, range)?;
        if !self.offers(TransmissionFlags::SEND_CACHE) {
            return Ok(());
        }
        for piece in range.pieces(self.piece) {
            // A hint: the server may take it or not.
            let ask = Ask::of(command::CACHE, CommandFlags::empty());
            let _ = self.ask(Op::Prefetch, piece, ask).await;
        }
        Ok(())
    }
}

#[cfg(test)]
impl NbdDevice {
    pub(super) fn link(&self) -> &Link {
        &self.link
    }
}
