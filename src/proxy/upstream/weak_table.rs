//! A table of shared values, each of which is dropped with its last user.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

/// Entries of dropped values are removed when the table has at least this many entries.
pub(super) const MIN_TABLE: usize = 1024;

/// Weak references to values in use, by key.
#[derive(Debug)]
pub struct WeakTable<K, V> {
    values: HashMap<K, Weak<V>>,
    /// The number of entries at which those of dropped values are removed.
    clean_at: usize,
}

impl<K, V> Default for WeakTable<K, V> {
    fn default() -> Self {
        Self { values: HashMap::new(), clean_at: MIN_TABLE }
    }
}

impl<K: Hash + Eq, V> WeakTable<K, V> {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns the value of `key`. If none is in use, inserts what `new` returns.
    pub fn get_or_insert_with(&mut self, key: K, new: impl FnOnce() -> V) -> Arc<V> {
        if let Some(value) = self.values.get(&key).and_then(Weak::upgrade) {
            return value;
        }
        if self.values.len() >= self.clean_at {
            self.values.retain(|_, value| value.strong_count() > 0);
            self.clean_at = MIN_TABLE.max(2 * self.values.len());
        }
        let value = Arc::new(new());
        self.values.insert(key, Arc::downgrade(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_shared_while_it_is_used_and_dropped_values_do_not_fill_the_table() {
        let mut table = WeakTable::default();
        let first = table.get_or_insert_with(0, || "first");
        assert!(Arc::ptr_eq(&first, &table.get_or_insert_with(0, || "second")));
        drop(first);
        assert_eq!(*table.get_or_insert_with(0, || "second"), "second");
        for key in 0..10 * MIN_TABLE {
            table.get_or_insert_with(key, || "unused");
        }
        assert!(table.len() <= MIN_TABLE);
    }
}
