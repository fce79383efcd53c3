//! `--forward key=value,…`: the list form of a name, as an argument.
//!
//! The shell has split words and taken quotes off already, so blanks are data here. The rest is as in a name, and `:`
//! before a port needs no escape.

use super::{
    error::{Faults, Origin, Place, Source, SpecFault},
    keys::{Keys, read_list},
    text::{Blanks, words},
};

/// Reads one `--forward` argument.
pub fn forward(text: &str) -> Result<Keys, Faults> {
    let (keys, faults) = read(None, text);
    faults.none_or(keys)
}

/// Reads all `--forward` arguments in their order; faults cite them by number.
pub fn forwards<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Vec<Keys>, Faults> {
    let (all, faults): (Vec<_>, Vec<_>) = read_all(texts).into_iter().unzip();
    Faults(faults.concat()).none_or(all)
}

/// What could be read of each argument, and what could not.
pub(super) fn read_all<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Vec<(Keys, Vec<SpecFault>)> {
    let read = |(index, text): (usize, T)| {
        let (keys, faults) = read(Some(index + 1), text.as_ref());
        (keys, faults.0)
    };
    texts.into_iter().enumerate().map(read).collect()
}

fn read(number: Option<usize>, text: &str) -> (Keys, Faults) {
    let source = Source::new(Origin::Forward(number), text);
    let whole = Place::new(&source, 0..text.len());
    let mut keys = Keys::none(whole.clone());
    let mut faults = Faults::default();
    match words(&source, Blanks::Keep) {
        Ok(words) if !text.trim().is_empty() => {
            words.iter().for_each(|list| read_list(&source, list, &mut keys, &mut faults.0));
        }
        Ok(_) => {
            keys.incomplete = true;
            let fault = SpecFault::at(&whole, "the argument is empty");
            faults.extend([fault.hint("such as listen=0.0.0.0:2222,uds=/run/pfwd/ssh.sock")]);
        }
        Err(more) => {
            keys.incomplete = true;
            faults.extend(more);
        }
    }
    (keys, faults)
}
