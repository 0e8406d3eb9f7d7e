//! What may be shown of texts with secrets in them.

/// A URL as it may be shown: without a password.
pub(crate) fn shown(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    // Where it is no URL, a password may have one of these in it.
    let user = authority.rsplit_once('@').or_else(|| rest.rsplit_once('@').filter(|_| authority.contains(':')));
    let Some((user, _)) = user else { return text.to_owned() };
    let host = &rest[user.len() + 1..];
    let user = user.split_once(':').map_or(user, |(user, _)| user);
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    format!("{scheme}{user}:***@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (text, expected) in [
            ("https://h:6443/p", "https://h:6443/p"),
            ("https://me:secret@h:6443/p", "https://me:***@h:6443/p"),
            ("https://me@h", "https://me:***@h"),
            ("me:secret@h", "me:***@h"),
            ("http://me:se/cr?et@h:1", "http://me:***@h:1"),
            ("http://me:s@e@h", "http://me:***@h"),
            ("http://me:secret@", "http://me:***@"),
            ("http://h/@", "http://h/@"),
            ("", ""),
        ] {
            assert_eq!(shown(text), expected);
        }
    }
}
