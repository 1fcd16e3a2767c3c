//! The parts of countries that people name in an address ("Portland, OR"):
//! GeoNames' first-level code, the name, and the postal code where it differs.

/// Country code, GeoNames `admin1` code, spellings.
type Region = (&'static str, &'static str, &'static [&'static str]);

/// Every region with its country, its `admin1` code and every way to write it.
pub(crate) fn spellings() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    REGIONS.iter().flat_map(|&(country, admin1, names)| {
        names
            .iter()
            .map(move |&spelling| (country, admin1, spelling))
    })
}

#[rustfmt::skip]
const REGIONS: &[Region] = &[
    ("AU", "01", &["Australian Capital Territory", "ACT"]),
    ("AU", "02", &["New South Wales", "NSW"]),
    ("AU", "03", &["Northern Territory", "NT"]),
    ("AU", "04", &["Queensland", "QLD"]),
    ("AU", "05", &["South Australia", "SA"]),
    ("AU", "06", &["Tasmania", "TAS"]),
    ("AU", "07", &["Victoria", "VIC"]),
    ("AU", "08", &["Western Australia", "WA"]),
    ("CA", "01", &["Alberta", "AB"]),
    ("CA", "02", &["British Columbia", "BC"]),
    ("CA", "03", &["Manitoba", "MB"]),
    ("CA", "04", &["New Brunswick", "NB"]),
    ("CA", "05", &["Newfoundland and Labrador", "Newfoundland", "NL"]),
    ("CA", "07", &["Nova Scotia", "NS"]),
    ("CA", "08", &["Ontario", "ON"]),
    ("CA", "09", &["Prince Edward Island", "PE"]),
    ("CA", "10", &["Quebec", "QC"]),
    ("CA", "11", &["Saskatchewan", "SK"]),
    ("CA", "12", &["Yukon", "YT"]),
    ("CA", "13", &["Northwest Territories", "NT"]),
    ("CA", "14", &["Nunavut", "NU"]),
    ("GB", "ENG", &["England"]),
    ("GB", "NIR", &["Northern Ireland"]),
    ("GB", "SCT", &["Scotland"]),
    ("GB", "WLS", &["Wales", "Cymru"]),
    ("US", "AK", &["Alaska", "AK"]),
    ("US", "AL", &["Alabama", "AL"]),
    ("US", "AR", &["Arkansas", "AR"]),
    ("US", "AZ", &["Arizona", "AZ"]),
    ("US", "CA", &["California", "CA"]),
    ("US", "CO", &["Colorado", "CO"]),
    ("US", "CT", &["Connecticut", "CT"]),
    ("US", "DC", &["District of Columbia", "DC"]),
    ("US", "DE", &["Delaware", "DE"]),
    ("US", "FL", &["Florida", "FL"]),
    ("US", "GA", &["Georgia", "GA"]),
    ("US", "HI", &["Hawaii", "HI"]),
    ("US", "IA", &["Iowa", "IA"]),
    ("US", "ID", &["Idaho", "ID"]),
    ("US", "IL", &["Illinois", "IL"]),
    ("US", "IN", &["Indiana", "IN"]),
    ("US", "KS", &["Kansas", "KS"]),
    ("US", "KY", &["Kentucky", "KY"]),
    ("US", "LA", &["Louisiana", "LA"]),
    ("US", "MA", &["Massachusetts", "MA"]),
    ("US", "MD", &["Maryland", "MD"]),
    ("US", "ME", &["Maine", "ME"]),
    ("US", "MI", &["Michigan", "MI"]),
    ("US", "MN", &["Minnesota", "MN"]),
    ("US", "MO", &["Missouri", "MO"]),
    ("US", "MS", &["Mississippi", "MS"]),
    ("US", "MT", &["Montana", "MT"]),
    ("US", "NC", &["North Carolina", "NC"]),
    ("US", "ND", &["North Dakota", "ND"]),
    ("US", "NE", &["Nebraska", "NE"]),
    ("US", "NH", &["New Hampshire", "NH"]),
    ("US", "NJ", &["New Jersey", "NJ"]),
    ("US", "NM", &["New Mexico", "NM"]),
    ("US", "NV", &["Nevada", "NV"]),
    ("US", "NY", &["New York", "NY"]),
    ("US", "OH", &["Ohio", "OH"]),
    ("US", "OK", &["Oklahoma", "OK"]),
    ("US", "OR", &["Oregon", "OR"]),
    ("US", "PA", &["Pennsylvania", "PA"]),
    ("US", "RI", &["Rhode Island", "RI"]),
    ("US", "SC", &["South Carolina", "SC"]),
    ("US", "SD", &["South Dakota", "SD"]),
    ("US", "TN", &["Tennessee", "TN"]),
    ("US", "TX", &["Texas", "TX"]),
    ("US", "UT", &["Utah", "UT"]),
    ("US", "VA", &["Virginia", "VA"]),
    ("US", "VT", &["Vermont", "VT"]),
    ("US", "WA", &["Washington", "WA"]),
    ("US", "WI", &["Wisconsin", "WI"]),
    ("US", "WV", &["West Virginia", "WV"]),
    ("US", "WY", &["Wyoming", "WY"]),
];
