//! A cipher, its key and its unit.

use crate::size::Size;
use clap::Args;

#[derive(Args, Debug)]
pub struct CipherArgs {
    /// The cipher, as cryptsetup names it. Default: aes-xts-plain64; a benchmark: those that volumes have
    #[arg(long, value_name = "SPEC")]
    pub cipher: Option<String>,
    /// The volume key, in bits (XTS uses two keys of half that). Default: 512; a benchmark: all
    #[arg(long, value_name = "BITS")]
    pub key_size: Option<u32>,
    /// The encryption sector. Default: that of the volume, 512 for a plain disk; a benchmark: 512 and 4096
    #[arg(long, value_name = "SIZE")]
    pub sector_size: Option<Size>,
}
