//! Why no connection could be made, in words that say what to do.

use std::error::Error;
use std::fmt;
use std::io;

use rustls::AlertDescription;
use tower::BoxError;

use super::verify;

/// The same error, or another where a certificate is refused: the server's here, or there that of this client, whose name
/// is `subject`.
pub(super) fn explained(err: BoxError, subject: impl Fn() -> Option<String>) -> BoxError {
    let Some(error) = of_tls(&*err) else { return err };
    if let Some(words) = verify::words(error) {
        return Box::new(Refused(words));
    }
    let rustls::Error::AlertReceived(alert) = error else { return err };
    let reason = match alert {
        AlertDescription::CertificateRequired => "it wants a certificate of this client",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => "it cannot use the certificate of this client",
        AlertDescription::UnknownCA => "it does not know the authority of the certificate of this client",
        AlertDescription::CertificateExpired => "the certificate of this client has expired",
        AlertDescription::CertificateRevoked => "the certificate of this client is revoked",
        _ => return err,
    };
    let subject = subject().map_or("there is none: set client-certificate".to_owned(), |name| {
        format!("{name}: renew it, with one that the API server trusts")
    });
    Box::new(Refused(format!("the API server refuses the connection: {reason} ({subject}; {alert:?})")))
}

/// What the TLS library says, somewhere below.
fn of_tls<'a>(err: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(err);
    while let Some(err) = cause {
        if let Some(err) = err.downcast_ref::<rustls::Error>() {
            return Some(err);
        }
        cause = match err.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => err.source(),
        };
    }
    None
}

#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Refused {}
