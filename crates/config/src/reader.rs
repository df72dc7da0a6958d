//! Walks TOML tables, collecting diagnostics instead of stopping at the first.

use crate::diagnostic::{Diagnostic, Place, Severity, SourceFile};
use crate::value::{BadValue, Kind, Layer, OptionSpec, Support, Value, did_you_mean};
use std::cell::RefCell;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) type Item<'a> = Spanned<DeValue<'a>>;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Placed<T> {
    pub value: T,
    pub place: Place,
}

/// One table of a file: reads keys, reports what is wrong with them.
#[derive(Clone)]
pub(crate) struct Section<'a> {
    pub file: &'a SourceFile,
    pub out: &'a RefCell<Vec<Diagnostic>>,
    /// For messages: `resource r0, net`.
    pub path: String,
    pub table: &'a DeTable<'a>,
    pub span: Range<usize>,
}

impl<'a> Section<'a> {
    pub fn place(&self) -> Place {
        self.file.place(self.span.start)
    }

    pub fn report(
        &self,
        severity: Severity,
        span: &Range<usize>,
        key: &str,
        text: String,
        cause: String,
        help: Option<String>,
    ) {
        let key = match (self.path.is_empty(), key.is_empty()) {
            (_, true) => self.path.clone(),
            (true, false) => key.into(),
            (false, false) => format!("{}: {key}", self.path),
        };
        let place = Some(self.file.place(span.start));
        self.out.borrow_mut().push(Diagnostic { place, severity, key, text, cause, help });
    }

    /// The value of `key` is wrong; shows it as written.
    pub fn bad(&self, key: &str, item: &Item<'_>, cause: impl Into<String>, help: impl Into<String>) {
        let text = self.file.slice(item.span());
        self.report(Severity::Error, &item.span(), key, text, cause.into(), Some(help.into()));
    }

    /// The table itself is wrong.
    pub fn wrong(&self, cause: impl Into<String>, help: impl Into<String>) {
        self.report(Severity::Error, &self.span, "", String::new(), cause.into(), Some(help.into()));
    }

    pub fn get(&self, key: &str) -> Option<&'a Item<'a>> {
        self.table.get(key)
    }

    /// Reports every key that is not among `known`.
    pub fn only(&self, known: &[&str]) {
        for (key, _) in self.table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let help = did_you_mean(name, known.iter().copied(), &known.join(", "));
                self.report(
                    Severity::Error,
                    &key.span(),
                    name,
                    String::new(),
                    "is no known key here".into(),
                    Some(help),
                );
            }
        }
    }

    /// The table under `key`; what is there but no table is reported.
    pub fn section(&self, key: &str, path: impl Into<String>) -> Option<Section<'a>> {
        let item = self.get(key)?;
        match item.get_ref().as_table() {
            Some(table) => Some(self.child(table, item.span(), path)),
            None => {
                self.bad(key, item, "is no table", format!("write {key} = {{ ... }} or a [section]"));
                None
            }
        }
    }

    /// The tables of the array under `key`; `path(i)` names the i-th.
    pub fn sections(&self, key: &str, path: impl Fn(usize) -> String) -> Vec<Section<'a>> {
        let Some(item) = self.get(key) else { return Vec::new() };
        let Some(array) = item.get_ref().as_array() else {
            self.bad(key, item, "is no array of tables", format!("write {key} = [{{ ... }}] or [[...{key}]]"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (i, item) in array.iter().enumerate() {
            match item.get_ref().as_table() {
                Some(table) => sections.push(self.child(table, item.span(), path(i))),
                None => self.bad(key, item, "is no table", format!("write {key} = [{{ ... }}]")),
            }
        }
        sections
    }

    pub fn child(&self, table: &'a DeTable<'a>, span: Range<usize>, path: impl Into<String>) -> Section<'a> {
        Section { file: self.file, out: self.out, path: path.into(), table, span }
    }

    pub fn text(&self, key: &str) -> Option<Placed<&'a str>> {
        let item = self.get(key)?;
        match item.get_ref().as_str() {
            Some(text) => Some(Placed { value: text, place: self.file.place(item.span().start) }),
            None => {
                self.bad(key, item, "is no text", format!("write {key} = \"...\""));
                None
            }
        }
    }

    /// A text that has to be there.
    pub fn required(&self, key: &str, example: &str) -> Option<Placed<&'a str>> {
        self.demand(key, example);
        self.text(key)
    }

    fn demand(&self, key: &str, example: &str) {
        if self.get(key).is_none() {
            self.wrong(format!("has no `{key}`"), format!("add {key} = {example}"));
        }
    }

    /// An integer of `0..=max` that has to be there.
    pub fn required_number(&self, key: &str, max: u64) -> Option<Placed<u64>> {
        self.demand(key, &format!("N, with N of 0 to {max}"));
        let item = self.get(key)?;
        let number = item
            .get_ref()
            .as_integer()
            .and_then(|i| u64::from_str_radix(i.as_str(), i.radix()).ok())
            .filter(|n| *n <= max);
        if number.is_none() {
            self.bad(key, item, format!("is no number of 0 to {max}"), format!("write {key} = N"));
        }
        Some(Placed { value: number?, place: self.file.place(item.span().start) })
    }

    pub fn texts(&self, key: &str) -> Vec<Placed<&'a str>> {
        let Some(item) = self.get(key) else { return Vec::new() };
        let Some(array) = item.get_ref().as_array() else {
            self.bad(key, item, "is no array of texts", format!("write {key} = [\"...\"]"));
            return Vec::new();
        };
        let place = |item: &Item<'_>| self.file.place(item.span().start);
        let texts =
            array.iter().filter_map(|item| Some(Placed { value: item.get_ref().as_str()?, place: place(item) }));
        let texts: Vec<_> = texts.collect();
        if texts.len() != array.len() {
            self.bad(key, item, "holds something that is no text", format!("write {key} = [\"...\", \"...\"]"));
        }
        texts
    }

    /// Reads the options of this table: one layer per option table. A name in two tables belongs to the first.
    pub fn options<const N: usize>(&self, tables: [&'static [OptionSpec]; N]) -> [Layer; N] {
        let mut layers: [Layer; N] = std::array::from_fn(|_| Layer::new());
        let mut names: Vec<&str> = tables.iter().flat_map(|t| t.iter()).map(|spec| spec.name).collect();
        names.sort_unstable();
        names.dedup();
        self.only(&names);
        for (key, item) in self.table {
            let find = |t: &&'static [OptionSpec]| t.iter().find(|spec| spec.name == key.get_ref().as_ref());
            let found = tables.iter().enumerate().find_map(|(i, table)| Some((i, find(table)?)));
            let Some((i, spec)) = found else { continue };
            match spec.check(item.get_ref()) {
                Ok(value) => {
                    self.remark_if_idle(spec, item, &value);
                    self.remark_if_weak(spec, item, &value);
                    layers[i].insert(spec.name, value);
                }
                Err(BadValue { cause, help }) => {
                    let hidden = matches!(spec.kind, Kind::Secret { .. });
                    let text = if hidden { String::new() } else { self.file.slice(item.span()) };
                    self.report(Severity::Error, &item.span(), spec.name, text, cause, help);
                }
            }
        }
        layers
    }

    /// A resync by checksums never copies a block whose digest happens to be the same.
    fn remark_if_weak(&self, spec: &OptionSpec, item: &Item<'_>, value: &Value) {
        if spec.name != "csums-alg" || *value != Value::Text("crc32c".into()) {
            return;
        }
        let cause = "takes one block in four billion that differ for equal, and leaves it different without a word";
        let help = "write \"sha1\" or a longer one; crc32c is good for verify-alg";
        self.report(
            Severity::Warning,
            &item.span(),
            spec.name,
            self.file.slice(item.span()),
            cause.into(),
            Some(help.into()),
        );
    }

    fn remark_if_idle(&self, spec: &OptionSpec, item: &Item<'_>, value: &Value) {
        let cause = match spec.support {
            Support::Effective => return,
            Support::Except(words) if !matches!(value, Value::Text(word) if words.contains(&word.as_str())) => return,
            Support::Except(_) => "has no effect of its own yet: this version of replicad runs no handlers".into(),
            _ if *value == spec.default_value() => return,
            Support::NotYet => "has no effect yet: this version of replicad does not act on it".into(),
            Support::NoEffect(why) => format!("has no effect: {why}"),
        };
        self.report(Severity::Warning, &item.span(), spec.name, self.file.slice(item.span()), cause, None);
    }
}
