//! Which proxy, if any, stands between this and the API server.
//!
//! As Go's `golang.org/x/net/http/httpproxy` reads the environment, since kube-proxy does, and its pods have the variables
//! that kubeadm found where it ran. kube's client library is not asked: it looks only at HTTPS_PROXY, compares NO_PROXY
//! with the proxy in place of the server, and fails where an item of NO_PROXY is empty.

use std::net::IpAddr;

use axum::http::Uri;
use ipnet::IpNet;

use super::server::host_and_port;
use crate::secrets::shown;

/// The way to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// No proxy is configured.
    Direct,
    /// A proxy is configured by this variable, but not for this server.
    Excluded(&'static str),
    /// Through this proxy, which this variable or field names.
    Through { proxy: Uri, by: &'static str },
    /// What this variable or field says cannot be used.
    Unusable { by: &'static str, value: String, reason: &'static str },
}

/// The field of a kubeconfig.
pub(super) const FIELD: &str = "proxy-url";

/// The way to a server.
///
/// `field`: `proxy-url` of the kubeconfig, which goes before the environment and its exceptions, as in client-go.
/// `variable`: the environment. The server's URL has a scheme and a host.
pub(super) fn route(server: &Uri, field: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Route {
    if let Some(value) = field.filter(|value| !value.is_empty()) {
        return through(FIELD, value);
    }
    let names = match server.scheme_str() {
        Some("https") => ["HTTPS_PROXY", "https_proxy"],
        _ => ["HTTP_PROXY", "http_proxy"],
    };
    let first = |names: [&'static str; 2]| {
        names.into_iter().find_map(|name| Some((name, variable(name).filter(|value| !value.is_empty())?)))
    };
    let Some((by, value)) = first(names) else { return Route::Direct };
    let exceptions = first(["NO_PROXY", "no_proxy"]).map(|(_, value)| value).unwrap_or_default();
    if is_excepted(server, &exceptions) { Route::Excluded(by) } else { through(by, &value) }
}

fn through(by: &'static str, value: &str) -> Route {
    match parse(value) {
        Ok(proxy) => Route::Through { proxy, by },
        Err(reason) => Route::Unusable { by, value: shown(value), reason },
    }
}

/// The URL of a proxy; without a scheme, a proxy for HTTP. The port is always there.
fn parse(value: &str) -> Result<Uri, &'static str> {
    let full = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let uri: Uri = full.parse().map_err(|_| "it is not a URL (percent-encode the password, if it has one)")?;
    let (host, port) = host_and_port(&uri)?;
    let user = uri.authority().and_then(|authority| Some(authority.as_str().rsplit_once('@')?.0));
    let (scheme, usual_port) = match uri.scheme_str() {
        Some("http") => ("http", 80),
        Some("https") => ("https", 443),
        // Names are left to the proxy in both.
        Some("socks5" | "socks5h") if user.is_none() => ("socks5", 1080),
        Some("socks5" | "socks5h") => return Err("no user can be given for a SOCKS proxy"),
        _ => return Err("its scheme is none of http, https and socks5"),
    };
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    let authority = format!("{user}{host}:{}", port.unwrap_or(usual_port));
    let built = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
    built.map_err(|_| "it is not a URL")
}

/// Whether a server is reached without a proxy: it is on this machine, or one of the items of NO_PROXY names it.
fn is_excepted(server: &Uri, exceptions: &str) -> bool {
    let host = server.host().unwrap_or_default().to_ascii_lowercase();
    let port = server.port_u16().unwrap_or(if server.scheme_str() == Some("https") { 443 } else { 80 });
    let address = address(&host);
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    exceptions.split(',').any(|item| names(&item.trim().to_ascii_lowercase(), &host, address, port))
}

/// Whether an item of NO_PROXY, in lower case, names a server.
fn names(item: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if item == "*" {
        return true;
    }
    if let Ok(net) = item.parse::<IpNet>() {
        return address.is_some_and(|address| net.contains(&address));
    }
    let (item_host, item_port) = match item.rsplit_once(':') {
        // Not the last part of an IPv6 address.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (item, None),
    };
    if item_port.is_some_and(|item_port| item_port != port.to_string()) {
        return false;
    }
    if let Some(item_address) = self::address(item_host) {
        return address == Some(item_address);
    }
    let domain = item_host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(item_host);
    // An address has no domain.
    if domain.is_empty() || address.is_some() {
        return false;
    }
    match domain.starts_with('.') {
        true => host.ends_with(domain),
        false => host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// An IP address, an IPv6 address in brackets or without.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(server: &str, field: Option<&str>, environment: &[(&str, &str)]) -> Route {
        let server = server.parse().expect("a URL");
        route(&server, field, |name| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn through(proxy: &str, by: &'static str) -> Route {
        Route::Through { proxy: proxy.parse().expect("a URL"), by }
    }

    #[test]
    fn the_variable_for_the_scheme_is_used_and_the_field_goes_before_it() {
        let (tls, plain) = ("https://10.0.0.1:6443", "http://10.0.0.1:8080");
        let both = [("HTTPS_PROXY", "http://p:1"), ("HTTP_PROXY", "http://q:2")];
        assert_eq!(routed(tls, None, &[]), Route::Direct);
        assert_eq!(routed(tls, None, &both), through("http://p:1/", "HTTPS_PROXY"));
        assert_eq!(routed(plain, None, &both), through("http://q:2/", "HTTP_PROXY"));
        assert_eq!(routed(plain, None, &both[..1]), Route::Direct);
        assert_eq!(routed(tls, None, &both[1..]), Route::Direct);
        assert_eq!(routed(tls, None, &[("ALL_PROXY", "http://p:1")]), Route::Direct);
        assert_eq!(routed(tls, None, &[("https_proxy", "http://p:1")]), through("http://p:1/", "https_proxy"));
        assert_eq!(routed(plain, None, &[("http_proxy", "http://p:1")]), through("http://p:1/", "http_proxy"));
        let two = [("HTTPS_PROXY", ""), ("https_proxy", "http://p:1"), ("NO_PROXY", ""), ("no_proxy", "10.0.0.1")];
        assert_eq!(routed(tls, None, &two[..2]), through("http://p:1/", "https_proxy"), "empty is not set");
        assert_eq!(routed(tls, None, &two), Route::Excluded("https_proxy"), "empty is not set");
        let excluded = [("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "*")];
        assert_eq!(routed(tls, Some("http://f:3"), &excluded), through("http://f:3/", "proxy-url"));
        assert_eq!(routed(tls, Some(""), &excluded), Route::Excluded("HTTPS_PROXY"));
        assert_eq!(routed("https://127.0.0.1", Some("http://f:3"), &[]), through("http://f:3/", "proxy-url"));
    }

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        for (server, exceptions, excepted) in [
            ("https://10.0.0.1:6443", "", false),
            ("https://10.0.0.1:6443", "*", true),
            ("https://10.0.0.1:6443", "a.example, * ,", true),
            ("https://10.0.0.1:6443", "10.0.0.1", true),
            ("https://10.0.0.1:6443", "10.0.0.2", false),
            ("https://10.0.0.1:6443", "10.0.0", false),
            ("https://10.0.0.1:6443", ".0.0.1", false),
            ("https://10.0.0.1:6443", "*.0.0.1", false),
            ("https://10.0.0.1:6443", "10.0.0.1:6443", true),
            ("https://10.0.0.1:6443", "10.0.0.1:443", false),
            ("https://10.0.0.1", "10.0.0.1:443", true),
            ("http://10.0.0.1", "10.0.0.1:80", true),
            ("https://10.0.0.1:6443", "10.0.0.0/8", true),
            ("https://10.0.0.1:6443", "10.9.9.9/8", true),
            ("https://10.0.0.1:6443", "172.16.0.0/12,,192.168.0.0/16, 10.0.0.0/8 ", true),
            ("https://10.0.0.1:6443", "11.0.0.0/8", false),
            ("https://10.0.0.1:6443", "2001:db8::/32", false),
            ("https://10.0.0.1:6443", "::ffff:10.0.0.1", true),
            ("https://[2001:db8::1]:6443", "2001:db8::1", true),
            ("https://[2001:db8::1]:6443", "2001:db8:0::1", true),
            ("https://[2001:db8::1]:6443", "[2001:db8::1]", true),
            ("https://[2001:db8::1]:6443", "[2001:db8::1]:6443", true),
            ("https://[2001:db8::1]:6443", "[2001:db8::1]:1", false),
            ("https://[2001:db8::1]:6443", "2001:db8::/32", true),
            ("https://[2001:db8::1]:6443", "2001:db9::/32", false),
            ("https://api.example:6443", "api.example", true),
            ("https://API.Example:6443", "api.eXample", true),
            ("https://api.example:6443", "example", true),
            ("https://api.example:6443", ".example", true),
            ("https://api.example:6443", "*.example", true),
            ("https://api.example:6443", ".api.example", false),
            ("https://api.example:6443", "pi.example", false),
            ("https://api.example:6443", "*pi.example", false),
            ("https://api.example:6443", "other.example", false),
            ("https://api.example:6443", "example:6443", true),
            ("https://api.example:6443", ".example:6443", true),
            ("https://api.example:6443", "example:443", false),
            ("https://api.example", "example:443", true),
            ("https://api.example:6443", ":6443", false),
            ("https://api.example:6443", "https://api.example", false),
            ("https://api.example:6443", "10.0.0.0/8", false),
            // On this machine: never.
            ("https://localhost:6443", "", true),
            ("https://127.0.0.1:6443", "", true),
            ("https://127.9.9.9:6443", "", true),
            ("https://[::1]:6443", "", true),
            ("https://localhost.example:6443", "", false),
        ] {
            let environment = [("HTTPS_PROXY", "http://p:1"), ("HTTP_PROXY", "http://p:1"), ("NO_PROXY", exceptions)];
            let excluded = matches!(routed(server, None, &environment), Route::Excluded(_));
            assert_eq!(excluded, excepted, "{server} {exceptions:?}");
        }
    }

    #[test]
    fn proxies_are_taken_or_refused_with_a_reason_and_without_their_password() {
        for (value, expected) in [
            ("http://p:3128", Ok("http://p:3128/")),
            ("http://p", Ok("http://p:80/")),
            ("https://p", Ok("https://p:443/")),
            ("socks5://p", Ok("socks5://p:1080/")),
            ("socks5h://p:1", Ok("socks5://p:1/")),
            ("p:3128", Ok("http://p:3128/")),
            ("10.0.0.9", Ok("http://10.0.0.9:80/")),
            ("[2001:db8::9]:3128", Ok("http://[2001:db8::9]:3128/")),
            ("http://me:secret@p:3128/path?x", Ok("http://me:secret@p:3128/")),
            ("ftp://p", Err("its scheme is none of http, https and socks5")),
            ("socks5://me:secret@p", Err("no user can be given for a SOCKS proxy")),
            ("http://me:sec ret@p", Err("it is not a URL (percent-encode the password, if it has one)")),
            ("http://p:secret", Err("its port is not a number from 1 to 65535")),
            ("http://", Err("it is not a URL (percent-encode the password, if it has one)")),
            (":3128", Err("there is no host in it")),
            ("/p", Err("it is not a URL (percent-encode the password, if it has one)")),
        ] {
            for (field, environment) in [(Some(value), vec![]), (None, vec![("HTTPS_PROXY", value)])] {
                let by = if field.is_some() { FIELD } else { "HTTPS_PROXY" };
                let route = routed("https://10.0.0.1:6443", field, &environment);
                match expected {
                    Ok(proxy) => assert_eq!(route, through(proxy, by), "{value:?}"),
                    Err(reason) => {
                        let Route::Unusable { by: found, value: said, reason: why } = route else {
                            panic!("{value:?}: {route:?}");
                        };
                        assert_eq!((found, why), (by, reason), "{value:?}");
                        assert!(!value.contains('@') || !said.contains("sec"), "{said}");
                    }
                }
            }
        }
    }
}
