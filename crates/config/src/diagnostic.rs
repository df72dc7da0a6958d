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
}

impl SourceFile {
    pub fn new(path: &Path, text: String) -> SourceFile {
        SourceFile { path: path.into(), text }
    }
    pub fn place(&self, offset: usize) -> Place {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        Place {
            file: self.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
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
