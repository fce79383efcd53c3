//! The words of a rule: quotes, and the comment behind it.

use super::fault::Complaint;

/// A word of a rule; what was quoted is taken as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RuleWord {
    pub(super) text: String,
    pub(super) quoted: bool,
}

/// A rule up to the word that begins with `#`, unless it is quoted.
pub(super) fn without_comment(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in line.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if before.is_whitespace() && c == '#' => return line[..at].trim_end(),
            None if before.is_whitespace() && (c == '\'' || c == '"') => quote = Some(c),
            None => {}
        }
        before = c;
    }
    line
}

/// Splits a rule into words.
pub(super) fn words(line: &str) -> Result<Vec<RuleWord>, Complaint> {
    let (mut words, mut chars) = (Vec::new(), line.chars().peekable());
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(&first) = chars.peek() else { return Ok(words) };
        let mut word = RuleWord { text: String::new(), quoted: first == '\'' || first == '"' };
        if word.quoted {
            chars.next();
            loop {
                match chars.next() {
                    Some(c) if c == first => break,
                    Some(c) => word.text.push(c),
                    None => {
                        return Err(Complaint::new(
                            format!("a quote {first} that does not end"),
                            format!("{first} at the end of the word"),
                        ));
                    }
                }
            }
            if chars.peek().is_some_and(|c| !c.is_whitespace()) {
                return Err(Complaint::new("text follows the closing quote of a word", "quotes around the whole word"));
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                word.text.push(c);
            }
        }
        words.push(word);
    }
}
