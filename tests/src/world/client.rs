//! A client: asks for something, waits for the answer, holds it against the model, asks again.

use super::life::Life;
use super::{Ops, Violation};
use crate::model::{self, Change};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use varve_block::{
    Data, Durability, Dyn, Error, ErrorKind, Export, IoBuf, Prng, Result, Rt, Zero, chain,
};

/// Until the work of this life is done, or something was not allowed, or the export takes no more.
pub(super) async fn client(rt: &Rt, life: &Life, export: &Export<Dyn>, n: u64) {
    let chance = rt.prng().fork();
    while !life.is_over() {
        life.begun.fetch_add(1, SeqCst);
        life.ring();
        let place = place(&life.ops, export.size(), &chance, n);
        let answer = request(life, export, &chance, place).await;
        if let Err(error) = answer
            && !bear(life, &error)
        {
            return;
        }
        if chance.chance(1, 8) {
            rt.sleep(Duration::from_nanos(chance.below(50_000))).await;
        }
    }
}

/// Whether to go on after an error.
fn bear(life: &Life, error: &Error) -> bool {
    life.errors.fetch_add(1, SeqCst);
    if !life.errors_allowed {
        life.blame(Violation::Error(chain(error)));
    }
    life.errors_allowed && error.kind != ErrorKind::Poisoned
}

/// A place to ask for: mostly in the arena, where requests meet. With an operator about, each client
/// has a part of the arena to itself.
fn place(ops: &Ops, size: u64, chance: &Prng, client: u64) -> (u64, u64) {
    let part = ops.arena.min(size) / ops.clients as u64 / 4096 * 4096;
    let (first, arena) = match ops.operator {
        true => (client * part, part),
        false if chance.chance(1, 8) => (0, size),
        false => (0, ops.arena.min(size)),
    };
    let align = match chance.below(4) {
        0 => ops.align.max(4096),
        1 => ops.align.max(512),
        _ => ops.align,
    };
    let longest = match chance.below(4) {
        0 => 600.min(ops.longest),
        1 | 2 => 8192.min(ops.longest),
        _ => ops.longest,
    };
    let steps = |bytes: u64| (bytes / align).max(1);
    let offset = chance.below(steps(arena)) * align;
    let len = (1 + chance.below(steps(longest))) * align;
    let end = if ops.operator { arena } else { size };
    (first + offset, len.min(end - offset))
}

async fn request(
    life: &Life,
    export: &Export<Dyn>,
    chance: &Prng,
    (offset, len): (u64, u64),
) -> Result<()> {
    let pick = chance.below(100);
    if pick < life.ops.writes {
        return write(life, export, chance, offset, len).await;
    }
    match chance.below(24) {
        0..5 => flush(life, export).await,
        5..7 => zero(life, export, chance, offset, len).await,
        7 if life.ops.trims => {
            let change = life.model().trim(offset, len);
            let fua = chance.chance(1, 4);
            let answer = export.trim(offset, len, fua).await;
            finish(life, change, answer, fua)
        }
        8 => export.prefetch(offset, len).await,
        9 => {
            let runs = export.block_status(offset, len, 3).await?;
            let told: u64 = runs.iter().map(|r| r.len).sum();
            if told == 0 || told > len || runs.len() > 3 {
                life.blame(Violation::Error(format!("status of {offset}+{len}: {runs:?}")));
            }
            Ok(())
        }
        _ if !life.ops.reads => flush(life, export).await,
        _ => read(life, export, chance, offset, len).await,
    }
}

fn finish(life: &Life, change: Change, answer: Result<()>, fua: bool) -> Result<()> {
    life.model().finish(change, answer.is_ok(), fua);
    answer
}

async fn buffer(life: &Life, len: u64) -> IoBuf {
    let len = usize::try_from(len).expect("a request");
    life.pool.take_bytes(len).await
}

/// The buffer in some parts, cut anywhere.
fn parts(buf: IoBuf, chance: &Prng) -> Vec<IoBuf> {
    let mut list = Vec::new();
    let mut rest = buf;
    while rest.len() > 1 && list.len() < 3 {
        let (head, tail) = {
            let at = chance.index(rest.len());
            let at = if chance.chance(1, 2) { at - at % 512 } else { at };
            rest.split_at_byte(at)
        };
        list.push(head);
        rest = tail;
    }
    list.push(rest);
    list
}

async fn write(
    life: &Life,
    export: &Export<Dyn>,
    chance: &Prng,
    offset: u64,
    len: u64,
) -> Result<()> {
    let mut buf = buffer(life, len).await;
    let fua = chance.chance(1, 10);
    // From here to the export's first step nothing else runs: the model's order is the export's.
    let change = {
        let mut model = life.model();
        model::fill(model.next_change(), offset, &mut buf);
        model.write(offset, &buf)
    };
    let answer = match chance.below(5) {
        0 => {
            let list = parts(buf, chance).into_iter().map(Data::from).collect();
            export.write_list(offset, list, fua).await
        }
        1 => export.write(offset, buf.freeze(), fua).await,
        _ => export.write(offset, buf, fua).await,
    };
    finish(life, change, answer, fua)
}

async fn zero(
    life: &Life,
    export: &Export<Dyn>,
    chance: &Prng,
    offset: u64,
    len: u64,
) -> Result<()> {
    let fua = chance.chance(1, 4);
    let how = Zero {
        may_unmap: chance.chance(1, 2),
        only_if_fast: false,
        durability: if fua { Durability::Fua } else { Durability::Cached },
    };
    let change = life.model().write_zeroes(offset, len);
    let answer = export.write_zeroes(offset, len, how).await;
    finish(life, change, answer, fua)
}

async fn flush(life: &Life, export: &Export<Dyn>) -> Result<()> {
    let flush = life.model().flush();
    export.flush().await?;
    life.model().flushed(&flush);
    Ok(())
}

async fn read(
    life: &Life,
    export: &Export<Dyn>,
    chance: &Prng,
    offset: u64,
    len: u64,
) -> Result<()> {
    let buf = buffer(life, len).await;
    let read = life.model().read(offset, buf.len());
    let bytes = if chance.chance(1, 5) {
        let list = export.read_list(offset, parts(buf, chance)).await?;
        list.iter().flat_map(|b| b.to_vec()).collect()
    } else {
        export.read(offset, buf).await?.to_vec()
    };
    if let Err(wrong) = life.model().seen(&read, &bytes) {
        life.blame(Violation::Bytes(wrong));
    }
    Ok(())
}
