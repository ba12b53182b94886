//! The token: where it comes from, when it changes, and what Consul takes it for.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use super::config::{ConfigError, TokenSource};

/// How often a file is looked at, at most.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// The token in force, as a header.
pub(super) struct Token {
    source: TokenSource,
    state: Mutex<State>,
}

struct State {
    /// Never an empty value: Consul would take the agent's own token for an empty header.
    header: Option<HeaderValue>,
    /// Counts changes, so that what was learned about one token is not believed of the next.
    generation: u64,
    looked: Instant,
    stamp: Option<FileStamp>,
    /// Whether the file could not be used when it was last looked at.
    unusable: bool,
}

impl Token {
    /// Takes the token from its source.
    pub(super) fn new(source: TokenSource) -> Result<Self, ConfigError> {
        let (header, stamp) = match &source {
            TokenSource::None => (None, None),
            TokenSource::Fixed(token) => (header(token, "CONSUL_HTTP_TOKEN")?, None),
            TokenSource::File(path) => {
                let stamp = FileStamp::of(path);
                (Some(read(path)?), stamp)
            }
        };
        let state = State {
            header,
            generation: 0,
            looked: Instant::now(),
            stamp,
            unusable: false,
        };
        Ok(Self {
            source,
            state: Mutex::new(state),
        })
    }

    /// The header to send, and the generation of the token in it.
    pub(super) fn current(&self) -> (Option<HeaderValue>, u64) {
        let mut state = self.lock();
        if let TokenSource::File(path) = &self.source
            && state.looked.elapsed() >= LOOK
        {
            state.looked = Instant::now();
            state.look(path);
        }
        (state.header.clone(), state.generation)
    }

    /// Replaces the token by one from a login.
    pub(super) fn replace(&self, token: &SecretString) -> Result<(), ConfigError> {
        let header = token_header(token)?;
        let mut state = self.lock();
        state.header = header;
        state.generation += 1;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes over what the file holds now. While it cannot be read or is empty, which is how a
    /// file looks that is just being replaced, the last good token stays and it is read again.
    fn look(&mut self, path: &Path) {
        let stamp = FileStamp::of(path);
        if stamp == self.stamp && !self.unusable {
            return;
        }
        match read(path) {
            Ok(header) => {
                self.stamp = stamp;
                self.unusable = false;
                if self.header.as_ref() != Some(&header) {
                    self.header = Some(header);
                    self.generation += 1;
                    tracing::info!("the token file changed; the new token is in use");
                }
            }
            Err(error) => {
                if !self.unusable {
                    tracing::warn!(%error, "the token file changed; keeping the last token");
                }
                self.unusable = true;
            }
        }
    }
}

fn read(path: &Path) -> Result<HeaderValue, ConfigError> {
    const VARIABLE: &str = "CONSUL_HTTP_TOKEN_FILE";
    let text = fs::read_to_string(path).map_err(|error| {
        ConfigError::new(VARIABLE, format!("cannot read {}: {error}", path.display()))
    })?;
    let token = SecretString::from(text);
    header(&token, VARIABLE)?.ok_or_else(|| {
        ConfigError::new(
            VARIABLE,
            format!(
                "{} is empty; write the token's SecretID to it",
                path.display()
            ),
        )
    })
}

/// The header of a token that came from a login; `None` for an empty one.
pub(super) fn token_header(token: &SecretString) -> Result<Option<HeaderValue>, ConfigError> {
    header(token, "the token of the login")
}

/// `None` for an empty token.
fn header(
    token: &SecretString,
    variable: &'static str,
) -> Result<Option<HeaderValue>, ConfigError> {
    let token = token.expose_secret().trim();
    if token.is_empty() {
        return Ok(None);
    }
    // The error of the conversion is not shown: it is about the secret.
    let mut value = HeaderValue::from_str(token).map_err(|_| {
        ConfigError::new(
            variable,
            "holds characters that no token has; give the SecretID alone",
        )
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// What tells two versions of a file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl FileStamp {
    /// `None` while the file cannot be looked at. Follows links, which is how a mounted Secret
    /// changes: a link is turned to a new directory.
    pub(super) fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            modified: meta.modified().ok(),
            len: meta.len(),
            inode: meta.ino(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(path: &Path) -> Result<Token, ConfigError> {
        Token::new(TokenSource::File(path.to_owned()))
    }

    /// What is sent once the file is looked at again.
    fn sent(token: &Token) -> (String, u64) {
        token.lock().looked = Instant::now().checked_sub(LOOK).unwrap();
        let (header, generation) = token.current();
        (header.unwrap().to_str().unwrap().to_owned(), generation)
    }

    #[test]
    fn the_file_is_read_again_when_it_changes_and_only_then_is_it_another_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "one\n").unwrap();
        let token = from_file(&path).unwrap();
        assert_eq!(sent(&token), ("one".to_owned(), 0));
        fs::write(&path, "one\n\n").unwrap();
        assert_eq!(sent(&token), ("one".to_owned(), 0));
        fs::write(&path, "second").unwrap();
        assert_eq!(sent(&token), ("second".to_owned(), 1));
    }

    #[test]
    fn the_last_token_stays_while_the_file_is_not_usable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "one").unwrap();
        let token = from_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(sent(&token).0, "one");
        fs::remove_file(&path).unwrap();
        assert_eq!(sent(&token).0, "one");
        fs::write(&path, "two\nlines").unwrap();
        assert_eq!(sent(&token).0, "one");
        fs::write(&path, "second").unwrap();
        assert_eq!(sent(&token), ("second".to_owned(), 1));
    }

    #[test]
    fn a_mounted_secret_changes_by_a_turned_link() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, "one").unwrap();
        fs::write(&new, "two").unwrap();
        let link = folder.path().join("token");
        std::os::unix::fs::symlink(&old, &link).unwrap();
        let token = from_file(&link).unwrap();
        let turned = folder.path().join("turned");
        std::os::unix::fs::symlink(&new, &turned).unwrap();
        fs::rename(&turned, &link).unwrap();
        assert_eq!(sent(&token), ("two".to_owned(), 1));
    }

    #[test]
    fn a_file_without_a_token_is_refused_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let missing = from_file(&path).map(|_| ()).unwrap_err();
        assert_eq!(missing.variable(), "CONSUL_HTTP_TOKEN_FILE");
        fs::write(&path, "\n").unwrap();
        let empty = from_file(&path).map(|_| ()).unwrap_err();
        assert!(empty.to_string().contains("is empty"), "{empty}");
    }

    #[test]
    fn an_empty_token_is_none_and_a_broken_one_is_not_shown() {
        let token = Token::new(TokenSource::Fixed(SecretString::from(" "))).unwrap();
        assert_eq!(token.current(), (None, 0));
        let broken = SecretString::from("very\u{0}secret");
        let error = Token::new(TokenSource::Fixed(broken))
            .map(|_| ())
            .unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        token.replace(&SecretString::from("from-a-login")).unwrap();
        let (header, generation) = token.current();
        assert_eq!(generation, 1);
        assert!(!format!("{header:?}").contains("from-a-login"));
    }
}
