//! Who we are to APNs: a client certificate with its key, or a key that signs provider tokens, and
//! the topic that it speaks for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use p12_keystore::{Certificate, Pkcs12Archive};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use x509_parser::asn1_rs::{Any, Sequence, Tag, Utf8String};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::token::Tokens;
use crate::model::Timestamp;
use crate::net::tls::{self, TlsError};
use crate::{config, files};

/// The subject attribute that holds the topic: `userId` (RFC 4519 section 2.39).
const UID: &str = "0.9.2342.19200300.100.1.1";
/// Apple's certificate extension that lists all topics.
const TOPICS: &str = "1.2.840.113635.100.6.3.6";
/// How the topics begin that iOS Mail listens to (PROTOCOL.md section 2).
const MAIL_TOPICS: [&str; 2] = ["com.apple.mobilemail.push.", "com.apple.mail."];

/// What proves who we are, and the topic. `Debug` shows no key.
#[derive(Clone)]
pub struct ApnsIdentity {
    pub(super) proof: Proof,
    topic: String,
    /// From and to; `None` for a key, which does not end.
    validity: Option<(Timestamp, Timestamp)>,
    file: PathBuf,
}

#[derive(Clone)]
pub(super) enum Proof {
    Certificate(Arc<CertifiedKey>),
    Token(Arc<Tokens>),
}

/// Whether an identity can be used at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It can be used.
    Valid,
    /// It begins later.
    NotYet,
    /// It has ended.
    Expired,
}

/// Why files are no identity. The texts name the file and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read, holds something else, or the two do not belong together.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate cannot be read.
    #[error("{}: is no certificate that can be read: {why}; copy the file anew", .certificate.display())]
    BadCertificate {
        /// The file of the certificate.
        certificate: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The certificate names no topic.
    #[error(
        "{}: its subject has no UID ({UID}), so it names no topic; take a push certificate that \
         Apple made for mail",
        .certificate.display()
    )]
    NoTopic {
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// The certificate is not for the topic of the configuration.
    #[error("{}: is not for the topic {asked:?}; it is for {found}", .certificate.display())]
    OtherTopic {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The topic that the configuration names.
        asked: String,
        /// What was found.
        found: String,
    },
    /// The password does not open the file.
    #[error("{}: cannot be opened with the password that was given; correct it", .file.display())]
    Password {
        /// The file.
        file: PathBuf,
    },
    /// The file is no PKCS #12.
    #[error("{}: is no PKCS#12 file that can be read: {why}; export it anew", .file.display())]
    BadPkcs12 {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file lacks the certificate or the key.
    #[error(
        "{}: holds no certificate together with its private key; export both, in one file",
        .file.display()
    )]
    Incomplete {
        /// The file.
        file: PathBuf,
    },
    /// The key cannot be used.
    #[error("{}: holds no key for provider tokens; name a .p8 file of Apple's", .key.display())]
    BadKey {
        /// The file of the key.
        key: PathBuf,
    },
    /// A file with a password in its first line.
    #[error("{}: {why}", .file.display())]
    Secret {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl IdentityError {
    /// The one file that is at fault, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Tls(error) => error.file(),
            Self::BadCertificate { certificate: file, .. }
            | Self::NoTopic { certificate: file }
            | Self::OtherTopic { certificate: file, .. }
            | Self::Password { file }
            | Self::BadPkcs12 { file, .. }
            | Self::Incomplete { file }
            | Self::BadKey { key: file }
            | Self::Secret { file, .. } => Some(file),
        }
    }
}

impl ApnsIdentity {
    /// Reads the files that `config` names. Reads no clock: whether it has expired is
    /// [`ApnsIdentity::validity`]'s to tell.
    ///
    /// # Errors
    /// [`IdentityError`] names the file that cannot be read or used.
    pub fn load(config: &config::ProviderFiles) -> Result<Self, IdentityError> {
        match config {
            config::ProviderFiles::Pem { certificate, private_key, topic } => {
                let certified = tls::identity(certificate, private_key)?;
                Self::certificate(certified, certificate, topic.as_deref())
            }
            config::ProviderFiles::Pkcs12 { file, password_file, topic } => {
                let password = password_file.as_deref().map(first_line).transpose()?;
                let certified = pkcs12(file, &password.unwrap_or_default())?;
                Self::certificate(certified, file, topic.as_deref())
            }
            config::ProviderFiles::Key { key, key_id, team_id, topic } => {
                let pem = bytes(key)?;
                let tokens = PrivateKeyDer::from_pem_slice(&pem)
                    .ok()
                    .and_then(|der| Tokens::new(der.secret_der(), key_id, team_id))
                    .ok_or_else(|| IdentityError::BadKey { key: key.clone() })?;
                let proof = Proof::Token(Arc::new(tokens));
                Ok(Self { proof, topic: topic.clone(), validity: None, file: key.clone() })
            }
        }
    }

    fn certificate(
        certified: CertifiedKey,
        file: &Path,
        asked: Option<&str>,
    ) -> Result<Self, IdentityError> {
        let own = certified.end_entity_cert().map_err(TlsError::Setup)?;
        let CertificateFacts { subject, topics, validity } = read(own, file)?;
        let topic = match asked {
            None => subject.ok_or_else(|| IdentityError::NoTopic { certificate: file.into() })?,
            Some(asked) => {
                let found: Vec<_> = subject.into_iter().chain(topics).collect();
                if !found.iter().any(|topic| topic == asked) {
                    return Err(IdentityError::OtherTopic {
                        certificate: file.into(),
                        asked: asked.to_owned(),
                        found: found.join(", "),
                    });
                }
                asked.to_owned()
            }
        };
        let proof = Proof::Certificate(Arc::new(certified));
        Ok(Self { proof, topic, validity: Some(validity), file: file.into() })
    }

    /// The topic that devices get and that each push carries.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Whether iOS Mail listens to pushes of this topic.
    pub fn is_for_mail(&self) -> bool {
        MAIL_TOPICS.iter().any(|start| self.topic.starts_with(start))
    }

    /// The file of the certificate or key.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// When the certificate expires; `None` for a key.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.validity.map(|(_, to)| to)
    }

    /// Whether it can be used at `now`.
    pub fn validity(&self, now: Timestamp) -> Validity {
        match self.validity {
            Some((from, _)) if now < from => Validity::NotYet,
            Some((_, to)) if to < now => Validity::Expired,
            _ => Validity::Valid,
        }
    }

    /// The next moment after `now` at which [`ApnsIdentity::validity`] changes.
    pub(in crate::push) fn turns_at(&self, now: Timestamp) -> Option<Timestamp> {
        let (from, to) = self.validity?;
        [from, Timestamp(to.0.saturating_add(1))].into_iter().find(|at| now < *at)
    }

    /// Goes on with the provider token of an earlier identity with the same key: APNs wants to see
    /// one token for some time, whatever tables and reloads there are.
    pub(in crate::push) fn share_token(&mut self, other: &Self) {
        if let (Proof::Token(own), Proof::Token(others)) = (&mut self.proof, &other.proof)
            && own.is_of_same_key(others)
        {
            *own = others.clone();
        }
    }
}

impl fmt::Debug for ApnsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("topic", &self.topic)
            .field("validity", &self.validity)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::NotYet => "not valid yet",
            Self::Expired => "expired",
        })
    }
}

fn bytes(file: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let read = files::read(file, files::LARGEST);
    let (bytes, _) = read.map_err(|source| TlsError::Unreadable { path: file.into(), source })?;
    Ok(bytes)
}

/// The first line of a file, which is a secret.
fn first_line(file: &Path) -> Result<SecretString, IdentityError> {
    let failed = |why: String| IdentityError::Secret { file: file.into(), why };
    let (text, _) = files::read_text(file, files::LARGEST)
        .map_err(|error| failed(format!("cannot be read: {error}")))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(failed("is empty; its first line is to be the password".into()));
    }
    Ok(line.into())
}

/// A certificate and its key from one file (RFC 7292), the ciphers of Apple's Keychain included.
fn pkcs12(file: &Path, password: &SecretString) -> Result<CertifiedKey, IdentityError> {
    let archive =
        Pkcs12Archive::from_pkcs12(&bytes(file)?, password.expose_secret()).map_err(|error| {
            match error {
                p12_keystore::error::Error::MacError(_) => {
                    IdentityError::Password { file: file.into() }
                }
                other => IdentityError::BadPkcs12 { file: file.into(), why: other.to_string() },
            }
        })?;
    // Which key belongs to which certificate is asked of the keys, not of the labels in the file.
    for (key, own) in
        archive.keys.iter().flat_map(|key| archive.certs.iter().map(move |own| (key, own)))
    {
        let Ok(key) = PrivateKeyDer::try_from(key.key.as_der().to_vec()) else { continue };
        let mut chain = vec![&own.cert];
        let issuer = |of: &Certificate| {
            archive.certs.iter().map(|bag| &bag.cert).find(|other| other.subject() == of.issuer())
        };
        // Up to the root, which nobody needs, and never in a circle.
        while let Some(next) = chain.last().and_then(|last| issuer(last))
            && next.subject() != next.issuer()
            && !chain.contains(&next)
        {
            chain.push(next);
        }
        let der =
            |certificate: &&Certificate| CertificateDer::from(certificate.as_der()).into_owned();
        let chain = chain.iter().map(der).collect();
        if let Ok(certified) = CertifiedKey::from_der(chain, key, &tls::provider()) {
            return Ok(certified);
        }
    }
    Err(IdentityError::Incomplete { file: file.into() })
}

/// What a certificate says.
struct CertificateFacts {
    /// The UID of its subject.
    subject: Option<String>,
    /// Those in the extension.
    topics: Vec<String>,
    validity: (Timestamp, Timestamp),
}

fn read(certificate: &CertificateDer<'_>, path: &Path) -> Result<CertificateFacts, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| {
        IdentityError::BadCertificate { certificate: path.into(), why: error.to_string() }
    })?;
    // It becomes the value of a header.
    let fits = |topic: &str| !topic.is_empty() && topic.bytes().all(|byte| byte.is_ascii_graphic());
    let subject = parsed
        .subject()
        .iter_attributes()
        .find(|attribute| attribute.attr_type().to_id_string() == UID)
        .and_then(|attribute| attribute.as_str().ok())
        .filter(|topic| fits(topic));
    let extension = parsed.extensions().iter().find(|found| found.oid.to_id_string() == TOPICS);
    let mut topics = extension.map(|found| listed(found.value)).unwrap_or_default();
    topics.retain(|topic| fits(topic));
    let time = |at: i64| Timestamp(at.saturating_mul(1000));
    let validity = parsed.validity();
    Ok(CertificateFacts {
        subject: subject.map(str::to_owned),
        topics,
        validity: (time(validity.not_before.timestamp()), time(validity.not_after.timestamp())),
    })
}

/// The topics in Apple's extension: a sequence of UTF8Strings, each followed by a sequence that says
/// what kind of topic it is. What cannot be read lists nothing.
fn listed(value: &[u8]) -> Vec<String> {
    let Ok((_, sequence)) = Sequence::from_der(value) else { return Vec::new() };
    let mut rest: &[u8] = &sequence.content;
    let mut topics = Vec::new();
    while let Ok((after, any)) = Any::from_der(rest) {
        if any.tag() == Tag::Utf8String
            && let Ok(text) = Utf8String::try_from(any)
        {
            topics.push(text.string());
        }
        rest = after;
    }
    topics
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair};

    use super::*;

    const DAY: i64 = 24 * 3600 * 1000;
    /// 3 February 2031.
    const END: Timestamp = Timestamp(1_927_843_200_000);

    fn certificate(topic: Option<&str>) -> (String, String) {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2030, 2, 3);
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        if let Some(topic) = topic {
            let uid = DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 1]);
            params.distinguished_name.push(uid, topic);
        }
        // SEQUENCE { "a.b", SEQUENCE { "app" }, "a.b.voip", SEQUENCE { "vo" } }
        let list = b"\x30\x1c\x0c\x03a.b\x30\x05\x0c\x03app\x0c\x08a.b.voip\x30\x04\x0c\x02vo";
        let extension =
            CustomExtension::from_oid_content(&[1, 2, 840, 113_635, 100, 6, 3, 6], list.to_vec());
        params.custom_extensions.push(extension);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn load(
        certificate: &str,
        key: &str,
        topic: Option<&str>,
    ) -> Result<ApnsIdentity, IdentityError> {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, private_key] =
            [("apns.pem", certificate), ("apns.key", key)].map(|(name, pem)| {
                let path = folder.path().join(name);
                std::fs::write(&path, pem).unwrap();
                path
            });
        let topic = topic.map(str::to_owned);
        ApnsIdentity::load(&config::ProviderFiles::Pem { certificate, private_key, topic })
    }

    #[test]
    fn the_topic_is_the_uid_of_the_subject() {
        let (certificate, key) = certificate(Some("com.apple.mail.XServer.1"));
        let identity = load(&certificate, &key, None).unwrap();
        assert_eq!((identity.topic(), identity.is_for_mail()), ("com.apple.mail.XServer.1", true));
        assert_eq!(identity.not_after(), Some(END));
        assert!(!format!("{identity:?}").contains("PRIVATE"), "{identity:?}");
    }

    #[test]
    fn a_topic_that_is_asked_for_must_be_one_of_the_certificate() {
        let (certificate, key) = certificate(Some("com.apple.mail.XServer.1"));
        for topic in ["com.apple.mail.XServer.1", "a.b", "a.b.voip"] {
            let identity = load(&certificate, &key, Some(topic)).unwrap();
            assert_eq!((identity.topic(), identity.is_for_mail()), (topic, topic.len() > 10));
        }
        let error = load(&certificate, &key, Some("vo")).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "is not for the topic \"vo\"; it is for com.apple.mail.XServer.1, a.b, a.b.voip"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_list_of_topics_that_cannot_be_read_lists_nothing() {
        for bytes in [&b""[..], b"\x30", b"\x30\x02\x0c\x05", b"\x0c\x01a", b"\x30\x02\x0c\x80"] {
            assert_eq!(listed(bytes), Vec::<String>::new(), "{bytes:?}");
        }
        assert_eq!(listed(b"\x30\x06\x0c\x01a\x0c\x01\xff"), ["a"]);
    }

    #[test]
    fn a_certificate_is_good_between_its_two_days() {
        let (certificate, key) = certificate(Some("com.apple.mail.XServer.1"));
        let identity = load(&certificate, &key, None).unwrap();
        let begin = Timestamp(END.0 - 365 * DAY);
        for (at, validity, turns_at) in [
            (Timestamp(begin.0 - 1), Validity::NotYet, Some(begin)),
            (begin, Validity::Valid, Some(Timestamp(END.0 + 1))),
            (END, Validity::Valid, Some(Timestamp(END.0 + 1))),
            (Timestamp(END.0 + 1), Validity::Expired, None),
        ] {
            assert_eq!((identity.validity(at), identity.turns_at(at)), (validity, turns_at));
        }
    }

    #[test]
    fn an_error_names_the_file() {
        let (good, key) = certificate(Some("com.apple.mail.XServer.1"));
        let (_, other_key) = certificate(None);
        let (topicless, its_key) = certificate(None);
        let (blank, blank_key) = certificate(Some("a b"));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (certificate, key, file, said) in [
            (&*good, &*other_key, "apns.key", "do not belong together"),
            (&topicless, &its_key, "apns.pem", "names no topic"),
            (&blank, &blank_key, "apns.pem", "names no topic"),
            (&key, &key, "apns.pem", "has no certificate"),
            (&good, &good, "apns.key", "has no private key"),
            (garbage, &key, "apns.pem", "no certificate that can be read"),
        ] {
            let error = load(certificate, key, None).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(file), "{error}");
        }
    }
}
