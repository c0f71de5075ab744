//! The handshake: from the greeting to an export.

use super::intake::Intake;
use super::link::Lost;
use crate::nbd::answer::for_people;
use crate::nbd::breach::Breach;
use crate::nbd::facts::Context;
use crate::nbd::offer::{self, Offered, Terms};
use crate::nbd::wire::{EXPORT_NAME_PADDING, ExportNameReply, HandshakeFlags, Rep, option};
use varve_block::BufPool;
use varve_block::rt::Stream;

/// Why there is no export to use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Lost(Lost),
    #[error("the server asks for TLS, which Varve does not speak")]
    Tls,
    #[error("the server has no such export{0}")]
    NoExport(Said),
    #[error("the server is going down")]
    Stopping,
    #[error("the server refuses the export ({kind:#x}){said}")]
    Refused { kind: u32, said: Said },
    #[error("the server refuses the export without a word: it may have none of this name")]
    Silent,
}

/// What a server adds to a refusal, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Said(String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

impl From<Lost> for Refusal {
    fn from(lost: Lost) -> Refusal {
        Refusal::Lost(lost)
    }
}

impl From<Breach> for Refusal {
    fn from(breach: Breach) -> Refusal {
        Refusal::Lost(Lost::breach(&breach))
    }
}

/// How an option ended.
enum Outcome {
    Ack,
    Refused { kind: u32, said: Said },
}

/// Both directions, while nothing else uses them.
pub(super) struct Talk<'a> {
    pub(super) stream: &'a Stream,
    pub(super) own: &'a BufPool,
    pub(super) intake: &'a mut Intake,
}

impl Talk<'_> {
    /// Agrees on `export`. Everything that makes it better is asked for; none of it is needed.
    pub(super) async fn negotiate(mut self, export: &str) -> Result<Terms, Refusal> {
        let greeting = self.intake.head().await?.ok_or_else(Lost::closed)?;
        let server = offer::greeting(greeting)?;
        self.say(&offer::client_flags(server)).await?;
        let structured = self.asks(option::STRUCTURED_REPLY, &[], |_, _| Ok(false)).await?;
        let structured = matches!(structured, Outcome::Ack);
        let allocation = match structured {
            true => self.context(export, Context::BaseAllocation).await?,
            false => None,
        };
        let mut offered = Offered::default();
        let data = offer::go(export);
        let go = self.asks(option::GO, &data, |kind, data| {
            let info = kind == Rep::Info as u32;
            if info {
                offered.info(data)?;
            }
            Ok(info)
        });
        match go.await? {
            Outcome::Ack => Ok(offered.terms(structured, allocation)?),
            Outcome::Refused { kind, .. } if kind == Rep::ErrUnsup as u32 => {
                let offered = self.by_name(export, server).await?;
                Ok(offered.terms(structured, allocation)?)
            }
            Outcome::Refused { kind, said } if kind == Rep::ErrUnknown as u32 => {
                Err(Refusal::NoExport(said))
            }
            Outcome::Refused { kind, .. } if kind == Rep::ErrShutdown as u32 => {
                Err(Refusal::Stopping)
            }
            Outcome::Refused { kind, said } => Err(Refusal::Refused { kind, said }),
        }
    }

    /// The id of a metadata context, if the server has it.
    async fn context(&mut self, export: &str, asked: Context) -> Result<Option<u32>, Refusal> {
        let mut id = None;
        let data = offer::context(export, asked);
        let set = self.asks(option::SET_META_CONTEXT, &data, |kind, data| {
            let granted = kind == Rep::MetaContext as u32;
            if granted && id.replace(offer::granted(data, asked)?).is_some() {
                return Err(Breach::ContextNotAsked);
            }
            Ok(granted)
        });
        Ok(match set.await? {
            Outcome::Ack => id,
            Outcome::Refused { .. } => None,
        })
    }

    /// The way of old servers: the export is there, or the connection is not.
    async fn by_name(&mut self, export: &str, server: HandshakeFlags) -> Result<Offered, Refusal> {
        self.say(&offer::option(option::EXPORT_NAME, export.as_bytes())).await?;
        let head = self.intake.head::<{ size_of::<ExportNameReply>() }>().await?;
        let offered = Offered::by_name(head.ok_or(Refusal::Silent)?);
        if !server.contains(HandshakeFlags::NO_ZEROES) {
            self.intake.exact::<EXPORT_NAME_PADDING>().await?;
        }
        Ok(offered)
    }

    /// Sends an option and takes its answers; `takes` says whether one that neither ends nor
    /// refuses was to be expected.
    async fn asks(
        &mut self,
        option: u32,
        data: &[u8],
        mut takes: impl FnMut(u32, &[u8]) -> Result<bool, Breach>,
    ) -> Result<Outcome, Refusal> {
        self.say(&offer::option(option, data)).await?;
        for _ in 0..offer::REPLIES_MAX {
            let (kind, length) = offer::reply(self.intake.exact().await?, option)?;
            let data = self.intake.bytes(length).await?;
            if kind == Rep::Ack as u32 {
                return Ok(Outcome::Ack);
            }
            if kind == Rep::ErrTlsReqd as u32 {
                return Err(Refusal::Tls);
            }
            if kind & Rep::ERROR != 0 {
                return Ok(Outcome::Refused { kind, said: Said(for_people(&data)) });
            }
            if !takes(kind, &data)? {
                return Err(Breach::OptionKind { option, kind }.into());
            }
        }
        Err(Breach::OptionEndless(option).into())
    }

    async fn say(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut buf = self.own.take_bytes(bytes.len()).await;
        buf.copy_from_slice(bytes);
        self.stream.send(&[buf.freeze()]).await.map_err(|e| Lost::sending(&e))?;
        Ok(())
    }
}
