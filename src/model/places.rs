//! Which pods the endpoints of a slice are, and on which nodes: for people who look. Nothing that is served depends on it.

use arcstr::ArcStr;

/// The names of the pods and nodes of a slice's endpoints, in their order.
///
/// Kept small, for clusters with 100,000 endpoints: names of nodes are shared, and those of pods, which nearly always begin
/// with the same (`web-7d9f8b6c5d-`), are one text, with that once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// Empty if no endpoint has one.
    nodes: Box<[Option<ArcStr>]>,
    /// Lines: what all begin with, then for each endpoint what its name adds, or [`NO_POD`]. Empty if no endpoint has a name.
    pods: Box<str>,
}

/// The line of an endpoint that is no pod: no name has such a character.
const NO_POD: &str = "/";

/// Where one endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place<'a> {
    /// `nodeName`, if there is one.
    pub node: Option<&'a ArcStr>,
    /// `targetRef.name` of a pod.
    pub pod: Option<String>,
}

impl Places {
    /// From the name of the pod and of the node of each endpoint. Names must be such as
    /// [`ObjectName::is_part`](super::ObjectName::is_part) wants them.
    pub fn new<'a>(names: impl IntoIterator<Item = (Option<&'a str>, Option<ArcStr>)>) -> Places {
        let (pods, nodes): (Vec<Option<&str>>, Vec<Option<ArcStr>>) = names.into_iter().unzip();
        let has_nodes = nodes.iter().any(Option::is_some);
        Places { nodes: if has_nodes { nodes.into() } else { Box::default() }, pods: lines(&pods).into() }
    }

    /// Where each endpoint is, for ever: past those that names were given of, nowhere.
    pub fn iter(&self) -> impl Iterator<Item = Place<'_>> {
        let mut lines = self.pods.split('\n');
        let first = lines.next().unwrap_or_default();
        let mut nodes = self.nodes.iter();
        std::iter::repeat_with(move || {
            let pod = lines.next().filter(|line| *line != NO_POD).map(|line| format!("{first}{line}"));
            Place { node: nodes.next().and_then(Option::as_ref), pod }
        })
    }
}

/// The lines of [`Places::pods`].
fn lines(pods: &[Option<&str>]) -> String {
    let mut names = pods.iter().flatten();
    let Some(first) = names.next() else { return String::new() };
    let common = names.fold(*first, |common, name| {
        let alike = common.char_indices().zip(name.chars()).take_while(|((_, a), b)| a == b);
        let end = alike.last().map_or(0, |((at, c), _)| at + c.len_utf8());
        &common[..end]
    });
    let mut lines = common.to_owned();
    for pod in pods {
        lines.push('\n');
        lines.push_str(pod.map_or(NO_POD, |name| &name[common.len()..]));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    type Names<'a> = Vec<(Option<&'a str>, Option<&'a str>)>;

    fn places(names: &Names<'_>) -> Places {
        Places::new(names.iter().map(|(pod, node)| (*pod, node.map(ArcStr::from))))
    }

    #[test]
    fn names_are_given_back() {
        let cases: [Names<'_>; 7] = [
            vec![],
            vec![(None, None), (None, None)],
            vec![(Some("web-0"), Some("n1"))],
            vec![(Some("web-7d9-abc"), Some("n1")), (Some("web-7d9-xyz"), None), (None, Some("n2"))],
            vec![(Some("web"), None), (Some("web-1"), None), (None, None), (Some("we"), None)],
            vec![(Some("a"), None), (Some("b"), None)],
            vec![(Some("é1"), None), (Some("è1"), None), (Some("é1"), None)],
        ];
        for names in cases {
            let places = places(&names);
            let found: Vec<(Option<String>, Option<String>)> =
                places.iter().take(names.len() + 2).map(|it| (it.pod, it.node.map(ToString::to_string))).collect();
            let none = vec![(None, None); 2];
            let expected = names.iter().map(|(pod, node)| (pod.map(str::to_owned), node.map(str::to_owned)));
            assert_eq!(found, expected.chain(none).collect::<Vec<_>>(), "{names:?}");
        }
    }

    #[test]
    fn what_names_have_in_common_is_kept_once() {
        let places = places(&vec![(Some("web-7d9f8b6c5d-abcde"), None), (Some("web-7d9f8b6c5d-fghij"), None)]);
        assert_eq!(&*places.pods, "web-7d9f8b6c5d-\nabcde\nfghij");
        assert!(places.nodes.is_empty());
    }
}
