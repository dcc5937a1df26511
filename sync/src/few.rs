//! A map of few entries: what one session remembers of its channels and logs.
//!
//! A session has two channels and a writer or two in each, and a hub has twenty thousand sessions: a `BTreeMap` has room for eleven
//! entries from the first one on, and four fifths of it stay empty. Sorted, so that it is walked in the same order.

/// A sorted row of keys and values; grows by little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Few<K, V>(Vec<(K, V)>);

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> Few<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }

    /// The value at a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    /// Whether there is one.
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// The value at a key, made first if there is none.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let at = match self.find(&key) {
            Ok(at) => at,
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(1 + self.0.len() / 2);
                }
                self.0.insert(at, (key, make()));
                at
            }
        };
        &mut self.0[at].1
    }

    /// Sets the value at a key.
    pub fn insert(&mut self, key: K, value: V) {
        // Made and replaced at once when the key is new.
        let mut value = Some(value);
        let place = self.get_or_insert_with(key, || value.take().unwrap_or_else(|| unreachable!("it is taken once")));
        if let Some(value) = value {
            *place = value;
        }
    }

    /// Keeps the entries that `keeps` says yes to.
    pub fn retain(&mut self, mut keeps: impl FnMut(&K, &V) -> bool) {
        self.0.retain(|(key, value)| keeps(key, value));
    }

    /// All entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// All values, by key.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Few<K, V> {
    /// The last one of a key counts.
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let mut few = Self::default();
        entries.into_iter().for_each(|(key, value)| few.insert(key, value));
        few
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_is_a_sorted_map() {
        let (mut few, mut map) = (Few::default(), BTreeMap::new());
        let mut number: u32 = 7;
        for step in 0..200 {
            number = number.wrapping_mul(1_103_515_245).wrapping_add(12345);
            let key = number >> 28;
            if step % 3 == 0 {
                few.insert(key, step);
                map.insert(key, step);
            } else {
                assert_eq!(few.get_or_insert_with(key, || step), map.entry(key).or_insert(step));
            }
            if step % 50 == 49 {
                few.retain(|key, _| key % 2 == 0);
                map.retain(|key, _| key % 2 == 0);
            }
            assert!(few.iter().eq(map.iter()), "{few:?} {map:?}");
            assert_eq!((few.len(), few.get(&3), few.contains_key(&4)), (map.len(), map.get(&3), map.contains_key(&4)));
        }
        assert_eq!([(2, 'a'), (1, 'b'), (2, 'c')].into_iter().collect::<Few<_, _>>().get(&2), Some(&'c'));
    }

    #[test]
    fn it_takes_little_more_than_its_entries() {
        let few: Few<u64, u64> = (0..3).map(|key| (key, key)).collect();
        assert!(few.0.capacity() <= 4, "{}", few.0.capacity());
    }
}
