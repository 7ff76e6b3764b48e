//! The lists that this server and its peers have used lately, and the numbers it knows for those
//! who are on them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::message::{List, Numbers};

/// Lists remembered. A guess: one's own of the last changes, and those of peers who differ.
const MAX_LISTS: usize = 16;

/// Lists by their tags, and numbers by names.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The one used last is last.
    lists: VecDeque<Arc<List>>,
    known: HashMap<Box<[u8]>, Numbers>,
}

impl Lists {
    /// What this server itself says.
    pub(super) fn say(&mut self, list: List, numbers: &[Numbers]) -> Arc<List> {
        for (id, numbers) in list.iter().zip(numbers) {
            match self.known.get_mut(id) {
                Some(known) => *known = *numbers,
                None => drop(self.known.insert(id.into(), *numbers)),
            }
        }
        self.note(list)
    }

    /// What a peer has said. Returns how far it was from what was known, in each number.
    pub(super) fn hear(&mut self, list: &List, numbers: &[Numbers]) -> Numbers {
        let mut apart = Numbers::default();
        for (id, numbers) in list.iter().zip(numbers) {
            let Some(known) = self.known.get_mut(id) else {
                self.known.insert(id.into(), *numbers);
                continue;
            };
            for ((known, number), apart) in known.iter_mut().zip(numbers).zip(&mut apart) {
                *apart = (*apart).max(known.abs_diff(*number));
                *known = (*known).max(*number);
            }
        }
        apart
    }

    /// The list of this tag, if it was used lately.
    pub(super) fn find(&mut self, tag: u32) -> Option<Arc<List>> {
        let at = self.lists.iter().position(|list| list.tag == tag)?;
        let list = self.lists.remove(at)?;
        self.lists.push_back(Arc::clone(&list));
        Some(list)
    }

    /// Remembers a list, which is then the last to be forgotten.
    pub(super) fn note(&mut self, list: List) -> Arc<List> {
        if let Some(same) = self.find(list.tag).filter(|known| **known == list) {
            return same;
        }
        let list = Arc::new(list);
        self.lists.retain(|known| known.tag != list.tag);
        self.lists.push_back(Arc::clone(&list));
        if self.lists.len() > MAX_LISTS {
            self.lists.pop_front();
            self.forget();
        }
        list
    }

    /// Numbers of those who are on no list any more; not each time, since it looks at all.
    fn forget(&mut self) {
        let longest = self.lists.iter().map(|list| list.len()).max();
        if self.known.len() > 2 * longest.unwrap_or(0) {
            let listed: HashSet<&[u8]> = self.lists.iter().flat_map(|list| list.iter()).collect();
            self.known.retain(|id, _| listed.contains(&**id));
        }
    }

    pub(super) fn known(&self, id: &[u8]) -> Option<Numbers> {
        self.known.get(id).copied()
    }

    /// Numbers that are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.lists.len(), self.known.len())
    }
}
