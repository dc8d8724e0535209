//! Decides whether a server leaf must be replaced, and for which names.

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::name::SubjectName;
use super::template::Validity;

/// If old and wanted names together exceed this number, a new leaf drops the vanished ones, so that
/// it can't grow without bound.
const MAX_NAMES: usize = 100;

/// Returns the names of the leaf to issue now; `None` if `leaf` can still be used.
///
/// A new name causes a new leaf, which has the old names too. A vanished name does not: the
/// container may return to the network, and each new leaf breaks pins on the fingerprint of the old
/// one. Vanished names are dropped when the leaf is renewed.
pub(super) fn due_names(
    leaf: Option<(&BTreeSet<SubjectName>, Validity)>,
    wanted: &BTreeSet<SubjectName>,
    now: OffsetDateTime,
) -> Option<BTreeSet<SubjectName>> {
    let Some((names, validity)) = leaf else { return Some(wanted.clone()) };
    if now < validity.not_before || renew_at(validity) <= now {
        return Some(wanted.clone());
    }
    if wanted.is_subset(names) {
        return None;
    }
    let both_sets: BTreeSet<_> = wanted | names;
    Some(if both_sets.len() > MAX_NAMES { wanted.clone() } else { both_sets })
}

/// Returns the time at which two thirds of a leaf's validity have elapsed.
pub(super) fn renew_at(validity: Validity) -> OffsetDateTime {
    validity.not_before + (validity.not_after - validity.not_before) * 2 / 3
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    const START: OffsetDateTime = datetime!(2026-06-01 00:00 UTC);

    fn names(text: &str) -> BTreeSet<SubjectName> {
        text.split_whitespace().map(|name| name.parse().unwrap()).collect()
    }

    const LIFE: Validity = Validity { not_before: START, not_after: datetime!(2026-08-30 00:00 UTC) };

    #[test]
    fn a_leaf_is_replaced_for_a_new_name_and_at_two_thirds_of_its_life() {
        let day = Duration::days;
        let table = [
            // leaf, wanted, age, expected
            ("a b", "a b", day(1), None),
            ("a b", "a", day(1), None),
            ("a b", "", day(1), None),
            ("a b", "a b 10.0.0.1", day(1), Some("a b 10.0.0.1")),
            ("a b", "c", day(1), Some("a b c")),
            ("a b", "a", day(60) - Duration::SECOND, None),
            ("a b", "a", day(60), Some("a")),
            ("a b", "a", day(91), Some("a")),
            // The clock went back to before the start of the leaf's validity.
            ("a b", "a b", -day(1), Some("a b")),
            ("a b", "a b", Duration::ZERO, None),
        ];
        for (has, wanted, age, expected) in table {
            assert_eq!(
                due_names(Some((&names(has), LIFE)), &names(wanted), START + age),
                expected.map(names),
                "{has} / {wanted} / {age}"
            );
        }
        assert_eq!(due_names(None, &names("a"), START), Some(names("a")));
    }

    #[test]
    fn a_leaf_does_not_grow_without_bound() {
        let had: Vec<_> = (0..MAX_NAMES).map(|i| format!("n{i}")).collect();
        assert_eq!(due_names(Some((&names(&had.join(" ")), LIFE)), &names("x"), START), Some(names("x")));
    }
}
