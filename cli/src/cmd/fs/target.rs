//! What every command of looking has in common: the device, and a file that appears whole or not.

use super::source;
use crate::args::FsTarget;
use crate::config::StackConfig;
use crate::place::Place;
use crate::stack::{self, Stack};
use anyhow::{Context, bail};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use varve_block::{Dyn, Rt};

/// The stack, opened so that nothing can be written.
pub(super) async fn reading(rt: &Rt, target: &FsTarget) -> anyhow::Result<Stack> {
    let config = StackConfig::new(&target.stack, target.image.as_ref())?.reading();
    stack::open(rt, &config).await
}

/// The stack and further devices of the same file system, opened so that nothing can be written.
pub(super) async fn reading_all(
    rt: &Rt,
    target: &FsTarget,
    more: &[Place],
) -> anyhow::Result<Vec<Dyn>> {
    let config = StackConfig::new(&target.stack, target.image.as_ref())?;
    source::devices(rt, config, more).await
}

/// The name of the disk, for messages and for files beside it.
pub(super) fn name(target: &FsTarget) -> anyhow::Result<Place> {
    Ok(StackConfig::new(&target.stack, target.image.as_ref())?.backing)
}

/// A file that has its name only once it is complete and durable: until then it is `NAME.partial`,
/// which is removed when it is given up.
pub(super) struct Fresh {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    done: bool,
}

impl Fresh {
    pub(super) fn create(path: &Path, force: bool) -> anyhow::Result<Fresh> {
        if !force && path.symlink_metadata().is_ok() {
            bail!("{} is there already, and would be overwritten", path.display());
        }
        if path.metadata().is_ok_and(|m| !m.is_file()) {
            bail!("{} is no regular file", path.display());
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial)
            .with_context(|| format!("{} cannot be made", partial.display()))?;
        Ok(Fresh { file, partial, path: path.to_owned(), done: false })
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Durable, then visible: the folder too.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let at = || format!("{} cannot be finished", self.path.display());
        self.file.flush().and_then(|()| self.file.sync_all()).with_context(at)?;
        std::fs::rename(&self.partial, &self.path).with_context(at)?;
        self.done = true;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).with_context(at)?;
        folder.sync_all().with_context(at)?;
        Ok(())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
