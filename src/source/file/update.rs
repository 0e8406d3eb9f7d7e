//! A file that was read again: which of its documents are the same as before, and what faulty ones hold on to. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use smallvec::SmallVec;

use super::document::{Chunk, Contents};
use crate::model::{Event, Reject};
use crate::source::Key;

/// What is known about a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Document {
    /// Of its text; `None` where it has to be read again although its text is the same.
    hash: Option<u64>,
    /// The objects that it gives: `true`; and those that a faulty document gave before and holds on to: `false`.
    pub(super) objects: SmallVec<[(Key, bool); 1]>,
    pub(super) rejects: Vec<Reject>,
}

impl Document {
    /// The next time it is read, what it says about these objects counts as new.
    pub(super) fn must_be_said(&mut self, objects: &BTreeSet<Key>) {
        if self.objects.iter().any(|(key, _)| objects.contains(key)) {
            self.hash = None;
        }
    }
}

/// The document of a file that an object is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Winner {
    /// Index of the document.
    pub(super) document: usize,
    /// Whether the document gives the object, or only holds on to what it gave before.
    pub(super) usable: bool,
}

/// The objects of a file: of several documents that give the same object, the last.
pub(super) fn winners(documents: &[Document]) -> BTreeMap<Key, Winner> {
    let mut winners = BTreeMap::new();
    for wanted in [false, true] {
        for (document, Document { objects, .. }) in documents.iter().enumerate() {
            for (key, usable) in objects.iter().filter(|(_, usable)| *usable == wanted) {
                winners.insert(key.clone(), Winner { document, usable: *usable });
            }
        }
    }
    winners
}

/// A file that was read again.
pub(super) struct Update<'a, Read> {
    pub(super) documents: Vec<Document>,
    /// The index that each document had before, where it is the same.
    origins: Vec<Option<usize>>,
    chunks: Vec<Chunk<'a>>,
    /// Of documents that were read.
    contents: BTreeMap<usize, Contents>,
    read: Read,
}

impl<'a, Read: Fn(Chunk<'a>) -> Contents> Update<'a, Read> {
    /// Reads those documents (with `read`) that were not there before.
    pub(super) fn new(before: Vec<Document>, chunks: Vec<Chunk<'a>>, read: Read) -> Self {
        let mut by_hash: HashMap<u64, VecDeque<usize>> = HashMap::with_capacity(before.len());
        for (index, hash) in before.iter().enumerate().filter_map(|(index, document)| Some((index, document.hash?))) {
            by_hash.entry(hash).or_default().push_back(index);
        }
        let mut before: Vec<Option<Document>> = before.into_iter().map(Some).collect();
        let (mut documents, mut origins, mut contents) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (index, chunk) in chunks.iter().enumerate() {
            let hash = chunk.hash();
            let origin = by_hash.get_mut(&hash).and_then(VecDeque::pop_front);
            origins.push(origin);
            documents.push(origin.and_then(|origin| before[origin].take()).unwrap_or_else(|| {
                let read = contents.entry(index).or_insert_with(|| read(*chunk));
                let usable = |(key, events): (&Key, &Option<_>)| events.is_some().then(|| (key.clone(), true));
                let mut objects: SmallVec<_> = read.objects.iter().filter_map(usable).collect();
                objects.shrink_to_fit();
                Document { hash: Some(hash), objects, rejects: std::mem::take(&mut read.rejects) }
            }));
        }
        let left: Vec<Document> = before.into_iter().flatten().collect();
        hold_on(&mut documents, &contents, &left);
        Update { documents, origins, chunks, contents, read }
    }

    /// Whether an object is taken from the same document as before.
    pub(super) fn is_unchanged(&self, document: usize, before: Option<&Winner>) -> bool {
        self.origins[document].is_some() && self.origins[document] == before.map(|winner| winner.document)
    }

    /// What a document says about an object, once.
    pub(super) fn events_of(&mut self, document: usize, key: &Key) -> Option<Vec<Event>> {
        let read = || (self.read)(self.chunks[document]);
        self.contents.entry(document).or_insert_with(read).objects.remove(key).flatten()
    }

    /// Kinds of objects in the documents that were read which the proxy does not read.
    pub(super) fn other_kinds(&self) -> impl Iterator<Item = &str> {
        self.contents.values().flat_map(|contents| &contents.other_kinds).map(String::as_str)
    }
}

/// Lets faulty documents hold on to objects that the file gave before: a faulty object to itself, and a document that
/// cannot be read to all that the documents gave of which nothing is `left`.
fn hold_on(documents: &mut [Document], contents: &BTreeMap<usize, Contents>, left: &[Document]) {
    let is_faulty = |contents: &&Contents| contents.unclear || contents.objects.values().any(Option::is_none);
    if !contents.values().any(|contents| is_faulty(&contents)) {
        return;
    }
    let given: BTreeSet<&Key> = contents
        .values()
        .flat_map(|contents| contents.objects.iter())
        .filter_map(|(key, events)| events.is_some().then_some(key))
        .collect();
    let lost: BTreeSet<&Key> = left
        .iter()
        .flat_map(|document| &document.objects)
        .map(|(key, _)| key)
        .filter(|key| !given.contains(key))
        .collect();
    for (&index, contents) in contents.iter().filter(|(_, contents)| is_faulty(contents)) {
        let faulty = |key: &Key| matches!(contents.objects.get(key), Some(None));
        let held = lost.iter().filter(|key| contents.unclear || faulty(key));
        documents[index].objects.extend(held.map(|&key| (key.clone(), false)));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::document::{Format, split};
    use super::*;

    #[test]
    fn only_documents_that_changed_are_read() {
        let read = Cell::new(0);
        let update = |before: Vec<Document>, text: &str| {
            read.set(0);
            let count = |_: Chunk<'_>| {
                read.set(read.get() + 1);
                Contents::default()
            };
            Update::new(before, split(text.as_bytes(), Format::Yaml), count).documents
        };
        let documents = update(Vec::new(), "a: 1\n---\nb: 2\n---\nc: 3\n");
        assert_eq!((read.get(), documents.len()), (3, 3));
        for (text, expected) in [
            ("a: 1\n---\nb: 2\n---\nc: 3\n", 0),
            ("a: 1\n---\nb: 5\n---\nc: 3\n", 1),
            ("a: 1\n---\nc: 3\n", 0),
            ("a: 1\n---\nb: 2\n---\nb: 2\n---\nc: 3\n", 1),
        ] {
            update(documents.clone(), text);
            assert_eq!(read.get(), expected, "{text}");
        }
    }
}
