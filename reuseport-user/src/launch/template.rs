//! `%i`, `%c` and `%%` in a command line. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::placement::Seat;

/// A command line with places to be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<OsString>);

/// A percent sign that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` has a `%` that means nothing here: %i is the worker's number, %c its CPU, %% a percent sign",
    argument.display()
)]
pub struct TemplateError {
    /// The argument it is in.
    pub argument: OsString,
}

impl Template {
    /// Reads a program and its arguments.
    pub fn new(words: Vec<OsString>) -> Result<Self, TemplateError> {
        for word in &words {
            if fill(word, "", "").is_none() {
                return Err(TemplateError { argument: word.clone() });
            }
        }
        Ok(Self(words))
    }

    /// The program, as it was given.
    pub fn program(&self) -> &OsStr {
        self.0.first().map_or(OsStr::new(""), OsString::as_os_str)
    }

    /// Program and arguments of one copy.
    pub fn fill(&self, seat: &Seat) -> Vec<OsString> {
        let (index, cpu) = (seat.worker.to_string(), seat.cpu.to_string());
        self.0.iter().filter_map(|word| fill(word, &index, &cpu)).collect()
    }
}

/// One word filled in; `None` where a percent sign means nothing.
fn fill(word: &OsStr, index: &str, cpu: &str) -> Option<OsString> {
    let mut filled = Vec::new();
    let mut bytes = word.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'%' => match bytes.next()? {
                b'i' => filled.extend(index.as_bytes()),
                b'c' => filled.extend(cpu.as_bytes()),
                b'%' => filled.push(b'%'),
                _ => return None,
            },
            byte => filled.push(byte),
        }
    }
    Some(OsString::from_vec(filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn numbers_are_filled_in() {
        let seat = Seat { worker: 3, cpu: 12, core: 4, llc: 0, node: 0, core_shared_with: vec![] };
        let template =
            Template::new(words(&["s%i", "/etc/%i.ini", "%c:%i%%", "%%i", "é"])).unwrap();
        assert_eq!(template.fill(&seat), words(&["s3", "/etc/3.ini", "12:3%", "%i", "é"]));
        assert_eq!(template.program(), "s%i");
        // Not text, and none of our business.
        let bytes = vec![OsString::from_vec(vec![0xff, b'%', b'i'])];
        let filled = Template::new(bytes).unwrap().fill(&seat);
        assert_eq!(filled, [OsString::from_vec(vec![0xff, b'3'])]);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for word in ["%", "100%", "%d", "%%%", "a%I"] {
            let error = Template::new(words(&["x", word])).unwrap_err();
            assert_eq!(error.argument, *word);
        }
    }
}
