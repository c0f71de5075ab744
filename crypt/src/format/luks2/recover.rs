//! Which copy counts. Reading never writes: what should be repaired is only noted (check 15).

use super::{BadCopy, HDR_SIZES, HeaderCopy, Luks2, OtherCopy};
use crate::error::{Error, Result};
use crate::format::foreign;

/// Finds the header in `head`, the first bytes of a device of `device_len` bytes (at least 8 MiB of
/// them, or all). `only` takes one copy as it is and does not look at the other.
///
/// The outcome, per state of the copies:
///
/// | primary | secondary | |
/// |---|---|---|
/// | good | good | the higher `seqid`; the primary when equal, with a note when they differ |
/// | good | bad or absent | the primary, with a note |
/// | bad or absent | good | the secondary, with a note |
/// | | | neither good: the error of the first copy that was there at all |
///
/// A primary that is gone with another format's signature in its place was overwritten on purpose; what
/// is left of the volume is not opened over it.
///
/// Two good copies with different UUIDs belong to different volumes; opening either is a guess, and
/// is refused until the operator names one (check 14).
pub(crate) fn recover(head: &[u8], device_len: u64, only: Option<HeaderCopy>) -> Result<Luks2> {
    let primary = Luks2::read_copy(head, 0, HeaderCopy::Primary, device_len);
    let secondary = match &primary {
        Ok(p) => secondary_at(head, p.hdr_size, device_len),
        Err(BadCopy::JsonBad { size, .. }) => secondary_at(head, *size, device_len),
        Err(BadCopy::Absent(_)) => find_secondary(head, device_len),
    };
    match only {
        Some(HeaderCopy::Primary) => return named(primary, secondary.ok()),
        Some(HeaderCopy::Secondary) => return named(secondary, primary.ok()),
        None => {}
    }
    match (primary, secondary) {
        (Ok(p), Ok(s)) => choose(p, s),
        (Ok(mut p), Err(e)) => {
            p.notes.push(format!("the secondary header is unusable: {}", why(&e)));
            Ok(p)
        }
        (Err(e), Ok(mut s)) => {
            if let (BadCopy::Absent(_), Some(name)) = (&e, foreign::find(head)) {
                return Err(Error::refused(
                    14,
                    format!(
                        "the primary header is gone and {name} is in its place; name the header copy \
                         to use if this is still a LUKS volume"
                    ),
                ));
            }
            s.notes.push(format!("the primary header is unusable: {}", why(&e)));
            Ok(s)
        }
        (Err(p), Err(s)) => Err(broken(&[p, s])),
    }
}

/// The copy that the operator asked for, as it is.
fn named(asked: Result<Luks2, BadCopy>, other: Option<Luks2>) -> Result<Luks2> {
    let mut header = asked.map_err(|e| broken(&[e]))?;
    header.other = other.map_or(OtherCopy::Unusable, |o| compare(&header, &o));
    Ok(header)
}

/// What the copy that was not chosen is to the one that was.
fn compare(chosen: &Luks2, other: &Luks2) -> OtherCopy {
    let facts = |h: &Luks2| (h.uuid.clone(), h.label.clone(), h.subsystem.clone(), h.hdr_size);
    if chosen.uuid == other.uuid && other.seqid < chosen.seqid {
        OtherCopy::Older
    } else if other.seqid == chosen.seqid
        && facts(chosen) == facts(other)
        && chosen.metadata.json == other.metadata.json
    {
        OtherCopy::Same
    } else {
        OtherCopy::Different
    }
}

fn secondary_at(head: &[u8], offset: u64, device_len: u64) -> Result<Luks2, BadCopy> {
    Luks2::read_copy(head, offset, HeaderCopy::Secondary, device_len)
}

/// Without a primary, the secondary may lie at each of the nine sizes.
fn find_secondary(head: &[u8], device_len: u64) -> Result<Luks2, BadCopy> {
    let mut worst: Option<BadCopy> = None;
    for size in HDR_SIZES {
        match secondary_at(head, size, device_len) {
            Ok(found) => return Ok(found),
            Err(e) => {
                let better = matches!(&e, BadCopy::JsonBad { .. })
                    && !matches!(&worst, Some(BadCopy::JsonBad { .. }));
                if better || worst.is_none() {
                    worst = Some(e);
                }
            }
        }
    }
    Err(worst.expect("nine places were looked at"))
}

fn choose(mut p: Luks2, mut s: Luks2) -> Result<Luks2> {
    if p.uuid != s.uuid {
        return Err(Error::refused(
            14,
            "the two header copies belong to volumes with different UUIDs; name the copy to use",
        ));
    }
    if s.seqid > p.seqid {
        s.other = compare(&s, &p);
        s.notes.push(format!("the primary header is older (seqid {}, {})", p.seqid, s.seqid));
        return Ok(s);
    }
    p.other = compare(&p, &s);
    match p.other {
        OtherCopy::Older => {
            p.notes.push(format!("the secondary header is older (seqid {}, {})", s.seqid, p.seqid));
        }
        OtherCopy::Different => {
            p.notes.push("the header copies have one seqid and different contents".into());
        }
        OtherCopy::Same | OtherCopy::Unusable => {}
    }
    Ok(p)
}

fn why(bad: &BadCopy) -> String {
    let (BadCopy::Absent(why) | BadCopy::JsonBad { why, .. }) = bad;
    format!("check {}, {}: found {}", why.check, why.field, why.found)
}

/// The error to report: the first copy with a sound checksum, else the first that was there.
fn broken(copies: &[BadCopy]) -> Error {
    let json_bad = copies.iter().find_map(|c| match c {
        BadCopy::JsonBad { why, .. } => Some(why),
        BadCopy::Absent(_) => None,
    });
    let there = copies.iter().find_map(|c| match c {
        BadCopy::Absent(why) if !matches!(why.check, 1 | 12) => Some(why),
        _ => None,
    });
    let first = copies.iter().map(|c| match c {
        BadCopy::Absent(why) | BadCopy::JsonBad { why, .. } => why,
    });
    let worst = json_bad.or(there).or(first.into_iter().next());
    Error::Corrupt(worst.expect("at least one copy was read").clone())
}
