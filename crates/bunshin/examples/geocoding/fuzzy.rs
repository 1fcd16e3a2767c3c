//! How far a misspelt name is from a known one, and how far is too far.
//!
//! The distance is the optimal string alignment distance of folded names:
//! inserting, removing or replacing a character, or swapping two neighbours,
//! counts as one edit. A cost counts two for each edit and one more if the first
//! letters differ, since people seldom get the first letter wrong: `Wrocow` is as
//! many edits from `Wrocław` as from `Cracow`, yet means the former.

/// Two for each edit, and one more if the first letters differ.
pub(crate) type Cost = u32;

/// What it costs to turn `query` into `key`; both folded.
pub(crate) fn cost(query: &str, key: &str) -> Cost {
    let first_differs = query.chars().next() != key.chars().next();
    let n_edits = strsim::osa_distance(query, key);
    2 * u32::try_from(n_edits).unwrap_or(u32::MAX / 4) + Cost::from(first_differs)
}

/// The highest cost at which a name of `n_chars` characters still counts as a
/// misspelling; zero where only an exact match does.
pub(crate) fn misspelling_limit(n_chars: usize) -> Cost {
    match n_chars {
        0..=3 => 0,
        4 => 3,
        5..=7 => 4,
        8..=11 => 5,
        _ => 7,
    }
}

/// The costs up to which to look, one after the other, for names worth showing
/// beside "no such place": the very name (of a place in another country), then what
/// is a misspelling, then up to two edits more, as long as half the letters are right.
pub(crate) fn suggestion_limits(n_chars: usize) -> impl Iterator<Item = Cost> {
    let most = u32::try_from(n_chars).unwrap_or(u32::MAX - 1) + 1;
    let near = misspelling_limit(n_chars);
    [0, near, near + 2, near + 4]
        .into_iter()
        .filter(move |&limit| limit <= most)
}

/// The edits that fit in a cost.
pub(crate) fn n_edits(limit: Cost) -> u32 {
    limit / 2
}

/// Which letters a key holds, as a set of bits: two for each of a to z (it occurs;
/// it occurs twice) and one of twelve for any other character.
///
/// One edit removes at most one character and adds at most one, so it clears at
/// most one bit and sets at most one. Keys whose signatures differ by more than
/// the edits allowed need not be compared at all.
pub(crate) fn signature(key: &str) -> u64 {
    let mut bits = 0_u64;
    for character in key.chars() {
        match character {
            'a'..='z' => {
                let shift = (u32::from(character) - u32::from('a')) * 2;
                let once = 1_u64 << shift;
                bits |= if bits & once == 0 { once } else { once << 1 };
            }
            _ => bits |= 1_u64 << (52 + u32::from(character) % 12),
        }
    }
    bits
}

/// Whether keys with these signatures may be at most `n_edits` apart.
pub(crate) fn may_be_near(a: u64, b: u64, n_edits: u32) -> bool {
    (a & !b).count_ones() <= n_edits && (b & !a).count_ones() <= n_edits
}

#[cfg(test)]
mod tests {
    use super::{cost, may_be_near, misspelling_limit, n_edits, signature};

    #[test]
    fn a_kept_first_letter_wins_at_the_same_distance() {
        assert_eq!(cost("wrocow", "wroclaw"), 4);
        assert_eq!(cost("wrocow", "cracow"), 5);
        assert_eq!(cost("vien", "wien"), 3);
        assert_eq!(cost("dehil", "delhi"), 4);
        assert_eq!(cost("osaka", "osaka"), 0);
    }

    #[test]
    fn words_that_only_look_alike_are_too_far() {
        for (word, place) in [("banana", "manama"), ("rom", "rome"), ("foobar", "dover")] {
            assert!(
                cost(word, place) > misspelling_limit(word.chars().count()),
                "{word}"
            );
        }
    }

    #[test]
    fn the_signature_never_rejects_a_near_key() {
        let keys = [
            "wroclaw",
            "cracow",
            "aaaa",
            "aabb",
            "saint johns",
            "αθηνα",
            "москва",
            "東京",
            "oslo",
            "bologna",
            "bolognia",
            "delhi",
            "dehil",
            "new york",
            "a",
            "",
            "mississippi",
        ];
        for a in keys {
            for b in keys {
                let apart = n_edits(cost(a, b));
                assert!(may_be_near(signature(a), signature(b), apart), "{a} {b}");
            }
        }
        assert!(!may_be_near(signature("berlin"), signature("osaka"), 2));
    }
}
