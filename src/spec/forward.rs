//! `--forward key=value,…`: the list form of a name, as an argument.
//!
//! The shell has split words and taken quotes off already, so blanks are data here. The rest is as in a name, and `:`
//! before a port needs no escape.

use super::{
    error::{Fault, Faults, Origin, Place, Source},
    keys::{Keys, read_list},
    text::{Blanks, words},
};

/// Reads one `--forward` argument.
///
/// # Errors
/// Everything that is wrong with it.
pub fn forward(text: &str) -> Result<Keys, Faults> {
    read(None, text)
}

/// Reads all `--forward` arguments in their order; faults cite them by number.
///
/// # Errors
/// Everything that is wrong with any of them.
pub fn forwards<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Vec<Keys>, Faults> {
    let mut faults = Faults::default();
    let mut all = Vec::new();
    for (index, text) in texts.into_iter().enumerate() {
        match read(Some(index + 1), text.as_ref()) {
            Ok(keys) => all.push(keys),
            Err(more) => faults.extend(more),
        }
    }
    faults.none_or(all)
}

fn read(number: Option<usize>, text: &str) -> Result<Keys, Faults> {
    let source = Source::new(Origin::Forward(number), text);
    let whole = Place::new(&source, 0..text.len());
    let mut keys = Keys::none(whole.clone());
    let mut faults = Faults::default();
    match words(&source, Blanks::Keep).map_err(Faults)?.as_slice() {
        [list] if !text.trim().is_empty() => read_list(&source, list, &mut keys, &mut faults.0),
        _ => {
            let fault = Fault::at(&whole, "the argument is empty");
            return Err(fault.hint("such as listen=0.0.0.0:2222,uds=/run/pfwd/ssh.sock").into());
        }
    }
    faults.none_or(keys)
}
