//! Reads places from a GeoNames dump: 19 tab-separated columns, no header, UTF-8.
//! The embedded table goes through the same reader as a file of many gigabytes,
//! which is read line by line and never held as a whole.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::gazetteer::{Builder, Entry, Gazetteer};

/// The table that is always there.
const EMBEDDED: &[u8] = include_bytes!("cities.tsv");

const N_COLUMNS: usize = 19;

/// No row is longer: the alternate names take at most 10,000 characters.
const LONGEST_LINE: u64 = 1 << 20;

/// Reads the embedded table.
pub(crate) fn embedded() -> Result<Gazetteer, ReadError> {
    read(EMBEDDED, "the embedded table")
}

/// Reads a dump, such as `cities500.txt` or `allCountries.txt`.
pub(crate) fn open(path: &Path) -> Result<Gazetteer, ReadError> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => read(BufReader::with_capacity(1 << 20, file), &name),
        Err(error) => Err(ReadError {
            file: name,
            line: None,
            problem: error.into(),
        }),
    }
}

/// Reads rows from `input`, which errors call `file`.
///
/// Takes populated places (feature class `P`) and skips everything else, blank
/// lines, and comments, as GeoNames has them in its other tables.
pub(crate) fn read(mut input: impl BufRead, file: &str) -> Result<Gazetteer, ReadError> {
    let mut builder = Builder::default();
    let mut n_places = 0_u64;
    let mut bytes = Vec::new();
    for line in 1_u64.. {
        let failed = |problem| ReadError {
            file: file.to_owned(),
            line: Some(line),
            problem,
        };
        bytes.clear();
        let n_read = input
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut bytes)
            .map_err(|error| failed(error.into()))?;
        if n_read == 0 {
            break;
        }
        if line == 1 && bytes.starts_with(b"PK\x03\x04") {
            return Err(failed(Problem::Zipped));
        }
        if n_read as u64 == LONGEST_LINE && !bytes.ends_with(b"\n") {
            return Err(failed(Problem::TooLong));
        }
        let row = std::str::from_utf8(&bytes).map_err(|error| {
            failed(Problem::NotUtf8 {
                column_byte: error.valid_up_to() + 1,
            })
        })?;
        let row = row.trim_end_matches(['\n', '\r']);
        let row = if line == 1 {
            row.trim_start_matches('\u{feff}')
        } else {
            row
        };
        if row.trim().is_empty() || row.starts_with('#') {
            continue;
        }
        n_places += u64::from(push_row(&mut builder, row).map_err(failed)?);
    }
    if n_places == 0 {
        return Err(ReadError {
            file: file.to_owned(),
            line: None,
            problem: Problem::Empty,
        });
    }
    Ok(builder.finish())
}

/// Adds one row; false if it is of no populated place.
fn push_row(builder: &mut Builder, row: &str) -> Result<bool, Problem> {
    let mut columns = [""; N_COLUMNS];
    let mut n_columns = 0;
    for (column, text) in columns.iter_mut().zip(row.split('\t')) {
        *column = text;
        n_columns += 1;
    }
    if n_columns < N_COLUMNS {
        return Err(Problem::Columns { n_columns });
    }
    let [
        _,
        name,
        ascii,
        alternates,
        latitude,
        longitude,
        class,
        _,
        country,
        _,
        admin1,
        ..,
    ] = columns;
    let population = columns[14];
    let position = [
        degrees("latitude", latitude, 90.0)?,
        degrees("longitude", longitude, 180.0)?,
    ];
    if class != "P" {
        return Ok(false);
    }
    if name.is_empty() {
        return Err(Problem::Value {
            column: "name",
            text: String::new(),
        });
    }
    let well_formed = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_uppercase());
    if !well_formed && !country.is_empty() {
        return Err(Problem::Value {
            column: "country code",
            text: shortened(country),
        });
    }
    let population = match population {
        "" => 0,
        text => text.parse().map_err(|_| Problem::Value {
            column: "population",
            text: shortened(text),
        })?,
    };
    let entry = Entry {
        name,
        country,
        admin1,
        position,
        population,
    };
    builder
        .push(
            &entry,
            [name, ascii].into_iter().chain(alternates.split(',')),
        )
        .map_err(|_| Problem::TooLarge)?;
    Ok(true)
}

fn degrees(column: &'static str, text: &str, most: f64) -> Result<f64, Problem> {
    match text.parse::<f64>() {
        Ok(degrees) if (-most..=most).contains(&degrees) => Ok(degrees),
        Ok(degrees) if degrees.is_finite() => Err(Problem::OffGlobe { column, degrees }),
        _ => Err(Problem::Value {
            column,
            text: shortened(text),
        }),
    }
}

/// At most the first 40 characters, for a message.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// What is wrong with a dump, and where.
#[derive(Debug)]
pub(crate) struct ReadError {
    file: String,
    line: Option<u64>,
    problem: Problem,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.problem),
            None => write!(f, "{}: {}", self.file, self.problem),
        }
    }
}

impl std::error::Error for ReadError {}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not UTF-8 at byte {column_byte} of the line")]
    NotUtf8 { column_byte: usize },
    #[error("{n_columns} columns, where a GeoNames row has {N_COLUMNS} with tabs between them")]
    Columns { n_columns: usize },
    #[error("{column} `{text}` is not valid")]
    Value { column: &'static str, text: String },
    #[error("{column} {degrees} is off the globe")]
    OffGlobe { column: &'static str, degrees: f64 },
    #[error("the line is longer than {LONGEST_LINE} bytes; this is not a GeoNames dump")]
    TooLong,
    #[error("this is a zip archive; unpack it first")]
    Zipped,
    #[error("no populated places in it")]
    Empty,
    #[error("the table is too large: its names take more than 4 GiB")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::read;
    use crate::place::{GeocodeError, Geocoder};

    const ROW: &str = "1\tŁódź\tLodz\tLodsch,ウッチ\t51.7592\t19.4560\tP\tPPLA\tPL\t\t74\t\t\t\t658444\t\t\t\t2026-01-01";

    fn message(dump: &[u8]) -> String {
        match read(dump, "dump.txt") {
            Ok(_) => panic!("the dump was accepted"),
            Err(error) => error.to_string(),
        }
    }

    fn with_column(at: usize, text: &str) -> String {
        let mut columns: Vec<&str> = ROW.split('\t').collect();
        columns[at] = text;
        columns.join("\t")
    }

    #[test]
    fn a_row_is_found_by_each_of_its_names() {
        let dump = format!("\u{feff}{ROW}\r\n\n# comment\n");
        let gazetteer = read(dump.as_bytes(), "dump.txt").unwrap();
        assert_eq!(gazetteer.n_places(), 1);
        for query in [
            "Łódź",
            "lodz",
            "LODSCH",
            "ウッチ",
            "Lodsh",
            "Lodz, Poland",
            "Lodz, PL",
        ] {
            let found = gazetteer.geocode(query).unwrap();
            assert_eq!(found.address, "Łódź, Poland", "{query}");
            assert_eq!((found.latitude, found.longitude), (51.7592, 19.456));
        }
        assert!(matches!(
            gazetteer.geocode("Lodz, Germany"),
            Err(GeocodeError::NoSuchPlace { closest }) if closest == ["Łódź, Poland"]
        ));
    }

    #[test]
    fn what_is_not_a_populated_place_is_skipped() {
        let lake = with_column(6, "H");
        let gazetteer = read(format!("{lake}\n{ROW}").as_bytes(), "dump.txt").unwrap();
        assert_eq!(gazetteer.n_places(), 1);
        assert_eq!(
            message(lake.as_bytes()),
            "dump.txt: no populated places in it"
        );
    }

    #[test]
    fn the_message_names_file_line_and_column() {
        for (dump, expected) in [
            (
                format!("{ROW}\nLodz\t51.7\n"),
                "dump.txt:2: 2 columns, where a GeoNames row has 19 with tabs between them",
            ),
            (
                with_column(4, "north"),
                "dump.txt:1: latitude `north` is not valid",
            ),
            (
                with_column(4, "NaN"),
                "dump.txt:1: latitude `NaN` is not valid",
            ),
            (
                with_column(4, "90.5"),
                "dump.txt:1: latitude 90.5 is off the globe",
            ),
            (
                with_column(5, "-181"),
                "dump.txt:1: longitude -181 is off the globe",
            ),
            (with_column(5, ""), "dump.txt:1: longitude `` is not valid"),
            (
                with_column(8, "Poland"),
                "dump.txt:1: country code `Poland` is not valid",
            ),
            (
                with_column(14, "many"),
                "dump.txt:1: population `many` is not valid",
            ),
            (with_column(1, ""), "dump.txt:1: name `` is not valid"),
            (String::new(), "dump.txt: no populated places in it"),
            (
                "PK\u{3}\u{4}rest".into(),
                "dump.txt:1: this is a zip archive; unpack it first",
            ),
        ] {
            assert_eq!(message(dump.as_bytes()), expected);
        }
        assert_eq!(
            message(&[ROW.as_bytes(), b"\n1\tL\xf3d\xbc\t"].concat()),
            "dump.txt:2: not UTF-8 at byte 4 of the line"
        );
    }

    #[test]
    fn an_endless_line_is_refused() {
        let endless = vec![b'x'; 3 << 20];
        assert!(message(&endless).contains("longer than 1048576 bytes"));
    }
}
