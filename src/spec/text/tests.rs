use super::*;
use crate::spec::error::Origin;

fn read(text: &str, blanks: Blanks) -> Result<Vec<String>, String> {
    let source = Source::new(Origin::Name(None), text);
    words(&source, blanks)
        .map(|words| words.iter().map(Word::lossy).collect())
        .map_err(|faults| faults.iter().map(|fault| fault.what().to_owned()).collect::<Vec<_>>().join("; "))
}

#[test]
fn quotes_hold_blanks_and_a_backslash_holds_nothing() {
    for (text, expected) in [
        ("", vec![]),
        ("  \t ", vec![]),
        ("a b\t c", vec!["a", "b", "c"]),
        ("'a b' c", vec!["a b", "c"]),
        ("a\"b c\"d", vec!["ab cd"]),
        ("\"it's\"", vec!["it's"]),
        ("''", vec![""]),
        ("a\\ b", vec!["a\\", "b"]),
        ("a\\n", vec!["a\\n"]),
        ("'a\\' b", vec!["a\\", "b"]),
    ] {
        assert_eq!(read(text, Blanks::Split), Ok(expected.into_iter().map(str::to_owned).collect()), "{text}");
    }
    assert_eq!(read("a 'b c' d", Blanks::Keep), Ok(vec!["a b c d".to_owned()]));
}

#[test]
fn escapes_are_decoded_after_splitting_and_split_and_quote_nothing() {
    for (text, expected) in [
        ("a\\x20b", vec!["a b"]),
        ("\\x22a b\\x22", vec!["\"a", "b\""]),
        ("@dispvm\\x3aNAME svc", vec!["@dispvm:NAME", "svc"]),
        ("'\\x41 '", vec!["A "]),
        ("\\x5cx41", vec!["\\x41"]),
        ("\\xC3\\xA9", vec!["é"]),
    ] {
        assert_eq!(read(text, Blanks::Split), Ok(expected.into_iter().map(str::to_owned).collect()), "{text}");
    }
}

#[test]
fn what_cannot_be_decoded_is_told_all_at_once() {
    assert!(read("a 'b", Blanks::Split).unwrap_err().contains("the quote ' is never closed"));
    let both = read("\\xZZ \\x00 \\x4", Blanks::Split).unwrap_err();
    assert_eq!(both.matches("two hexadecimal digits").count(), 2, "{both}");
    assert!(both.contains("NUL"), "{both}");
}

#[test]
fn a_byte_keeps_its_place_through_quotes_and_escapes() {
    let source = Source::new(Origin::Name(None), "x \"a\\x20b\"c");
    let words = words(&source, Blanks::Split).unwrap();
    assert_eq!(words[1].span, 2..11);
    assert_eq!(words[1].place(&(1..2)), 4..8);
    assert_eq!(words[1].place(&(2..4)), 8..11);
    assert_eq!(words[1].place(&(4..4)), 11..11);
}

#[test]
fn a_comma_that_was_escaped_separates_nothing() {
    let source = Source::new(Origin::Name(None), "a\\x2cb,'c,d', e ,");
    let words = words(&source, Blanks::Keep).unwrap();
    let parts: Vec<String> = words[0].split(b',').into_iter().map(|part| part.trimmed().lossy()).collect();
    assert_eq!(parts, ["a,b", "c", "d", "e", ""]);
}
