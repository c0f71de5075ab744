//! `varve crypt token`: hints of other programs in a LUKS2 header, kept as they are.

use super::target::Target;
use crate::args::{CryptTokenExport, CryptTokenImport, CryptTokenList, CryptTokenVerb, StackArgs};
use crate::cmd::output;
use crate::failure::Outcome;
use crate::place::Place;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use varve_block::{BlockDevice, Rt};
use varve_crypt::{Header, Luks2};

/// Longest token text: the largest JSON area.
const TOKEN_MAX: u64 = 4 << 20;

pub(super) async fn run(rt: &Rt, verb: CryptTokenVerb) -> anyhow::Result<Outcome> {
    match verb {
        CryptTokenVerb::List(args) => list(rt, args).await,
        CryptTokenVerb::Export(args) => export(rt, args).await,
        CryptTokenVerb::Import(args) => import(rt, args).await,
        CryptTokenVerb::Remove(args) => remove(rt, args).await,
    }
}

async fn luks2(rt: &Rt, stack: &StackArgs, image: Option<&Place>) -> anyhow::Result<Luks2> {
    let target = Target::to_look(rt, stack, image).await?;
    match Header::read(&target.device, None).await? {
        Header::Luks2(header) => Ok(*header),
        Header::Luks1(_) => bail!("{}: LUKS1 has no tokens", target.device.geometry().dev),
    }
}

async fn list(rt: &Rt, args: CryptTokenList) -> anyhow::Result<Outcome> {
    let header = luks2(rt, &args.stack, args.image.as_ref()).await?;
    let tokens = &header.metadata.tokens;
    if args.json {
        let one = |(id, t): (&u32, &varve_crypt::Token)| json!({ "id": id, "type": t.kind, "keyslots": t.keyslots });
        output::json(&tokens.iter().map(one).collect::<Vec<Value>>())?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    for (id, token) in tokens {
        let slots: Vec<String> = token.keyslots.iter().map(u32::to_string).collect();
        let slots = if slots.is_empty() { "no keyslot".into() } else { slots.join(", ") };
        writeln!(out, "{id}: {} (keyslots: {slots})", varve_crypt::printable(&token.kind))?;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}

async fn export(rt: &Rt, args: CryptTokenExport) -> anyhow::Result<Outcome> {
    let header = luks2(rt, &args.stack, args.image.as_ref()).await?;
    let Some(token) = header.metadata.json["tokens"].get(args.token_id.to_string()) else {
        bail!("there is no token {}", args.token_id);
    };
    let mut out = output::stdout();
    writeln!(out, "{token}")?;
    out.flush()?;
    Ok(Outcome::Fine)
}

async fn import(rt: &Rt, args: CryptTokenImport) -> anyhow::Result<Outcome> {
    let what = || format!("cannot read token file {}", args.json_file.display());
    let mut text = Vec::new();
    let mut take = |from: &mut dyn Read| from.take(TOKEN_MAX).read_to_end(&mut text);
    if args.json_file == Path::new("-") {
        take(&mut std::io::stdin().lock()).with_context(what)?;
    } else {
        take(&mut File::open(&args.json_file).with_context(what)?).with_context(what)?;
    }
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let device = target.device.clone();
    let done = varve_crypt::import_token(device, None, &text, args.token_id, args.replace).await;
    let id = target.close(done.map_err(Into::into)).await?;
    let mut out = output::stdout();
    writeln!(out, "token {id} was stored")?;
    out.flush()?;
    Ok(Outcome::Fine)
}

async fn remove(rt: &Rt, args: CryptTokenExport) -> anyhow::Result<Outcome> {
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let done = varve_crypt::remove_token(target.device.clone(), None, args.token_id).await;
    target.close(done.map_err(Into::into)).await?;
    Ok(Outcome::Fine)
}
