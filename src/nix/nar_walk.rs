//! Walking over a NAR without holding it, to find where it ends: nothing on the wire says how long it is.
//!
//! Source: `dump` and `parse` in `archive.cc` of Nix 2.3 to 2.34. A NAR is nothing but padded strings. The state is a few
//! words however large or deep the tree is.

use super::walk::{Item, Unexpected, Walk};

/// Where a walk through one NAR is.
#[derive(Debug)]
pub struct NarWalk {
    next: Next,
    /// The string that is being walked.
    string: Walk,
    /// In how many directories the node is that is being walked.
    depth: u64,
}

/// What the next string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Magic,
    NodeBegin,
    TypeWord,
    Type,
    /// `executable` or `contents`.
    FileField,
    /// The empty string after `executable`.
    Executable,
    ContentsWord,
    Contents,
    TargetWord,
    Target,
    NodeEnd,
    /// `entry`, or the end of the directory.
    EntryWord,
    EntryBegin,
    NameWord,
    Name,
    NodeWord,
    EntryEnd,
    /// There is none.
    Nothing,
}

const WORD: &[Item] = &[Item::Wanted];
const DATA: &[Item] = &[Item::String];

impl NarWalk {
    /// Starts in front of a NAR.
    pub fn new() -> Self {
        Self {
            next: Next::Magic,
            string: Walk::new(WORD),
            depth: 0,
        }
    }

    /// Walks on, and takes what belongs to the NAR from the front of `bytes`. True at its end.
    pub fn advance(&mut self, bytes: &mut &[u8]) -> Result<bool, Unexpected> {
        while self.next != Next::Nothing {
            if !self.string.advance(bytes)? {
                return Ok(false);
            }
            self.enter()?;
            self.string.restart(match self.next {
                Next::Contents | Next::Target | Next::Name => DATA,
                _ => WORD,
            });
        }
        Ok(true)
    }

    /// Goes on after a whole string.
    fn enter(&mut self) -> Result<(), Unexpected> {
        let word = self.string.wanted().first().map_or(&[][..], Vec::as_slice);
        self.next = match (self.next, word) {
            (Next::Magic, b"nix-archive-1") => Next::NodeBegin,
            (Next::NodeBegin, b"(") => Next::TypeWord,
            (Next::TypeWord, b"type") => Next::Type,
            (Next::Type, b"regular") => Next::FileField,
            (Next::Type, b"symlink") => Next::TargetWord,
            (Next::FileField, b"executable") => Next::Executable,
            (Next::Executable, b"") => Next::ContentsWord,
            (Next::FileField | Next::ContentsWord, b"contents") => Next::Contents,
            (Next::TargetWord, b"target") => Next::Target,
            (Next::Contents | Next::Target, _) => Next::NodeEnd,
            (Next::Type, b"directory") | (Next::EntryEnd, b")") => Next::EntryWord,
            (Next::EntryWord, b"entry") => Next::EntryBegin,
            (Next::EntryBegin, b"(") => Next::NameWord,
            (Next::NameWord, b"name") => Next::Name,
            (Next::Name, _) => Next::NodeWord,
            (Next::NodeWord, b"node") => {
                self.depth += 1;
                Next::NodeBegin
            }
            (Next::NodeEnd | Next::EntryWord, b")") if self.depth == 0 => Next::Nothing,
            (Next::NodeEnd | Next::EntryWord, b")") => {
                self.depth -= 1;
                Next::EntryEnd
            }
            _ => return Err(Unexpected),
        };
        Ok(())
    }
}

impl Default for NarWalk {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nix::wire::put_string;

    /// A file system tree, to write NARs of.
    #[derive(Clone, Debug)]
    enum Node {
        File { executable: bool, contents: Vec<u8> },
        Link(String),
        Folder(Vec<(String, Node)>),
    }

    fn put(out: &mut Vec<u8>, words: &[&str]) {
        for word in words {
            put_string(out, word.as_bytes());
        }
    }

    fn put_node(out: &mut Vec<u8>, node: &Node) {
        put(out, &["(", "type"]);
        match node {
            Node::File {
                executable,
                contents,
            } => {
                put(out, &["regular"]);
                if *executable {
                    put(out, &["executable", ""]);
                }
                put(out, &["contents"]);
                put_string(out, contents);
            }
            Node::Link(target) => put(out, &["symlink", "target", target]),
            Node::Folder(entries) => {
                put(out, &["directory"]);
                for (name, node) in entries {
                    put(out, &["entry", "(", "name", name, "node"]);
                    put_node(out, node);
                    put(out, &[")"]);
                }
            }
        }
        put(out, &[")"]);
    }

    fn nar(node: &Node) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, &["nix-archive-1"]);
        put_node(&mut out, node);
        out
    }

    fn any_node() -> impl Strategy<Value = Node> {
        let file = (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
            |(executable, contents)| Node::File {
                executable,
                contents,
            },
        );
        let leaf = prop_oneof![file, "[a-z)(]{0,12}".prop_map(Node::Link)];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop::collection::vec(("[a-z)(]{1,12}", inner), 0..4).prop_map(Node::Folder)
        })
    }

    #[test]
    fn a_deep_tree_ends_where_it_ends() {
        let mut node = Node::Link("/".to_owned());
        for _ in 0..1000 {
            node = Node::Folder(vec![("x".to_owned(), node)]);
        }
        let nar = nar(&node);
        let mut bytes = &nar[..];
        assert_eq!(NarWalk::new().advance(&mut bytes), Ok(true));
        assert!(bytes.is_empty());
    }

    #[test]
    fn what_is_not_a_nar_ends_the_walk() {
        let walked = |words: &[&str]| {
            let mut out = Vec::new();
            put(&mut out, words);
            NarWalk::new().advance(&mut &out[..])
        };
        assert_eq!(walked(&["nix-archive-2"]), Err(Unexpected));
        assert_eq!(
            walked(&["nix-archive-1", "(", "type", "socket"]),
            Err(Unexpected)
        );
        assert_eq!(
            walked(&["nix-archive-1", "(", "type", "regular", ")"]),
            Err(Unexpected)
        );
        assert_eq!(
            walked(&["nix-archive-1", "(", "type", "directory", "entry"]),
            Ok(false)
        );
    }

    proptest! {
        #[test]
        fn a_nar_ends_where_it_ends_however_it_is_split(
            node in any_node(),
            sizes in prop::collection::vec(1..60_usize, 1..30),
        ) {
            let nar = nar(&node);
            let followed = [&nar[..], b"more"].concat();
            let mut walk = NarWalk::new();
            let mut sizes = sizes.into_iter().cycle();
            let mut rest = &followed[..];
            let mut n_walked = 0;
            loop {
                let (part, later) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                let mut unread = part;
                let done = walk.advance(&mut unread).unwrap();
                n_walked += part.len() - unread.len();
                prop_assert_eq!(done, n_walked == nar.len());
                if done {
                    break;
                }
                prop_assert!(unread.is_empty());
                rest = later;
            }
        }

        #[test]
        fn garbage_never_panics(
            node in any_node(),
            at in any::<prop::sample::Index>(),
            byte: u8,
            tail in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut nar = nar(&node);
            let at = at.index(nar.len());
            nar[at] = byte;
            nar.extend(tail);
            let _ = NarWalk::new().advance(&mut &nar[..]);
        }
    }
}
