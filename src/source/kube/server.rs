//! The URL of the API server, in all the ways in which it may be written.

use std::net::Ipv6Addr;

use axum::http::Uri;

/// Makes the base of all requests of what is written as the server.
///
/// As client-go does (`DefaultServerURL` in `rest/url_utils.go`): without a scheme it is a host, with a port or without,
/// and is spoken to with TLS where `tls` is set: where a certificate, or that none is to be checked, is configured.
///
/// The result has a scheme (`http` or `https`), a host and a path, and no user, query or fragment.
///
/// # Errors
/// Why it cannot be used, in words that do not repeat what was written: there may be a password in it.
pub(super) fn parse(text: &str, tls: bool) -> Result<Uri, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let has_scheme = text.contains("://");
    if text.starts_with('/') {
        return Err("there is no host in it");
    }
    let full = if has_scheme { text.to_owned() } else { format!("{}://{text}", if tls { "https" } else { "http" }) };
    let uri: Uri = full.parse().map_err(|_| match text.parse::<Ipv6Addr>() {
        Ok(_) => "an IPv6 address needs brackets",
        Err(_) => "it is not a URL",
    })?;
    if !has_scheme && !matches!(uri.path(), "" | "/") {
        return Err("there is a path in it, but no scheme");
    }
    check(&uri)
}

/// Checks and cleans a URL that was made elsewhere.
///
/// # Errors
/// As of [`parse`].
pub(super) fn check(uri: &Uri) -> Result<Uri, &'static str> {
    let scheme = match uri.scheme_str() {
        Some(scheme @ ("http" | "https")) => scheme,
        _ => return Err("its scheme is neither https nor http"),
    };
    let (host, port) = host_and_port(uri)?;
    let authority = port.map_or(host.to_owned(), |port| format!("{host}:{port}"));
    let built = Uri::builder().scheme(scheme).authority(authority).path_and_query(uri.path()).build();
    built.map_err(|_| "it is not a URL")
}

/// A URL of [`check`] with its port written out: who asks a proxy takes 443 for every port that is not there.
pub(super) fn with_port(uri: &Uri) -> Uri {
    let usual_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let (Some(scheme), Some(host), None) = (uri.scheme_str(), uri.host(), uri.port()) else { return uri.clone() };
    let built = Uri::builder().scheme(scheme).authority(format!("{host}:{usual_port}")).path_and_query(uri.path());
    built.build().unwrap_or_else(|_| uri.clone())
}

/// The host of a URL, an IPv6 address in brackets, and its port where one is written.
///
/// # Errors
/// There is no host, or something that cannot be one, or another port than 1 to 65535.
pub(super) fn host_and_port(uri: &Uri) -> Result<(&str, Option<u16>), &'static str> {
    let host = uri.host().filter(|host| !host.is_empty()).ok_or("there is no host in it")?;
    if let Some(address) = host.strip_prefix('[')
        && address.strip_suffix(']').is_none_or(|address| address.parse::<Ipv6Addr>().is_err())
    {
        return Err("what is in brackets is not an IPv6 address");
    }
    // `Uri` takes any port, and says that there is none where it is not a number.
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let after_user = authority.rsplit_once('@').map_or(authority, |(_, rest)| rest);
    match after_user.get(host.len()..).unwrap_or_default() {
        "" | ":" => Ok((host, None)),
        port => match port.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()) {
            Some(port @ 1..) => Ok((host, Some(port))),
            _ => Err("its port is not a number from 1 to 65535"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_taken_as_client_go_takes_them() {
        for (text, without_tls, with_tls) in [
            ("10.0.0.1:6443", "http://10.0.0.1:6443/", "https://10.0.0.1:6443/"),
            ("10.0.0.1", "http://10.0.0.1/", "https://10.0.0.1/"),
            ("myhost", "http://myhost/", "https://myhost/"),
            ("localhost:6443", "http://localhost:6443/", "https://localhost:6443/"),
            ("my-host.example/", "http://my-host.example/", "https://my-host.example/"),
            ("[2001:db8::1]:6443", "http://[2001:db8::1]:6443/", "https://[2001:db8::1]:6443/"),
            ("[2001:db8::1]", "http://[2001:db8::1]/", "https://[2001:db8::1]/"),
            ("http://h", "http://h/", "http://h/"),
            ("HTTPS://H:1", "https://H:1/", "https://H:1/"),
            ("https://h:", "https://h/", "https://h/"),
            ("https://h/k8s/clusters/c-1/", "https://h/k8s/clusters/c-1/", "https://h/k8s/clusters/c-1/"),
            ("https://h?x=1", "https://h/", "https://h/"),
            ("https://h/p?x=1#y", "https://h/p", "https://h/p"),
            ("https://me:secret@h:6443/p", "https://h:6443/p", "https://h:6443/p"),
            ("me:secret@h:6443", "http://h:6443/", "https://h:6443/"),
        ] {
            for (tls, expected) in [(false, without_tls), (true, with_tls)] {
                let uri = parse(text, tls).unwrap_or_else(|reason| panic!("{text:?}: {reason}"));
                assert_eq!(uri.to_string(), expected, "{text:?} tls={tls}");
                assert_eq!(check(&uri), Ok(uri), "{text:?}");
            }
        }
    }

    #[test]
    fn servers_that_cannot_be_used_are_refused_and_nothing_panics() {
        for (text, reason) in [
            ("", "it is empty"),
            (" ", "it is not a URL"),
            ("not a url", "it is not a URL"),
            ("http:10.0.0.1", "its port is not a number from 1 to 65535"),
            ("https:/10.0.0.1", "there is a path in it, but no scheme"),
            ("h:http", "its port is not a number from 1 to 65535"),
            ("h:0", "its port is not a number from 1 to 65535"),
            ("https://h:65536", "its port is not a number from 1 to 65535"),
            ("https://h:-1", "its port is not a number from 1 to 65535"),
            ("2001:db8::1", "an IPv6 address needs brackets"),
            ("::1", "an IPv6 address needs brackets"),
            ("[2001:db8::1", "it is not a URL"),
            ("[zz]:1", "what is in brackets is not an IPv6 address"),
            ("/k8s", "there is no host in it"),
            ("//h", "there is no host in it"),
            ("h/k8s", "there is a path in it, but no scheme"),
            ("tcp://", "it is not a URL"),
            ("tcp://h", "its scheme is neither https nor http"),
            ("unix:///run/s", "it is not a URL"),
            ("https://", "it is not a URL"),
            ("https:///p", "it is not a URL"),
            ("https://:6443", "there is no host in it"),
            ("https://me:secret@", "it is not a URL"),
            ("://h", "its scheme is neither https nor http"),
            ("?", "it is not a URL"),
            ("https://h\u{e4}", "it is not a URL"),
            ("https://h\n", "it is not a URL"),
        ] {
            for tls in [false, true] {
                assert_eq!(parse(text, tls), Err(reason), "{text:?}");
            }
        }
    }

    #[test]
    fn ports_are_written_out() {
        for (text, expected) in [
            ("http://h", "http://h:80/"),
            ("https://[2001:db8::1]/p", "https://[2001:db8::1]:443/p"),
            ("http://h:443/p", "http://h:443/p"),
        ] {
            assert_eq!(with_port(&parse(text, false).expect("a URL")).to_string(), expected);
        }
    }
}
