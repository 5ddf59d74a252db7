//! Who this part is: a private key and a certificate that it signed itself, in one file of a directory, made at the first start.

use super::pin::Fingerprint;
use crate::random;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The file in its directory.
pub const IDENTITY_NAME: &str = "identity.pem";
/// The longest file that is read, in bytes: what is longer is no identity.
const FILE_MAX: u64 = 64 << 10;

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file or its directory cannot be made, read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file can be read by others.
    #[error("{} holds a private key and has the mode {mode:o}: whoever read it can pass for this part. Remove it, so that a new one is made, or give it the mode 600 if nobody else could read it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What is in the file is no key and certificate.
    #[error("{} holds no private key and certificate: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A key or certificate cannot be made.
    #[error("cannot make a key and a certificate")]
    Make(#[from] rcgen::Error),
}

/// A key and its certificate. The key is not shown.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    fingerprint: Fingerprint,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Identity {
    /// The identity of this directory; directory and identity are made if they are not there. `name` is for people who look into
    /// the certificate.
    ///
    /// # Errors
    /// [`IdentityError`] names the file.
    pub fn open_or_make(directory: &Path, name: &str) -> Result<Self, IdentityError> {
        let path = directory.join(IDENTITY_NAME);
        if !path.exists() {
            let wrong = |source| IdentityError::File { path: directory.to_owned(), source };
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(wrong)?;
            make(directory, &path, name)?;
        }
        Self::open(directory)
    }

    /// The identity of this directory.
    ///
    /// # Errors
    /// [`IdentityError`] names the file.
    pub fn open(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(IDENTITY_NAME);
        let pem = read(&path)?;
        let wrong = |why: String| IdentityError::Content { path: path.clone(), why };
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| wrong(error.to_string()))?;
        let certificate = CertificateDer::from_pem_slice(&pem).map_err(|error| wrong(error.to_string()))?;
        let fingerprint = Fingerprint::of(&certificate);
        let identity = Self { certificate, key, fingerprint };
        // That they are a pair is seen here, and not at the first connection.
        super::pin::server(&identity, &super::pin::Peers::default()).map_err(|error| wrong(error.to_string()))?;
        Ok(identity)
    }

    /// What others know it by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let wrong = |source| IdentityError::File { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(wrong)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Open { path: path.to_owned(), mode });
    }
    if metadata.len() > FILE_MAX {
        let why = format!("it has {} bytes", metadata.len());
        return Err(IdentityError::Content { path: path.to_owned(), why });
    }
    fs::read(path).map_err(wrong)
}

/// Writes the whole file under another name and links it to its own, which fails where somebody was faster: his is used then.
fn make(directory: &Path, path: &Path, name: &str) -> Result<(), IdentityError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.self_signed(&key)?;
    let pem = key.serialize_pem() + &certificate.pem();
    let draft = directory.join(format!(".identity-{:032x}", u128::from_le_bytes(random::identity())));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => File::open(directory)?.sync_all(),
        }
    };
    let written = write();
    let _ = fs::remove_file(&draft);
    written.map_err(|source| IdentityError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("state");
        let made = Identity::open_or_make(&inside, "proxy").unwrap();
        let again = Identity::open_or_make(&inside, "other name").unwrap();
        assert_eq!(made.fingerprint(), again.fingerprint());
        assert_eq!(made.fingerprint(), Identity::open(&inside).unwrap().fingerprint());
        let mode = fs::metadata(inside.join(IDENTITY_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 1, "no draft is left");
        let elsewhere = Identity::open_or_make(&directory.path().join("2"), "proxy").unwrap();
        assert_ne!(made.fingerprint(), elsewhere.fingerprint());
        assert!(!format!("{made:?}").contains("key"));
    }

    #[test]
    fn of_many_who_make_it_at_once_all_use_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let make = || Identity::open_or_make(directory.path(), "proxy").unwrap().fingerprint();
        let found: std::collections::BTreeSet<_> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        Identity::open_or_make(directory.path(), "proxy").unwrap();
        let path = directory.path().join(IDENTITY_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::open(directory.path()), Err(IdentityError::Open { mode: 0o640, .. })));
    }

    #[test]
    fn half_a_file_and_a_key_of_another_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("1"), directory.path().join("2"));
        let read = |directory: &Path| {
            Identity::open_or_make(directory, "proxy").unwrap();
            fs::read_to_string(directory.join(IDENTITY_NAME)).unwrap()
        };
        let (first, second) = (read(&one), read(&two));
        let border = "-----BEGIN CERTIFICATE";
        let at = |text: &str| text.find(border).unwrap();
        for wrong in [&first[..at(&first)], &first[at(&first)..], ""] {
            fs::write(one.join(IDENTITY_NAME), wrong).unwrap();
            assert!(matches!(Identity::open(&one), Err(IdentityError::Content { .. })));
        }
        fs::write(one.join(IDENTITY_NAME), first[..at(&first)].to_owned() + &second[at(&second)..]).unwrap();
        assert!(matches!(Identity::open(&one), Err(IdentityError::Content { .. })), "not a pair");
    }
}
