//! Whether a server's certificate is a good one, and if not, why, in words that say what to do.
//!
//! Beside what the TLS library takes, as Go does, a certificate that is itself among the authorities: it is the one that
//! was meant.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::ExtendedKeyUsage;

use super::access::Authorities;
use super::certificates::{issuer, provider, rsa_bits, subject};

const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");

/// Looks at the certificates of servers.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None` where there is no authority at all.
    library: Option<Arc<WebPkiServerVerifier>>,
    authorities: Vec<CertificateDer<'static>>,
    /// Where they come from.
    origin: String,
}

impl Verifier {
    pub(super) fn new(authorities: &Authorities) -> Verifier {
        let certificates = match authorities {
            Authorities::OfSystem => rustls_native_certs::load_native_certs().certs,
            Authorities::Of(certificates, _) => certificates.clone(),
            Authorities::Anybody => Vec::new(),
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let library = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok();
        Verifier { library, authorities: certificates, origin: authorities.to_string() }
    }

    /// Whether it is one of the authorities itself, and otherwise as it should be.
    fn is_meant(&self, presented: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<bool, Error> {
        if !self.authorities.iter().any(|authority| authority == presented) {
            return Ok(false);
        }
        let Ok(certificate) = Certificate::from_der(presented) else { return Ok(false) };
        let validity = &certificate.tbs_certificate.validity;
        let seconds = |time: &x509_cert::time::Time| UnixTime::since_unix_epoch(time.to_unix_duration());
        let (not_before, not_after) = (seconds(&validity.not_before), seconds(&validity.not_after));
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        if not_after < now {
            return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
        }
        if !may_serve(&certificate) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        verify_server_name(&ParsedCertificate::try_from(presented)?, name)?;
        Ok(true)
    }

    /// An error in words of ours.
    fn explained(&self, error: Error, presented: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Error {
        let wrong = match error {
            Error::InvalidCertificate(wrong) => wrong,
            other => return other,
        };
        let property = self.property(&wrong, presented, chain);
        let text = format!("the certificate of the API server ({}) {property}", subject(presented));
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Explained(text)))))
    }

    /// What is wrong, and what to do.
    fn property(
        &self,
        wrong: &CertificateError,
        presented: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
    ) -> String {
        let date = |time: &UnixTime| {
            let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
            jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
        };
        match wrong {
            CertificateError::ExpiredContext { not_after, .. } => {
                format!("or one that it depends on has expired at {}: renew it", date(not_after))
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                format!("is not valid before {}: look at the clocks", date(not_before))
            }
            CertificateError::UnknownIssuer => {
                let weak = self.weak_authority(presented, chain);
                weak.unwrap_or_else(|| {
                    format!("is signed by {}, which is not known to {}: add it there", issuer(presented), self.origin)
                })
            }
            CertificateError::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
                "names no host or address as subjectAltName (its CN does not count): give it one for {}",
                expected.to_str()
            ),
            CertificateError::NotValidForNameContext { expected, presented } => {
                let names: Vec<_> = presented.iter().take(5).map(|name| bare(name)).collect();
                format!(
                    "is not for {}, but for {}: use one of these as server, or as tls-server-name",
                    expected.to_str(),
                    names.join(", ")
                )
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "is not for servers: its extendedKeyUsage needs serverAuth".to_owned()
            }
            CertificateError::BadSignature => {
                let weak =
                    weak_key(presented).map(|weak| format!("has {weak}")).or(self.weak_authority(presented, chain));
                weak.unwrap_or_else(|| "has a signature that is wrong".to_owned())
            }
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                "is signed in a way that is not taken, such as with SHA-1: sign it with SHA-256 or better".to_owned()
            }
            CertificateError::Other(other) => match other.0.to_string().as_str() {
                "CaUsedAsEndEntity" => {
                    "is that of an authority (CA:TRUE): give the server one with CA:FALSE, or add this one to \
                     certificate-authority"
                        .to_owned()
                }
                "UnsupportedCertVersion" => "is of X.509 version 1: make one of version 3".to_owned(),
                reason => format!("cannot be used: {reason}"),
            },
            CertificateError::BadEncoding => "cannot be read".to_owned(),
            other => format!("cannot be used: {other}"),
        }
    }

    /// The key of whom it is signed by, if that is too weak.
    fn weak_authority(&self, presented: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Option<String> {
        let signed_by = issuer(presented);
        let known = self.authorities.iter().chain(chain.iter());
        let authority = { known }.find(|authority| subject(authority) == signed_by && weak_key(authority).is_some())?;
        Some(format!("is signed by {signed_by}, which has {}", weak_key(authority)?))
    }
}

/// What is wrong with a key that the library takes for a wrong signature.
fn weak_key(der: &CertificateDer<'_>) -> Option<String> {
    let bits = rsa_bits(&Certificate::from_der(der).ok()?)?;
    (bits < 2048).then(|| format!("a key of RSA with {bits} bits: 2048 or more are needed"))
}

/// A name of the library: `DnsName("a")`, `IpAddress(10.0.0.1)`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}

fn may_serve(certificate: &Certificate) -> bool {
    let mut extensions = certificate.tbs_certificate.extensions.iter().flatten();
    let Some(extension) = extensions.find(|extension| extension.extn_id == EXTENDED_KEY_USAGE) else { return true };
    let purposes = ExtendedKeyUsage::from_der(extension.extn_value.as_bytes());
    purposes.is_ok_and(|purposes| purposes.0.iter().any(|purpose| [SERVER_AUTH, ANY_PURPOSE].contains(purpose)))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked = match &self.library {
            Some(library) => library.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let error = match checked {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        match self.is_meant(end_entity, server_name, now) {
            Ok(true) => Ok(ServerCertVerified::assertion()),
            Ok(false) => Err(self.explained(error, end_entity, intermediates)),
            Err(error) => Err(self.explained(error, end_entity, intermediates)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms);
        verified.map_err(|error| self.explained(error, cert, &[]))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms);
        verified.map_err(|error| self.explained(error, cert, &[]))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a verifier has said, in its own words: the library shows them as code.
pub(super) fn words(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else { return None };
    Some(other.0.downcast_ref::<Explained>()?.0.clone())
}

#[derive(Debug)]
struct Explained(String);

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Explained {}

/// Takes every certificate (`insecure-skip-tls-verify`).
#[derive(Debug)]
pub(super) struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
