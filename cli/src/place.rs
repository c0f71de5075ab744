//! What holds the bytes of a layer: a file or device of this machine, or another program's export.

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParserFactory};
use serde::{Deserialize, Deserializer, de};
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use varve_nbd_server::{NbdUri, NotAnExport};

/// As it is named on the command line and in stack files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Path(PathBuf),
    Nbd(NbdUri),
}

impl Place {
    /// What a word means.
    ///
    /// # Errors
    /// When it is an NBD URI that cannot be opened.
    pub fn parse(text: &OsStr) -> Result<Place, NotAnExport> {
        match NbdUri::is_meant_by(text) {
            true => text.to_string_lossy().parse().map(Place::Nbd),
            false => Ok(Place::Path(text.into())),
        }
    }

    /// What a relative path means in a stack file.
    pub(crate) fn beside(self, file: &Path) -> Place {
        let folder = file.parent().unwrap_or(Path::new("."));
        match self {
            Place::Path(path) => Place::Path(folder.join(path)),
            Place::Nbd(uri) => Place::Nbd(uri.beside(folder)),
        }
    }

    /// Whether there is something to open; of an export that is known when it is opened.
    pub(crate) fn exists(&self) -> bool {
        match self {
            Place::Path(path) => path.exists(),
            Place::Nbd(_) => true,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Path(path) => path.display().fmt(f),
            Place::Nbd(uri) => uri.fmt(f),
        }
    }
}

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Place {
        Place::Path(path)
    }
}

impl ValueParserFactory for Place {
    type Parser = PlaceParser;

    fn value_parser() -> PlaceParser {
        PlaceParser
    }
}

/// Takes any path, also one that is no UTF-8.
#[derive(Clone, Debug)]
pub struct PlaceParser;

impl TypedValueParser for PlaceParser {
    type Value = Place;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Place, clap::Error> {
        OsStringValueParser::new().try_map(|text| Place::parse(&text)).parse_ref(cmd, arg, value)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Place, D::Error> {
        let text = String::deserialize(from)?;
        Place::parse(text.as_ref()).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_path_unless_it_is_a_uri() {
        let path = |text: &str| Place::Path(text.into());
        assert_eq!(Place::parse("a b/disk.img".as_ref()), Ok(path("a b/disk.img")));
        let uri = Place::parse("nbd://host/disk".as_ref()).unwrap();
        assert!(matches!(uri, Place::Nbd(_)));
        assert_eq!(uri.to_string(), "nbd://host/disk");
        assert!(Place::parse("nbds://host/disk".as_ref()).is_err());
        let file = Path::new("/etc/varve/s.toml");
        assert_eq!(path("hdd").beside(file), path("/etc/varve/hdd"));
        assert_eq!(uri.clone().beside(file), uri);
    }
}
