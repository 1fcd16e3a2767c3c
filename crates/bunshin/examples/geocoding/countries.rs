//! English country names for ISO 3166 codes, and how people write them in
//! "City, Country". Codes are those GeoNames uses, which adds `XK`.

use std::sync::LazyLock;

/// A line for each country: its code, the name shown in an address, other spellings.
const TABLE: &str = include_str!("countries.tsv");

/// Code, the name shown in an address, other ways to write it.
type Country = (&'static str, &'static str, Vec<&'static str>);

/// Sorted by code, for the binary search.
static COUNTRIES: LazyLock<Vec<Country>> = LazyLock::new(|| {
    TABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut columns = line.split('\t');
            Some((columns.next()?, columns.next()?, columns.collect()))
        })
        .collect()
});

/// The name to show for a country code, or none if the code is unknown.
pub(crate) fn name_of(code: &str) -> Option<&'static str> {
    COUNTRIES
        .binary_search_by_key(&code, |country| country.0)
        .ok()
        .map(|at| COUNTRIES[at].1)
}

/// Every country with its code and every way to write it.
pub(crate) fn spellings() -> impl Iterator<Item = (&'static str, &'static str)> {
    COUNTRIES.iter().flat_map(|(code, name, others)| {
        [*code, *name]
            .into_iter()
            .chain(others.iter().copied())
            .map(move |spelling| (*code, spelling))
    })
}

#[cfg(test)]
mod tests {
    use super::{COUNTRIES, name_of};

    #[test]
    fn the_table_is_sorted_so_that_every_code_is_found() {
        assert!(COUNTRIES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(COUNTRIES.len() >= 249);
        for &(code, name, _) in COUNTRIES.iter() {
            assert_eq!(name_of(code), Some(name));
        }
        assert_eq!(name_of("ZZ"), None);
    }
}
