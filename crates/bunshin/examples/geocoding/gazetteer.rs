//! The first geocoder: a table of places in memory, searched by name.
//!
//! The table is a handful of flat arrays in [`Buffer`]s, which travel to the
//! workers as shared memory: the parent reads and sorts once, whatever the size of
//! the file, and no worker parses or copies anything.
//!
//! Names (with all their alternates) are keys, sorted by length and then by text.
//! An exact match is a binary search; a misspelling only looks at the lengths that
//! the allowed edits can reach, and compares only keys whose letters can fit.

use std::cmp::Reverse;
use std::ops::Range;

use bunshin::Buffer;
use serde::{Deserialize, Serialize};

use crate::areas::{self, Area};
use crate::fuzzy::{self, Cost};
use crate::place::{GeocodeError, Geocoded, Geocoder};
use crate::{countries, fold};

/// How many near names an error shows.
const N_SUGGESTIONS: usize = 3;

/// A table of places, ready for searching and for travelling.
#[derive(Serialize, Deserialize)]
pub(crate) struct Gazetteer {
    /// "name, tab, country code, tab, admin1 code" of each place, end to end.
    labels: Buffer<u8>,
    /// Where in `labels` each place's label ends.
    label_ends: Buffer<u32>,
    /// Latitude and longitude of each place.
    positions: Buffer<[f64; 2]>,
    populations: Buffer<u64>,
    /// Folded names, end to end, sorted by length in characters, then by bytes.
    keys: Buffer<u8>,
    key_ends: Buffer<u32>,
    /// Whose name each key is.
    owners: Buffer<u32>,
    /// `fuzzy::signature` of each key.
    signatures: Buffer<u64>,
    /// The first key of each length; one more entry than there are lengths.
    length_starts: Vec<u32>,
}

/// The number of a place in the table.
type Place = usize;

impl Gazetteer {
    #[cfg(test)]
    pub(crate) fn n_places(&self) -> usize {
        self.label_ends.len()
    }

    /// Finds the most populous place of that name, exactly or nearly spelt.
    fn find(&self, query: &str) -> Result<Place, GeocodeError> {
        let whole = fold::fold(query);
        if let Some(place) = self.most_populous(self.exact(&whole)) {
            return Ok(place);
        }
        let (name, areas) = split(query)?;
        let key = fold::fold(name);
        let within = |place: &Place| self.lies_within(*place, &areas);
        self.most_populous(self.exact(&key).filter(within))
            .or_else(|| self.nearly(&key, within))
            .ok_or_else(|| GeocodeError::NoSuchPlace {
                closest: self.closest(&key),
            })
    }

    /// The places that have exactly this key.
    fn exact(&self, key: &str) -> impl Iterator<Item = Place> + '_ {
        let lengths = self.keys_of_length(key.chars().count());
        let start = partition(lengths.clone(), |at| self.key_bytes(at) < key.as_bytes());
        let end = partition(start..lengths.end, |at| {
            self.key_bytes(at) <= key.as_bytes()
        });
        (start..end).map(|at| self.owners[at] as usize)
    }

    /// The most populous of the places that are nearest to a misspelt key.
    fn nearly(&self, key: &str, within: impl Fn(&Place) -> bool) -> Option<Place> {
        let mut best: Option<(Cost, Reverse<u64>, Place)> = None;
        let limit = fuzzy::misspelling_limit(key.chars().count());
        self.scan(key, limit, |cost, place| {
            if within(&place) {
                let found = (cost, Reverse(self.populations[place]), place);
                best = Some(best.map_or(found, |best| best.min(found)));
            }
            best.map_or(limit, |(cost, ..)| cost)
        });
        best.map(|(.., place)| place)
    }

    /// Addresses of the few places called most like `key`, anywhere.
    fn closest(&self, key: &str) -> Vec<String> {
        // A wide search looks at most of the table; mostly a narrow one is enough.
        fuzzy::suggestion_limits(key.chars().count())
            .map(|limit| self.closest_within(key, limit))
            .find(|found| !found.is_empty())
            .unwrap_or_default()
            .into_iter()
            .map(|place| self.address(place))
            .collect()
    }

    /// The places called most like `key` at a cost of at most `limit`, best first.
    fn closest_within(&self, key: &str, limit: Cost) -> Vec<Place> {
        let mut found: Vec<(Cost, Reverse<u64>, Place)> = Vec::new();
        self.scan(key, limit, |cost, place| {
            found.push((cost, Reverse(self.populations[place]), place));
            found.sort_unstable();
            // A place with several near names is one suggestion.
            let mut seen = Vec::with_capacity(N_SUGGESTIONS + 1);
            found.retain(|(.., place)| {
                let new = !seen.contains(place);
                seen.push(*place);
                new
            });
            found.truncate(N_SUGGESTIONS);
            match found.get(N_SUGGESTIONS - 1) {
                Some(&(worst, ..)) => worst,
                None => limit,
            }
        });
        found.into_iter().map(|(.., place)| place).collect()
    }

    /// Calls `see` with every name that is at most `limit` from `key`, its exact
    /// matches included; `see` returns the limit from there on.
    fn scan(&self, key: &str, mut limit: Cost, mut see: impl FnMut(Cost, Place) -> Cost) {
        let n_chars = key.chars().count();
        let signature = fuzzy::signature(key);
        if n_chars > self.longest() + fuzzy::n_edits(limit) as usize {
            return;
        }
        // The nearest lengths first, so that the limit falls early.
        for apart in 0..=fuzzy::n_edits(limit) as usize {
            let shorter = (apart > 0).then(|| n_chars.checked_sub(apart)).flatten();
            for length in shorter.into_iter().chain([n_chars + apart]) {
                for at in self.keys_of_length(length) {
                    let n_edits = fuzzy::n_edits(limit);
                    if apart <= n_edits as usize
                        && fuzzy::may_be_near(signature, self.signatures[at], n_edits)
                    {
                        let cost = fuzzy::cost(key, self.key(at));
                        if cost <= limit {
                            limit = see(cost, self.owners[at] as usize);
                        }
                    }
                }
            }
        }
    }

    fn most_populous(&self, places: impl Iterator<Item = Place>) -> Option<Place> {
        // The earlier row wins a tie, so that the answer does not depend on sorting.
        places.max_by_key(|&place| (self.populations[place], Reverse(place)))
    }

    fn lies_within(&self, place: Place, areas: &[Vec<Area>]) -> bool {
        let (_, country, admin1) = self.label(place);
        areas
            .iter()
            .all(|meanings| meanings.iter().any(|area| area.holds(country, admin1)))
    }

    /// "City, Country", and the state where the post would want one.
    fn address(&self, place: Place) -> String {
        let (name, code, admin1) = self.label(place);
        let country = countries::name_of(code).unwrap_or(code);
        match (code, country) {
            ("US", _) if !admin1.is_empty() => format!("{name}, {admin1}, {country}"),
            _ if country == name || country.is_empty() => name.to_owned(),
            _ => format!("{name}, {country}"),
        }
    }

    fn label(&self, place: Place) -> (&str, &str, &str) {
        let label = text(&self.labels, &self.label_ends, place);
        let mut columns = label.splitn(3, '\t');
        let mut next = || columns.next().unwrap_or_default();
        (next(), next(), next())
    }

    fn key(&self, at: usize) -> &str {
        text(&self.keys, &self.key_ends, at)
    }

    fn key_bytes(&self, at: usize) -> &[u8] {
        &self.keys[range(&self.key_ends, at)]
    }

    fn keys_of_length(&self, n_chars: usize) -> Range<usize> {
        match self.length_starts.get(n_chars..n_chars.saturating_add(2)) {
            Some(&[start, end]) => start as usize..end as usize,
            _ => 0..0,
        }
    }

    /// The length of the longest key, in characters.
    fn longest(&self) -> usize {
        self.length_starts.len().saturating_sub(2)
    }
}

impl Geocoder for Gazetteer {
    fn geocode(&self, query: &str) -> Result<Geocoded, GeocodeError> {
        let place = self.find(query)?;
        let [latitude, longitude] = self.positions[place];
        Ok(Geocoded {
            address: self.address(place),
            latitude,
            longitude,
        })
    }
}

/// "City, Region, Country" as the city and the meanings of each further part.
fn split(query: &str) -> Result<(&str, Vec<Vec<Area>>), GeocodeError> {
    let mut parts = query
        .split([',', '，'])
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let name = parts.next().unwrap_or_default();
    let areas = parts
        .map(|part| match areas::named(part) {
            areas if areas.is_empty() => Err(GeocodeError::NoSuchCountry {
                name: part.to_owned(),
            }),
            areas => Ok(areas),
        })
        .collect::<Result<_, _>>()?;
    Ok((name, areas))
}

/// The first index in `range` for which `before` no longer holds.
fn partition(range: Range<usize>, before: impl Fn(usize) -> bool) -> usize {
    let Range { mut start, mut end } = range;
    while start < end {
        let middle = start + (end - start) / 2;
        if before(middle) {
            start = middle + 1;
        } else {
            end = middle;
        }
    }
    start
}

fn range(ends: &[u32], at: usize) -> Range<usize> {
    let start = if at == 0 { 0 } else { ends[at - 1] as usize };
    start..ends[at] as usize
}

/// The text number `at`; the builder wrote nothing but UTF-8.
fn text<'a>(texts: &'a [u8], ends: &[u32], at: usize) -> &'a str {
    std::str::from_utf8(&texts[range(ends, at)]).unwrap_or_default()
}

/// Collects places and makes a [`Gazetteer`] of them.
#[derive(Default)]
pub(crate) struct Builder {
    labels: Vec<u8>,
    label_ends: Vec<u32>,
    positions: Vec<[f64; 2]>,
    populations: Vec<u64>,
    keys: String,
    names: Vec<Name>,
}

/// One key while the table is being built.
struct Name {
    /// Where in `Builder::keys` it lies, in bytes.
    start: u32,
    len_bytes: u16,
    n_chars: u16,
    owner: u32,
}

/// The table has outgrown its 32-bit offsets.
#[derive(Debug, thiserror::Error)]
#[error("the table is too large: its names take more than 4 GiB")]
pub(crate) struct TooLarge;

/// One place as the builder takes it.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) country: &'a str,
    pub(crate) admin1: &'a str,
    pub(crate) position: [f64; 2],
    pub(crate) population: u64,
}

impl Builder {
    /// Names longer than this many characters are not worth an index entry.
    const LONGEST_KEY: usize = 200;

    /// Adds a place with all its names.
    pub(crate) fn push<'a>(
        &mut self,
        entry: &Entry<'_>,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<(), TooLarge> {
        let owner = u32::try_from(self.label_ends.len()).map_err(|_| TooLarge)?;
        for column in [entry.name, "\t", entry.country, "\t", entry.admin1] {
            self.labels.extend_from_slice(column.as_bytes());
        }
        self.label_ends
            .push(u32::try_from(self.labels.len()).map_err(|_| TooLarge)?);
        self.positions.push(entry.position);
        self.populations.push(entry.population);
        for name in names {
            let start = self.keys.len();
            let n_chars = fold::fold_into(name, &mut self.keys);
            let len_bytes = self.keys.len() - start;
            if n_chars == 0 || n_chars > Self::LONGEST_KEY {
                self.keys.truncate(start);
                continue;
            }
            self.names.push(Name {
                start: u32::try_from(start).map_err(|_| TooLarge)?,
                // At most 200 characters of 4 bytes.
                len_bytes: len_bytes as u16,
                n_chars: n_chars as u16,
                owner,
            });
        }
        Ok(())
    }

    /// Sorts the names and lays everything out for searching.
    pub(crate) fn finish(self) -> Gazetteer {
        let Builder {
            labels,
            label_ends,
            positions,
            populations,
            keys,
            mut names,
        } = self;
        let key = |name: &Name| {
            let start = name.start as usize;
            &keys[start..start + usize::from(name.len_bytes)]
        };
        names.sort_unstable_by(|a, b| {
            (a.n_chars, key(a), a.owner).cmp(&(b.n_chars, key(b), b.owner))
        });
        // `name`, `asciiname` and the alternates of a place often fold to one key.
        names.dedup_by(|a, b| a.owner == b.owner && key(a) == key(b));

        let mut sorted = Vec::with_capacity(names.iter().map(|name| key(name).len()).sum());
        let mut key_ends = Vec::with_capacity(names.len());
        let mut signatures = Vec::with_capacity(names.len());
        let mut length_starts = Vec::new();
        for (at, name) in names.iter().enumerate() {
            while length_starts.len() <= usize::from(name.n_chars) {
                length_starts.push(at as u32);
            }
            sorted.extend_from_slice(key(name).as_bytes());
            // Both fit: there are no more keys, nor bytes, than `push` has let in.
            key_ends.push(sorted.len() as u32);
            signatures.push(fuzzy::signature(key(name)));
        }
        length_starts.push(names.len() as u32);

        Gazetteer {
            labels: Buffer::from(labels),
            label_ends: Buffer::from(label_ends),
            positions: Buffer::from(positions),
            populations: Buffer::from(populations),
            keys: Buffer::from(sorted),
            key_ends: Buffer::from(key_ends),
            owners: Buffer::from(names.iter().map(|name| name.owner).collect::<Vec<u32>>()),
            signatures: Buffer::from(signatures),
            length_starts,
        }
    }
}
