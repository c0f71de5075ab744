//! AES-XTS in pure Rust: the fallback, the independent oracle of the tests, and the only engine for
//! 128-bit halves and for the equal halves of a volume that is to be rescued.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts};
use aes::{Aes128, Aes256};
use xts_mode::Xts128;

use crate::key::Key;

/// Both key schedules, made once. They are zeroised on drop by the `aes` crate.
pub(super) enum Soft {
    Aes128(Box<Xts128<Aes128>>),
    Aes256(Box<Xts128<Aes256>>),
}

impl Soft {
    /// `None` when the key is not two halves of 16 or 32 bytes.
    pub(super) fn new(key: &Key) -> Option<Soft> {
        let (data, tweak) = key.bytes().split_at(key.len() / 2);
        Some(match key.len() {
            32 => Soft::Aes128(schedule(data, tweak)?),
            64 => Soft::Aes256(schedule(data, tweak)?),
            _ => return None,
        })
    }

    pub(super) fn sector(&self, encrypt: bool, iv: [u8; 16], data: &mut [u8]) {
        match self {
            Soft::Aes128(xts) => run(xts, encrypt, iv, data),
            Soft::Aes256(xts) => run(xts, encrypt, iv, data),
        }
    }
}

fn schedule<C: KeyInit + BlockSizeUser<BlockSize = consts::U16>>(
    data: &[u8],
    tweak: &[u8],
) -> Option<Box<Xts128<C>>> {
    let xts = Xts128::new(C::new_from_slice(data).ok()?, C::new_from_slice(tweak).ok()?);
    let xts = Box::new(xts);
    crate::key::protect_schedule(std::ptr::from_ref(&*xts).cast(), size_of::<Xts128<C>>());
    Some(xts)
}

fn run<C>(xts: &Xts128<C>, encrypt: bool, iv: [u8; 16], data: &mut [u8])
where
    C: BlockSizeUser<BlockSize = consts::U16> + BlockCipherEncrypt + BlockCipherDecrypt,
{
    if encrypt {
        xts.encrypt_sector(data, Array(iv));
    } else {
        xts.decrypt_sector(data, Array(iv));
    }
}
