//! The words of `varve crypt suspend` and `resume`.

use crate::args::SecretArgs;
use clap::Args;
use varve_nbd_server::Listen;

#[derive(Args, Debug)]
pub struct CryptSuspend {
    /// The control socket of the server: unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub control: Listen,
}

#[derive(Args, Debug)]
pub struct CryptResume {
    /// The control socket of the server: unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub control: Listen,
    /// Without any of these the secret is asked for on the terminal.
    #[command(flatten)]
    pub secret: SecretArgs,
}
