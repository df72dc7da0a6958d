//! What one option may hold: kinds, units, and the step from a TOML value to a checked [`Value`].
//!
//! Numbers are kept in DRBD's unit until a typed field is filled, so that a message can name the range the manual
//! names. Typed fields hold bytes, bytes per second, `Duration` or a plain count.

use crate::words::{Quorum, Secret};
use core::time::Duration;
use std::collections::BTreeMap;
use toml::de::DeValue;

/// What a number without suffix counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Requests, extents, nodes, ...
    Count(&'static str),
    Seconds,
    Tenths,
    Milliseconds,
    Bytes,
    Sectors,
    /// KiB per second.
    KibPerSecond,
    /// Pages of 4 KiB; a suffix multiplies the count, as in DRBD.
    Pages,
}

impl Unit {
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Count(what) => what,
            Unit::Seconds => "s",
            Unit::Tenths => "0.1 s",
            Unit::Milliseconds => "ms",
            Unit::Bytes => "bytes",
            Unit::Sectors => "sectors of 512 bytes",
            Unit::KibPerSecond => "KiB/s",
            Unit::Pages => "pages of 4 KiB",
        }
    }
    /// Bytes that one of it stands for; `None` for what is no amount of data.
    const fn bytes(self) -> Option<u64> {
        match self {
            Unit::Bytes => Some(1),
            Unit::Sectors => Some(512),
            Unit::KibPerSecond => Some(1024),
            _ => None,
        }
    }
    /// A number without suffix would be read as bytes by some and as the unit by others.
    const fn bare_is_ambiguous(self) -> bool {
        matches!(self, Unit::Sectors | Unit::KibPerSecond)
    }
    pub fn to_duration(self, number: u64) -> Duration {
        match self {
            Unit::Seconds => Duration::from_secs(number),
            Unit::Tenths => Duration::from_millis(number * 100),
            Unit::Milliseconds => Duration::from_millis(number),
            _ => panic!("{number} {} is no time: the option table is wrong", self.name()),
        }
    }
    pub(crate) fn of_duration(self, time: Duration) -> u64 {
        let millis = time.as_millis() as u64;
        match self {
            Unit::Seconds => millis / 1000,
            Unit::Tenths => millis / 100,
            Unit::Milliseconds => millis,
            _ => panic!("{time:?} in {}: the option table is wrong", self.name()),
        }
    }
    pub(crate) fn of_plain(self, plain: u64) -> u64 {
        plain / self.bytes().unwrap_or(1)
    }
    /// Bytes (per second) for amounts and rates, the count itself otherwise. Ranges keep the product below 2^64.
    pub fn to_plain(self, number: u64) -> u64 {
        number * self.bytes().unwrap_or(1)
    }
}

/// The type of one option.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Flag {
        default: bool,
    },
    Number {
        min: u64,
        max: u64,
        default: u64,
        unit: Unit,
    },
    /// `default: None`: not given means something of its own.
    OptionalNumber {
        min: u64,
        max: u64,
        unit: Unit,
    },
    Word {
        words: &'static [&'static str],
        default: &'static str,
    },
    /// One of `words`, or empty for none.
    OptionalWord {
        words: &'static [&'static str],
    },
    NumberOrWord {
        min: u64,
        max: u64,
        words: &'static [&'static str],
        default: &'static str,
    },
    Text {
        bytes_max: usize,
    },
    Secret {
        bytes_max: usize,
    },
}

/// Whether the daemon of this version acts on the option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    Effective,
    /// As `Effective`, but for these of its words.
    Except(&'static [&'static str]),
    /// Accepted, checked and stored; has no effect in this version. Loading warns when it is set to another value
    /// than its default.
    NotYet,
    /// Never will have one; the reason.
    NoEffect(&'static str),
}

/// One row of an option table.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    pub name: &'static str,
    pub kind: Kind,
    pub support: Support,
}

/// A checked value, numbers in the option's unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Flag(bool),
    Number(u64),
    Text(String),
    Secret(Secret),
    Unset,
}

/// Values that one section of one level sets explicitly.
pub type Layer = BTreeMap<&'static str, Value>;

/// One option in which two sets differ; values as [`OptionSpec::show`] has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    pub name: &'static str,
    pub from: String,
    pub to: String,
    pub support: Support,
}

/// Why a value was refused: the cause, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadValue {
    pub cause: String,
    pub help: Option<String>,
}

impl BadValue {
    pub(crate) fn unknown_name(name: &str, table: &[OptionSpec]) -> BadValue {
        let known: Vec<&str> = table.iter().map(|spec| spec.name).collect();
        bad("is no option of this section", did_you_mean(name, known.iter().copied(), &known.join(", ")))
    }
}

fn bad(cause: impl Into<String>, help: impl Into<String>) -> BadValue {
    BadValue { cause: cause.into(), help: Some(help.into()) }
}

impl OptionSpec {
    pub fn default_value(&self) -> Value {
        match self.kind {
            Kind::Flag { default } => Value::Flag(default),
            Kind::Number { default, .. } => Value::Number(default),
            Kind::OptionalNumber { .. } => Value::Unset,
            Kind::Word { default, .. } | Kind::NumberOrWord { default, .. } => Value::Text(default.into()),
            Kind::OptionalWord { .. } | Kind::Text { .. } => Value::Text(String::new()),
            Kind::Secret { .. } => Value::Secret(Secret::default()),
        }
    }
    pub(crate) fn value_in(&self, layer: &Layer) -> Value {
        layer.get(self.name).cloned().unwrap_or_else(|| self.default_value())
    }
    /// Range, unit and default as one phrase for messages.
    pub fn describe(&self) -> String {
        match self.kind {
            Kind::Flag { default } => format!("true or false (default {default})"),
            Kind::Number { min, max, default, unit } => {
                format!("{min} to {max} in {} (default {default})", unit.name())
            }
            Kind::OptionalNumber { min, max, unit } => format!("{min} to {max} in {}", unit.name()),
            Kind::Word { words, default } => format!("one of {} (default {default})", words.join(", ")),
            Kind::OptionalWord { words } => format!("one of {}, or \"\" for none", words.join(", ")),
            Kind::NumberOrWord { min, max, words, default } => {
                format!("{min} to {max}, or one of {} (default {default})", words.join(", "))
            }
            Kind::Text { bytes_max } => format!("text of at most {bytes_max} bytes"),
            Kind::Secret { bytes_max } => format!("text of at most {bytes_max} bytes"),
        }
    }

    /// Checks what somebody wrote on a command line.
    pub fn parse(&self, text: &str) -> Result<Value, BadValue> {
        match (self.kind, text) {
            (Kind::Flag { .. }, "yes" | "true") => Ok(Value::Flag(true)),
            (Kind::Flag { .. }, "no" | "false") => Ok(Value::Flag(false)),
            (Kind::Flag { .. }, _) => Err(bad("is neither yes nor no", format!("write {}", self.describe()))),
            _ => self.check(&DeValue::String(text.into())),
        }
    }

    /// As in a configuration file, but for secrets, which nothing shows.
    pub fn show(&self, value: &Value) -> String {
        match value {
            Value::Flag(flag) => flag.to_string(),
            Value::Number(number) => match self.kind {
                Kind::Number { unit: Unit::Sectors, .. } => format!("{number}s"),
                Kind::Number { unit: Unit::KibPerSecond, .. } => format!("{number}K"),
                _ => number.to_string(),
            },
            Value::Text(text) if text.is_empty() => "none".into(),
            Value::Text(text) => text.clone(),
            Value::Secret(secret) if secret.is_empty() => "none".into(),
            Value::Secret(_) => "(not shown)".into(),
            Value::Unset => "default".into(),
        }
    }

    /// Checks a TOML value against the row.
    pub(crate) fn check(&self, value: &DeValue<'_>) -> Result<Value, BadValue> {
        match self.kind {
            Kind::Flag { .. } => match value {
                DeValue::Boolean(flag) => Ok(Value::Flag(*flag)),
                DeValue::String(word) if word == "yes" || word == "no" => {
                    Err(bad("is text, not a boolean", format!("write {} = {}", self.name, word == "yes")))
                }
                _ => Err(bad("is no boolean", format!("write {}", self.describe()))),
            },
            Kind::Number { min, max, unit, .. } | Kind::OptionalNumber { min, max, unit } => {
                self.in_range(self.number(value, unit)?, min, max)
            }
            Kind::Word { words, .. } => self.word(value, words),
            Kind::OptionalWord { words } => match value.as_str() {
                Some("") => Ok(Value::Text(String::new())),
                _ => self.word(value, words),
            },
            Kind::NumberOrWord { min, max, words, .. } => match value.as_str() {
                Some(text) if !text.starts_with(|c: char| c.is_ascii_digit()) => self.word(value, words),
                _ => self.in_range(self.number(value, Unit::Count(""))?, min, max),
            },
            Kind::Text { bytes_max } => Ok(Value::Text(self.text(value, bytes_max)?)),
            Kind::Secret { bytes_max } => Ok(Value::Secret(Secret::new(self.text(value, bytes_max)?))),
        }
    }

    fn in_range(&self, number: u64, min: u64, max: u64) -> Result<Value, BadValue> {
        let cause = match number {
            n if n < min => "is too small",
            n if n > max => "is too big",
            n => return Ok(Value::Number(n)),
        };
        Err(bad(cause, format!("allowed: {}", self.describe())))
    }

    fn word(&self, value: &DeValue<'_>, words: &'static [&'static str]) -> Result<Value, BadValue> {
        let Some(text) = value.as_str() else {
            return Err(bad("is no text", format!("write {}", self.describe())));
        };
        // DRBD takes `protocol c`, too.
        let found = words.iter().find(|w| **w == text || (w.len() == 1 && w.eq_ignore_ascii_case(text)));
        match found {
            Some(word) => Ok(Value::Text((*word).into())),
            None => Err(bad("is none of its words", did_you_mean(text, words.iter().copied(), &self.describe()))),
        }
    }

    fn text(&self, value: &DeValue<'_>, bytes_max: usize) -> Result<String, BadValue> {
        match value.as_str() {
            Some(text) if text.len() <= bytes_max => Ok(text.into()),
            Some(text) => Err(bad(
                format!("is {} bytes long, at most {bytes_max} are possible", text.len()),
                format!("shorten it to {bytes_max} bytes, the same on all nodes"),
            )),
            None => Err(bad("is no text", format!("write {} = \"...\"", self.name))),
        }
    }

    /// In the option's unit, rounded up as DRBD does.
    fn number(&self, value: &DeValue<'_>, unit: Unit) -> Result<u64, BadValue> {
        match value {
            DeValue::Integer(integer) => {
                let number = i128::from_str_radix(integer.as_str(), integer.radix())
                    .map_err(|_| bad("is no number that fits", format!("allowed: {}", self.describe())))?;
                let number = u64::try_from(number).map_err(|_| match number < 0 {
                    true => bad("is negative", format!("allowed: {}", self.describe())),
                    false => bad("is too big", format!("allowed: {}", self.describe())),
                })?;
                if unit.bare_is_ambiguous() && number != 0 {
                    return Err(self.ambiguous(number, unit));
                }
                Ok(number)
            }
            DeValue::String(text) => self.suffixed(text, unit),
            _ => Err(bad("is no number", format!("allowed: {}", self.describe()))),
        }
    }

    fn ambiguous(&self, number: u64, unit: Unit) -> BadValue {
        let (one, other) = match unit {
            Unit::Sectors => {
                (format!("\"{number}s\" for sectors"), format!("\"{}K\" for bytes", number.div_ceil(1024)))
            }
            _ => (format!("\"{number}K\" for KiB/s"), format!("\"{}K\" if bytes/s were meant", number.div_ceil(1024))),
        };
        bad("has no unit and could be read in two ways", format!("write {one}, or {other}"))
    }

    fn suffixed(&self, text: &str, unit: Unit) -> Result<u64, BadValue> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, suffix) = text.split_at(digits);
        let help = || match unit.bytes() {
            Some(_) => {
                format!("write a number with one of the suffixes s, K, M, G, T, for example {} = \"4M\"", self.name)
            }
            None => format!("write {}", self.describe()),
        };
        let Ok(number) = number.parse::<u64>() else {
            return Err(bad("is no number", help()));
        };
        let factor = match suffix {
            "" => {
                return match unit.bare_is_ambiguous() && number != 0 {
                    true => Err(self.ambiguous(number, unit)),
                    false => Ok(number),
                };
            }
            "s" => 512,
            "k" | "K" | "KiB" => 1 << 10,
            "m" | "M" | "MiB" => 1 << 20,
            "g" | "G" | "GiB" => 1 << 30,
            "T" | "TiB" => 1u64 << 40,
            "KB" | "MB" | "GB" | "TB" => {
                return Err(bad(
                    format!("has the ambiguous suffix {suffix} (powers of 1000 or of 1024?)"),
                    format!("write \"{number}{}\", which counts in powers of 1024", &suffix[..1]),
                ));
            }
            _ => return Err(bad(format!("has the unknown suffix `{suffix}`"), help())),
        };
        if matches!(unit, Unit::Seconds | Unit::Tenths | Unit::Milliseconds) {
            return Err(bad("has a suffix, but is a time", format!("write a plain number: {}", self.describe())));
        }
        let total =
            number.checked_mul(factor).ok_or_else(|| bad("is too big", format!("allowed: {}", self.describe())))?;
        Ok(total.div_ceil(unit.bytes().unwrap_or(1)))
    }
}

/// "did you mean `x`?" for the nearest candidate, otherwise `fallback` as an instruction.
pub(crate) fn did_you_mean<'a>(text: &str, candidates: impl Iterator<Item = &'a str>, fallback: &str) -> String {
    match nearest(text, candidates) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("allowed: {fallback}"),
    }
}

/// The candidate that differs least, if it is near enough to be meant: a third of its letters, at least two.
pub(crate) fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Bounds the work for absurd input: no name is that long.
    if text.len() > 64 {
        return None;
    }
    let text = text.to_lowercase().replace('_', "-");
    candidates
        .map(|name| (strsim::damerau_levenshtein(&text, &name.to_lowercase().replace('_', "-")), name))
        .filter(|(distance, name)| *distance <= if name.len() < 3 { 0 } else { (name.len() / 3).max(1) })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// A field of a typed option struct, made from a value that [`OptionSpec::check`] let pass.
pub(crate) trait Field: Sized {
    fn from_value(value: &Value, kind: Kind) -> Option<Self>;
    /// The other way: numbers in the option's unit.
    fn to_value(&self, kind: Kind) -> Value;
}

fn unit_of(kind: Kind) -> Unit {
    match kind {
        Kind::Number { unit, .. } | Kind::OptionalNumber { unit, .. } => unit,
        _ => Unit::Count(""),
    }
}

impl Field for bool {
    fn from_value(value: &Value, _: Kind) -> Option<bool> {
        match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
    fn to_value(&self, _: Kind) -> Value {
        Value::Flag(*self)
    }
}
impl Field for u64 {
    fn from_value(value: &Value, kind: Kind) -> Option<u64> {
        match value {
            Value::Number(number) => Some(unit_of(kind).to_plain(*number)),
            _ => None,
        }
    }
    fn to_value(&self, kind: Kind) -> Value {
        Value::Number(unit_of(kind).of_plain(*self))
    }
}
impl Field for u32 {
    fn from_value(value: &Value, kind: Kind) -> Option<u32> {
        u64::from_value(value, kind)?.try_into().ok()
    }
    fn to_value(&self, kind: Kind) -> Value {
        u64::from(*self).to_value(kind)
    }
}
impl Field for Option<u64> {
    fn from_value(value: &Value, kind: Kind) -> Option<Option<u64>> {
        match value {
            Value::Unset => Some(None),
            other => u64::from_value(other, kind).map(Some),
        }
    }
    fn to_value(&self, kind: Kind) -> Value {
        self.map_or(Value::Unset, |number| number.to_value(kind))
    }
}
impl Field for Duration {
    fn from_value(value: &Value, kind: Kind) -> Option<Duration> {
        match value {
            Value::Number(number) => Some(unit_of(kind).to_duration(*number)),
            _ => None,
        }
    }
    fn to_value(&self, kind: Kind) -> Value {
        Value::Number(unit_of(kind).of_duration(*self))
    }
}
impl Field for String {
    fn from_value(value: &Value, _: Kind) -> Option<String> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
    fn to_value(&self, _: Kind) -> Value {
        Value::Text(self.clone())
    }
}
impl Field for Secret {
    fn from_value(value: &Value, _: Kind) -> Option<Secret> {
        match value {
            Value::Secret(secret) => Some(secret.clone()),
            _ => None,
        }
    }
    fn to_value(&self, _: Kind) -> Value {
        Value::Secret(self.clone())
    }
}
impl Field for Quorum {
    fn from_value(value: &Value, _: Kind) -> Option<Quorum> {
        Some(match value {
            Value::Number(nodes) => Quorum::Nodes((*nodes).try_into().ok()?),
            Value::Text(word) => match word.as_str() {
                "off" => Quorum::Off,
                "majority" => Quorum::Majority,
                "all" => Quorum::All,
                _ => return None,
            },
            _ => return None,
        })
    }
    fn to_value(&self, _: Kind) -> Value {
        match self {
            Quorum::Nodes(nodes) => Value::Number(u64::from(*nodes)),
            Quorum::Off => Value::Text("off".into()),
            Quorum::Majority => Value::Text("majority".into()),
            Quorum::All => Value::Text("all".into()),
        }
    }
}

macro_rules! word_fields {
    ($($name:ident),+) => { $(
        impl Field for crate::words::$name {
            fn from_value(value: &Value, _: Kind) -> Option<Self> {
                match value { Value::Text(word) => Self::parse(word), _ => None }
            }
            fn to_value(&self, _: Kind) -> Value {
                Value::Text(self.word().into())
            }
        }
    )+ };
}
word_fields!(
    Protocol,
    OnNoDataAccessible,
    OnNoQuorum,
    OnSuspendedPrimaryOutdated,
    AfterSb0Pri,
    AfterSb1Pri,
    AfterSb2Pri,
    RrConflict,
    OnCongestion,
    Fencing,
    OnIoError,
    ReadBalancing,
    Transport
);

impl Field for Option<crate::words::Hash> {
    fn from_value(value: &Value, _: Kind) -> Option<Self> {
        match value {
            Value::Text(word) if word.is_empty() => Some(None),
            Value::Text(word) => crate::words::Hash::parse(word).map(Some),
            _ => None,
        }
    }
    fn to_value(&self, _: Kind) -> Value {
        Value::Text(self.map(crate::words::Hash::word).unwrap_or_default().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(unit: Unit) -> OptionSpec {
        OptionSpec {
            name: "x",
            kind: Kind::Number { min: 0, max: u64::MAX, default: 0, unit },
            support: Support::Effective,
        }
    }

    #[test]
    fn suffixes_are_drbds() {
        let table = [
            ("40M", Unit::Sectors, 81920),
            ("8192s", Unit::Sectors, 8192),
            ("1", Unit::Bytes, 1),
            ("513", Unit::Bytes, 513),
            ("1s", Unit::KibPerSecond, 1), // rounded up
            ("36k", Unit::Pages, 36864),
            ("2MiB", Unit::KibPerSecond, 2048),
            ("60", Unit::Tenths, 60),
        ];
        for (text, unit, expected) in table {
            assert_eq!(number(unit).suffixed(text, unit), Ok(expected), "{text} in {unit:?}");
        }
    }

    #[test]
    fn words_of_a_command_line_are_checked_like_those_of_a_file() {
        let flag = OptionSpec { name: "x", kind: Kind::Flag { default: false }, support: Support::Effective };
        assert_eq!((flag.parse("yes"), flag.parse("false")), (Ok(Value::Flag(true)), Ok(Value::Flag(false))));
        assert!(flag.parse("maybe").is_err());
        assert_eq!(number(Unit::Sectors).parse("4K"), Ok(Value::Number(8)));
        assert_eq!(number(Unit::Tenths).parse("60"), Ok(Value::Number(60)));
        assert!(number(Unit::Tenths).parse("6s").is_err());
        let secret = OptionSpec { name: "x", kind: Kind::Secret { bytes_max: 63 }, support: Support::Effective };
        assert!(!secret.show(&secret.parse("tell-me-not").unwrap()).contains("tell"));
    }

    #[test]
    fn no_text_makes_a_number_panic() {
        for text in ["", "K", "99999999999999999999", "18446744073709551615T", "1é", "-1", "1.5G", "5MB", "7s"] {
            for unit in [Unit::Sectors, Unit::Seconds, Unit::Count("")] {
                let _ = number(unit).suffixed(text, unit);
            }
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["al-extents", "al-updates", "on-io-error"];
        assert_eq!(nearest("al_extents", names.into_iter()), Some("al-extents"));
        assert_eq!(nearest("al-extends", names.into_iter()), Some("al-extents"));
        assert_eq!(nearest("colour", names.into_iter()), None);
    }
}
