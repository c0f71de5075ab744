//! What old volumes have: CBC and ECB, and other block ciphers than AES. Correct, and not fast.

use aes::cipher::{
    Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16,
};
use aes::{Aes128, Aes192, Aes256};
use camellia::{Camellia128, Camellia192, Camellia256};
use serpent::Serpent;
use twofish::Twofish;

use super::Direction;
use crate::cipher::{Chain, CipherSpec};
use crate::error::{Error, Result};
use crate::key::Key;

/// An expanded key of a block cipher of 16 bytes. Its crate zeroises it on drop.
pub(super) trait Block: Send + Sync {
    fn encrypt(&self, block: &mut [u8; 16]);
    fn decrypt(&self, block: &mut [u8; 16]);
}

impl<C> Block for C
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, block: &mut [u8; 16]) {
        self.encrypt_block(Array::cast_from_core_mut(block));
    }

    fn decrypt(&self, block: &mut [u8; 16]) {
        self.decrypt_block(Array::cast_from_core_mut(block));
    }
}

/// Expands a key of 16, 24 or 32 bytes.
pub(super) fn block(cipher: &str, key: &[u8]) -> Result<Box<dyn Block>> {
    match (cipher, key.len()) {
        ("aes", 16) => expand::<Aes128>(key),
        ("aes", 24) => expand::<Aes192>(key),
        ("aes", 32) => expand::<Aes256>(key),
        ("camellia", 16) => expand::<Camellia128>(key),
        ("camellia", 24) => expand::<Camellia192>(key),
        ("camellia", 32) => expand::<Camellia256>(key),
        ("serpent", 16 | 24 | 32) => expand::<Serpent>(key),
        ("twofish", 16 | 24 | 32) => expand::<Twofish>(key),
        _ => Err(Error::unsupported(format!("{cipher} with a key of {} bits", key.len() * 8))),
    }
}

fn expand<C: Block + KeyInit + 'static>(key: &[u8]) -> Result<Box<dyn Block>> {
    let cipher = C::new_from_slice(key)
        .map_err(|_| Error::unsupported(format!("a key of {} bits", key.len() * 8)))?;
    let cipher = Box::new(cipher);
    crate::key::protect_schedule(std::ptr::from_ref(&*cipher).cast(), size_of::<C>());
    Ok(cipher)
}

/// A volume key of one of these ciphers and modes.
pub(super) enum Old {
    Xts { data: Box<dyn Block>, tweak: Box<dyn Block> },
    Cbc(Box<dyn Block>),
    Ecb(Box<dyn Block>),
}

impl Old {
    /// The caller has looked at cipher, mode and length of the key.
    pub(super) fn new(spec: &CipherSpec, key: &Key) -> Result<Old> {
        let whole = || block(&spec.cipher, key.bytes());
        match &spec.chain {
            Chain::Xts => {
                let (data, tweak) = key.bytes().split_at(key.len() / 2);
                let (data, tweak) = (block(&spec.cipher, data)?, block(&spec.cipher, tweak)?);
                Ok(Old::Xts { data, tweak })
            }
            Chain::Cbc => Ok(Old::Cbc(whole()?)),
            Chain::Ecb => Ok(Old::Ecb(whole()?)),
            Chain::Other(_) => Err(Error::unsupported(format!("the mode of {spec}"))),
        }
    }

    /// One encryption sector: whole blocks.
    pub(super) fn sector(&self, direction: Direction, mut iv: [u8; 16], data: &mut [u8]) {
        let encrypt = direction == Direction::Encrypt;
        let (blocks, rest) = data.as_chunks_mut::<16>();
        assert!(rest.is_empty(), "a sector is whole blocks");
        match self {
            Old::Xts { data, tweak } => {
                tweak.encrypt(&mut iv);
                let mut tweak = u128::from_le_bytes(iv);
                for block in blocks {
                    xor(block, &tweak.to_le_bytes());
                    if encrypt {
                        data.encrypt(block)
                    } else {
                        data.decrypt(block)
                    }
                    xor(block, &tweak.to_le_bytes());
                    tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
                }
            }
            Old::Cbc(cipher) if encrypt => {
                for block in blocks {
                    xor(block, &iv);
                    cipher.encrypt(block);
                    iv = *block;
                }
            }
            Old::Cbc(cipher) => {
                for block in blocks {
                    let next = *block;
                    cipher.decrypt(block);
                    xor(block, &iv);
                    iv = next;
                }
            }
            Old::Ecb(cipher) if encrypt => blocks.iter_mut().for_each(|b| cipher.encrypt(b)),
            Old::Ecb(cipher) => blocks.iter_mut().for_each(|b| cipher.decrypt(b)),
        }
    }
}

fn xor(block: &mut [u8; 16], with: &[u8; 16]) {
    for (b, w) in block.iter_mut().zip(with) {
        *b ^= w;
    }
}

#[cfg(test)]
mod tests;
