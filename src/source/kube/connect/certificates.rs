//! Certificates and keys, out of PEM.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::Certificate;
use x509_cert::der::asn1::UintRef;
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::spki::ObjectIdentifier;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Who does the cryptography. Others have no P-521.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())))
}

/// The certificates of authorities. As in Go, what is no certificate is passed over, unless nothing remains.
pub(super) fn authorities(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let blocks = blocks(text)?;
    let certificates = certificates(blocks).into_iter();
    let usable: Vec<_> = certificates.filter(|der| RootCertStore::empty().add(der.clone()).is_ok()).collect();
    if usable.is_empty() {
        return Err("there is no certificate in it (PEM, -----BEGIN CERTIFICATE-----)");
    }
    Ok(usable)
}

/// A certificate of this client with its key.
#[derive(Clone)]
pub(super) struct Identity {
    key: Arc<PrivateKeyDer<'static>>,
    pub(super) certified: Arc<CertifiedKey>,
}

/// What is unfit, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    Certificate(String),
    Key(String),
}

impl Identity {
    /// Of the PEM of a certificate, with those of its issuers behind it, and of its key.
    pub(super) fn new(certificate: &[u8], key: &[u8]) -> Result<Identity, Unfit> {
        let chain = certificates(blocks(certificate).map_err(|reason| Unfit::Certificate(reason.to_owned()))?);
        let Some(first) = chain.first() else {
            return Err(Unfit::Certificate("there is no certificate in it (PEM)".to_owned()));
        };
        let parsed = Certificate::from_der(first);
        let parsed = parsed.map_err(|_| Unfit::Certificate("its first certificate cannot be read".to_owned()))?;
        let blocks = blocks(key).map_err(|reason| Unfit::Key(reason.to_owned()))?;
        let key = private_key(blocks).map_err(|reason| Unfit::Key(reason.to_owned()))?;
        let signer = provider().key_provider.load_private_key(key.clone_key());
        let signer = signer.map_err(|_| {
            let kind = rsa_bits(&parsed).map(|bits| format!("; the certificate's is RSA of {bits} bits"));
            Unfit::Key(format!(
                "it is none of those that can be used: RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, \
                 Ed25519{}",
                kind.unwrap_or_default()
            ))
        })?;
        let of_certificate = parsed.tbs_certificate.subject_public_key_info.to_der().ok();
        let of_key = signer.public_key().map(|public| public.to_vec());
        if of_key.is_some() && of_key != of_certificate {
            return Err(Unfit::Key(format!("it does not belong to the certificate ({})", subject(first))));
        }
        Ok(Identity { key: Arc::new(key), certified: Arc::new(CertifiedKey::new(chain, signer)) })
    }

    /// Whom the certificate names.
    pub(super) fn subject(&self) -> String {
        self.certified.cert.first().map(subject).unwrap_or_default()
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        self.certified.cert == other.certified.cert && self.key == other.key
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.subject())
    }
}

/// Whom a certificate names, as RFC 4514 writes it.
pub(super) fn subject(der: &CertificateDer<'_>) -> String {
    named(der, |certificate| certificate.tbs_certificate.subject.to_string())
}

/// Who has signed a certificate.
pub(super) fn issuer(der: &CertificateDer<'_>) -> String {
    named(der, |certificate| certificate.tbs_certificate.issuer.to_string())
}

fn named(der: &CertificateDer<'_>, name: impl Fn(&Certificate) -> String) -> String {
    let name = Certificate::from_der(der).map(|certificate| name(&certificate)).unwrap_or_default();
    // It is another's word: one line, and not a long one.
    let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(80).collect();
    if name.is_empty() { "without a name".to_owned() } else { name }
}

/// The size of the key, where it is of RSA.
pub(super) fn rsa_bits(certificate: &Certificate) -> Option<usize> {
    let info = &certificate.tbs_certificate.subject_public_key_info;
    if info.algorithm.oid != RSA {
        return None;
    }
    let mut reader = SliceReader::new(info.subject_public_key.raw_bytes()).ok()?;
    let modulus = reader.sequence(|reader| {
        let modulus = UintRef::decode(reader)?;
        let _exponent = UintRef::decode(reader)?;
        Ok(modulus)
    });
    let bytes = modulus.ok()?.as_bytes();
    Some(bytes.len() * 8 - bytes.first()?.leading_zeros() as usize)
}

fn blocks(text: &[u8]) -> Result<Vec<pem::Pem>, &'static str> {
    let begun = text.windows(11).filter(|window| *window == b"-----BEGIN ").count();
    let blocks = pem::parse_many(text).map_err(|_| "its PEM is broken")?;
    // What is being written breaks off somewhere.
    if blocks.len() < begun { Err("its PEM is broken: it breaks off, or has no END") } else { Ok(blocks) }
}

fn certificates(blocks: Vec<pem::Pem>) -> Vec<CertificateDer<'static>> {
    let certificates = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
    certificates.map(|block| block.into_contents().into()).collect()
}

fn private_key(blocks: Vec<pem::Pem>) -> Result<PrivateKeyDer<'static>, &'static str> {
    for block in blocks {
        let is_encrypted = block.headers().iter().any(|(name, _)| name == "DEK-Info");
        let key = match block.tag() {
            "ENCRYPTED PRIVATE KEY" => return Err("it is encrypted: a key without a passphrase is needed"),
            _ if is_encrypted => return Err("it is encrypted: a key without a passphrase is needed"),
            "PRIVATE KEY" => PrivateKeyDer::Pkcs8(block.into_contents().into()),
            "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(block.into_contents().into()),
            "EC PRIVATE KEY" => PrivateKeyDer::Sec1(block.into_contents().into()),
            _ => continue,
        };
        return Ok(key);
    }
    Err("there is no private key in it (PEM)")
}
