//! A long list of queries, with the lines that are right for them.

use crate::{countries, fold};

/// A place to ask for, and the line that is right for it.
pub(crate) struct Query {
    pub(crate) place: String,
    pub(crate) line: String,
}

/// 10,000 queries from the embedded table, every fifth misspelt. What a misspelling
/// means is decided here by looking at every name, without any of the tool's index.
pub(crate) fn ten_thousand_queries() -> Vec<Query> {
    let table = include_str!("../../examples/geocoding/cities.tsv");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').collect())
        .collect();
    assert!(rows.len() >= 250, "the table is short: {}", rows.len());
    let names: Vec<(usize, String)> = rows
        .iter()
        .enumerate()
        .flat_map(|(at, row)| {
            let names = [row[1], row[2]].into_iter().chain(row[3].split(','));
            names.map(move |name| (at, fold::fold(name)))
        })
        .collect();
    let line = |row: &[&str]| {
        let country = countries::name_of(row[8]).expect("every country has a name");
        let address = match row[8] {
            "US" => format!("{}, {}, USA", row[1], row[10]),
            _ if country == row[1] => country.to_owned(),
            _ => format!("{}, {country}", row[1]),
        };
        let degrees = |column: usize| row[column].parse::<f64>().expect("degrees are numbers");
        format!("{address}, {:6.2}, {:6.2}", degrees(4), degrees(5))
    };
    let (mut right, mut misspelt) = (Vec::new(), Vec::new());
    for (at, row) in rows.iter().enumerate() {
        let others = || {
            names
                .iter()
                .filter(|(owner, _)| *owner != at)
                .map(|(_, name)| name)
        };
        let query = |place: String| Query {
            place,
            line: line(row),
        };
        if others().all(|name| *name != fold::fold(row[1])) {
            right.push(query(row[1].to_owned()));
        }
        let ascii = row[2].as_bytes();
        if ascii.len() < 6 || !ascii.iter().all(u8::is_ascii_alphabetic) {
            continue;
        }
        let middle = 2 + at % (ascii.len() - 4);
        let mut wrong = ascii.to_vec();
        match at % 3 {
            0 => wrong.swap(middle, middle + 1),
            1 => drop(wrong.remove(middle)),
            _ => wrong.insert(middle, b'q'),
        }
        let wrong = String::from_utf8(wrong).expect("it is ASCII");
        let key = fold::fold(&wrong);
        // One edit away from this place, and from no other.
        let near = |name: &String| {
            name.chars().count().abs_diff(key.chars().count()) <= 1
                && strsim::osa_distance(name, &key) <= 1
        };
        if !names.iter().any(|(_, name)| *name == key) && !others().any(near) {
            misspelt.push(query(wrong));
        }
    }
    assert!(
        right.len() > 500 && misspelt.len() > 200,
        "{} {}",
        right.len(),
        misspelt.len()
    );
    let pick = |from: &[Query], number: usize| {
        let Query { place, line } = &from[number % from.len()];
        Query {
            place: place.clone(),
            line: line.clone(),
        }
    };
    (0..10_000)
        .map(|number| match number % 5 {
            2 => pick(&misspelt, number / 5),
            _ => pick(&right, number),
        })
        .collect()
}
