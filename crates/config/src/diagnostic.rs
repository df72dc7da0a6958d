//! What is wrong, where, why, and what to do about it. One diagnostic is one line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A place in a file; lines and columns from 1, columns in characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    Error,
    /// The configuration is used; something in it has no effect.
    Warning,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Diagnostic {
    /// `None`: about a file or the configuration as a whole; then `cause` says which.
    pub place: Option<Place>,
    pub severity: Severity,
    /// Section and key, for example `resource r0, net: timeout`. Empty if there is none.
    pub key: String,
    /// The offending text as written; empty if there is none or if it must not be shown.
    pub text: String,
    pub cause: String,
    /// The next step, as an instruction.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        f.write_str(&self.key)?;
        if !self.text.is_empty() {
            write!(f, " = {}", self.text)?;
        }
        if !self.key.is_empty() {
            f.write_str(" ")?;
        }
        f.write_str(&self.cause)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// Everything that keeps a configuration from being used: never empty, in the order of the files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    pub diagnostics: Vec<Diagnostic>,
}

impl ConfigError {
    pub(crate) fn whole(cause: String, help: &str) -> ConfigError {
        ConfigError {
            diagnostics: vec![Diagnostic {
                place: None,
                severity: Severity::Error,
                key: String::new(),
                text: String::new(),
                cause,
                help: Some(help.into()),
            }],
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One file of the configuration with its text.
pub(crate) struct SourceFile {
    pub path: PathBuf,
    pub text: String,
    /// Ascending, the start of the text first. Every value of a file has its place looked up: counting from the start
    /// each time would take minutes for a thousand resources.
    marks: Vec<Mark>,
}

/// Line and column of a byte of the text.
#[derive(Clone, Copy)]
struct Mark {
    offset: usize,
    line: usize,
    column: usize,
}

impl Mark {
    const START: Mark = Mark { offset: 0, line: 1, column: 1 };

    fn after(self, c: char) -> Mark {
        let offset = self.offset + c.len_utf8();
        match c {
            '\n' => Mark { offset, line: self.line + 1, column: 1 },
            _ => Mark { offset, column: self.column + 1, ..self },
        }
    }
}

/// From mark to mark. Bytes: what a look-up reads at most.
const MARK_BYTES: usize = 512;

impl SourceFile {
    pub fn new(path: &Path, text: String) -> SourceFile {
        let mut marks = vec![Mark::START];
        let mut here = Mark::START;
        for c in text.chars() {
            here = here.after(c);
            if here.offset / MARK_BYTES >= marks.len() {
                marks.push(here);
            }
        }
        SourceFile { path: path.into(), text, marks }
    }
    pub fn place(&self, offset: usize) -> Place {
        let nearest = self.marks.partition_point(|mark| mark.offset <= offset).saturating_sub(1);
        let mut here = self.marks.get(nearest).copied().unwrap_or(Mark::START);
        for c in self.text.get(here.offset..).unwrap_or("").chars() {
            // An offset inside a character means that character.
            if here.offset + c.len_utf8() > offset {
                break;
            }
            here = here.after(c);
        }
        Place { file: self.path.clone(), line: here.line, column: here.column }
    }
    /// The text as written, on one line, shortened.
    pub fn slice(&self, span: Range<usize>) -> String {
        const SHOWN_MAX: usize = 60;
        let text = self.text.get(span).unwrap_or("");
        let mut shown: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if shown.chars().count() > SHOWN_MAX {
            shown = shown.chars().take(SHOWN_MAX).collect::<String>() + "...";
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_lines_and_characters() {
        let text = "é = 1\n\nlonger = \"é\" # é\n".repeat(200);
        let file = SourceFile::new(Path::new("x"), text.clone());
        for offset in (0..text.len() + 2).filter(|offset| text.is_char_boundary(*offset) || *offset > text.len()) {
            let before = &text[..offset.min(text.len())];
            let (line, last) = (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or(""));
            let place = file.place(offset);
            assert_eq!((place.line, place.column), (line, last.chars().count() + 1), "byte {offset}");
        }
        assert_eq!(file.place(1).column, 1, "inside the first character");
    }
}
