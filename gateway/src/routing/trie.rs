//! Path prefixes by whole segments.
//!
//! The deepest prefix that a path has is not always the answer: its rules may ask for a header
//! that the request lacks, and then a shorter prefix serves it. So a walk visits *every* prefix on
//! the way, deepest first, which a router for a single best match cannot do.

use std::{collections::HashMap, hash::BuildHasherDefault};

use smallvec::SmallVec;

use super::table::Leaf;
use selvedge_proxy::hash::Fx;

/// Beyond this many children a node is a hash map; below, a scan is cheaper.
const SCANNED: usize = 8;

/// A tree of segments; nodes that end a configured prefix have a leaf.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: Children,
    leaf: Leaf,
}

#[derive(Debug)]
enum Children {
    Few(Vec<(Box<str>, usize)>),
    Many(HashMap<Box<str>, usize, BuildHasherDefault<Fx>>),
}

impl Default for Children {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Children {
    fn get(&self, segment: &str) -> Option<usize> {
        match self {
            Self::Few(list) => list
                .iter()
                .find(|(known, _)| &**known == segment)
                .map(|(_, node)| *node),
            Self::Many(map) => map.get(segment).copied(),
        }
    }

    fn insert(&mut self, segment: &str, node: usize) {
        match self {
            Self::Few(list) if list.len() < SCANNED => list.push((segment.into(), node)),
            Self::Few(list) => {
                let mut map: HashMap<_, _, _> = list.drain(..).collect();
                map.insert(segment.into(), node);
                *self = Self::Many(map);
            }
            Self::Many(map) => {
                map.insert(segment.into(), node);
            }
        }
    }
}

impl Default for Trie {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
        }
    }
}

impl Trie {
    /// The leaf of `prefix` (empty for the root, else `/a/b`), made when it is not there yet.
    pub(super) fn leaf_mut(&mut self, prefix: &str) -> &mut Leaf {
        let mut at = 0;
        for segment in prefix.split('/').skip(1) {
            at = if let Some(next) = self.nodes[at].children.get(segment) {
                next
            } else {
                let next = self.nodes.len();
                self.nodes.push(Node::default());
                self.nodes[at].children.insert(segment, next);
                next
            };
        }
        &mut self.nodes[at].leaf
    }

    pub(super) fn leaves_mut(&mut self) -> impl Iterator<Item = &mut Leaf> {
        self.nodes.iter_mut().map(|node| &mut node.leaf)
    }

    /// The first answer of `find`, asked for each prefix of `path` from the deepest up.
    pub(super) fn find_map<T>(
        &self,
        path: &str,
        find: impl FnMut(&Leaf) -> Option<T>,
    ) -> Option<T> {
        let mut met: SmallVec<[&Leaf; 8]> = SmallVec::new();
        let mut node = &self.nodes[0];
        let mut segments = path.split('/').skip(1);
        loop {
            if !node.leaf.is_empty() {
                met.push(&node.leaf);
            }
            let next = segments.next().and_then(|s| node.children.get(s));
            match next {
                Some(next) => node = &self.nodes[next],
                None => break,
            }
        }
        met.into_iter().rev().find_map(find)
    }
}
