//! The part after the comma in "City, Country": which countries and regions it
//! may mean. "Portland, OR", "Paris, Francia" and "London, UK" are all understood
//! through one table of spellings.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::{countries, fold, fuzzy, regions};

/// A country, or one region of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Area {
    country: &'static str,
    /// The GeoNames `admin1` code; none for the whole country.
    admin1: Option<&'static str>,
}

impl Area {
    /// Whether a place with these codes lies in the area.
    pub(crate) fn holds(&self, country: &str, admin1: &str) -> bool {
        self.country == country && self.admin1.is_none_or(|code| code == admin1)
    }
}

/// What a spelling may mean: `MA` is Morocco and Massachusetts. Misspellings are
/// tried where there is no exact match. Empty if nothing is called that.
pub(crate) fn named(text: &str) -> Vec<Area> {
    let key = fold::fold(text);
    if let Some(areas) = AREAS.get(&key) {
        return areas.clone();
    }
    let mut nearest = Vec::new();
    let mut limit = fuzzy::misspelling_limit(key.chars().count());
    for (spelling, areas) in AREAS.iter() {
        // Codes are too short to be guessed at.
        let cost = fuzzy::cost(&key, spelling);
        if spelling.len() <= 3 || cost > limit {
            continue;
        }
        if cost < limit {
            nearest.clear();
            limit = cost;
        }
        nearest.extend_from_slice(areas);
    }
    nearest
}

static AREAS: LazyLock<HashMap<String, Vec<Area>>> = LazyLock::new(|| {
    let mut areas: HashMap<String, Vec<Area>> = HashMap::new();
    for (country, spelling) in countries::spellings() {
        let area = Area {
            country,
            admin1: None,
        };
        areas.entry(fold::fold(spelling)).or_default().push(area);
    }
    for (country, admin1, spelling) in regions::spellings() {
        let area = Area {
            country,
            admin1: Some(admin1),
        };
        areas.entry(fold::fold(spelling)).or_default().push(area);
    }
    areas
});

#[cfg(test)]
mod tests {
    use super::{Area, named};

    #[test]
    fn a_code_may_mean_a_country_and_a_region() {
        let massachusetts = Area {
            country: "US",
            admin1: Some("MA"),
        };
        let morocco = Area {
            country: "MA",
            admin1: None,
        };
        assert_eq!(named("ma"), [morocco, massachusetts]);
        assert!(massachusetts.holds("US", "MA"));
        assert!(!massachusetts.holds("US", "NY"));
        assert!(morocco.holds("MA", "04"));
    }

    #[test]
    fn misspelt_countries_are_understood_and_nonsense_is_not() {
        let austria = Area {
            country: "AT",
            admin1: None,
        };
        assert_eq!(named("Austira"), [austria]);
        assert_eq!(named("Österreich"), [austria]);
        assert_eq!(named("Narnia"), []);
        assert_eq!(named(""), []);
        assert_eq!(named("XX"), []);
    }
}
