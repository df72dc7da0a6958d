//! `restore-md`, first half: text to [`Dump`]. The grammar is that of drbdmeta (`docs/ondisk.md` "Text"): fixed order,
//! numbers in three classes that do not stand for each other.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use types::{NodeId, Slot, Uuid};

use super::{AnyDump, Common, Dump, DumpV08, Run};
use crate::layout::MAX_PEERS_MAX;
use crate::superblock::{AL_SLOTS_FRESH, DeviceFlags, PEERS, PeerFlags, PeerRecord};

/// Text that is not a dump of metadata. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DumpError {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    pub found: String,
    pub expected: String,
}

impl fmt::Display for DumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "metadata dump, line {}, column {}: found {}, expected {}; correct the dump or take a new one with dump-md",
            self.line, self.column, self.found, self.expected
        )
    }
}

impl core::error::Error for DumpError {}

type Result<T> = core::result::Result<T, DumpError>;

/// Reads a dump of v09.
pub fn parse_dump(text: &str) -> Result<Dump> {
    let mut p = Parser::new(text)?;
    p.version(&["v09"])?;
    p.v09()
}

/// Reads a dump of whichever format it names.
pub fn parse_any_dump(text: &str) -> Result<AnyDump> {
    let mut p = Parser::new(text)?;
    match p.version(&["v08", "v09"])? {
        "v08" => p.v08().map(AnyDump::V08),
        _ => p.v09().map(|dump| AnyDump::V09(Box::new(dump))),
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Token<'a> {
    Punct(char),
    /// Without the quotes.
    Text(&'a str),
    Word(&'a str),
    Number(i128),
    Hex8(u32),
    Hex16(u64),
    /// What no token starts with or looks like.
    Junk(&'a str),
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Punct(c) => write!(f, "\"{c}\""),
            Token::Text(text) => write!(f, "the string \"{text}\""),
            Token::Word(word) | Token::Junk(word) => {
                let shown: String = word.chars().take(40).collect();
                write!(f, "\"{}\"", shown.escape_debug())
            }
            Token::Number(n) => write!(f, "{n}"),
            Token::Hex8(n) => write!(f, "0x{n:08X}"),
            Token::Hex16(n) => write!(f, "0x{n:016X}"),
            Token::End => write!(f, "the end of the text"),
        }
    }
}

struct Parser<'a> {
    /// Not yet read; `token` lies before it.
    rest: &'a str,
    token: Token<'a>,
    token_line: u32,
    token_column: u32,
    line: u32,
    column: u32,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Parser<'a>> {
        let mut p = Parser { rest: text, token: Token::End, token_line: 1, token_column: 1, line: 1, column: 1 };
        p.advance();
        Ok(p)
    }

    /// Takes `len` bytes off the rest, counting lines.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        for c in taken.chars() {
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.rest = rest;
        taken
    }

    fn advance(&mut self) {
        loop {
            let blank = self.rest.len() - self.rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
            self.take(blank);
            if !self.rest.starts_with('#') {
                break;
            }
            let comment = self.rest.find('\n').unwrap_or(self.rest.len());
            self.take(comment);
        }
        (self.token_line, self.token_column) = (self.line, self.column);
        let (token, len) = lex(self.rest);
        self.take(len);
        self.token = token;
    }

    fn fail<T>(&self, expected: impl ToString) -> Result<T> {
        Err(DumpError {
            line: self.token_line,
            column: self.token_column,
            found: self.token.to_string(),
            expected: expected.to_string(),
        })
    }

    fn at_keyword(&self, word: &str) -> bool {
        self.token == Token::Word(word)
    }
    fn keyword(&mut self, word: &str) -> Result<()> {
        if !self.at_keyword(word) {
            let unclean = matches!(self.token, Token::Junk(w) | Token::Word(w) if w.starts_with("This_is_an_unclean"));
            let hint = if unclean { " (this dump is of metadata whose activity log was not applied)" } else { "" };
            return self.fail(format!("the keyword {word}{hint}"));
        }
        self.advance();
        Ok(())
    }
    fn punct(&mut self, c: char) -> Result<()> {
        if self.token != Token::Punct(c) {
            return self.fail(format!("\"{c}\""));
        }
        self.advance();
        Ok(())
    }
    /// The line that every dump starts with; one of `known`.
    fn version(&mut self, known: &[&str]) -> Result<&'a str> {
        self.keyword("version")?;
        let version = match self.token {
            Token::Text(version) if known.contains(&version) => version,
            _ => return self.fail(format!("the version \"{}\"", known.join("\" or \""))),
        };
        self.advance();
        self.punct(';')?;
        Ok(version)
    }

    fn v09(&mut self) -> Result<Dump> {
        self.keyword("max-peers")?;
        let max_peers = self.number("the number of bitmap slots, 1 to 31", 1, MAX_PEERS_MAX.into())? as u8;
        self.punct(';')?;
        self.keyword("node-id")?;
        let node_id = self.number("a node id, -1 to 31", -1, 31)?;
        self.punct(';')?;
        let current_uuid = Uuid(self.field_hex16("current-uuid")?);
        let flags = DeviceFlags(self.field_hex8("flags")?);
        let members = if self.at_keyword("members") { Some(self.field_hex16("members")?) } else { None };
        let peers = self.peers()?;
        let history = self.history()?;
        let common = self.common()?;
        let bitmaps = (0..max_peers).map(|slot| self.bitmap(slot)).collect::<Result<_>>()?;
        self.end()?;
        Ok(Dump {
            geometry: common.geometry(max_peers),
            node_id: u8::try_from(node_id).ok().and_then(NodeId::new),
            current_uuid,
            flags,
            members,
            peers,
            history,
            last_agreed_bytes: common.last_agreed_bytes,
            device_uuid: common.device_uuid,
            peer_max_io_bytes: common.peer_max_io_bytes,
            bitmaps,
        })
    }

    fn v08(&mut self) -> Result<DumpV08> {
        self.keyword("uuid")?;
        self.punct('{')?;
        let mut uuids = [Uuid::ZERO; 4];
        for uuid in &mut uuids {
            *uuid = Uuid(self.hex16()?);
            self.punct(';')?;
        }
        let flags = DeviceFlags(self.field_hex8("flags")?);
        self.punct('}')?;
        let common = self.common()?;
        self.keyword("bm")?;
        let bitmap = self.runs()?;
        self.end()?;
        let [current_uuid, bitmap_uuid, younger, older] = uuids;
        Ok(DumpV08 {
            geometry: common.geometry(1),
            current_uuid,
            bitmap_uuid,
            history: [younger, older],
            flags,
            last_agreed_bytes: common.last_agreed_bytes,
            device_uuid: common.device_uuid,
            peer_max_io_bytes: common.peer_max_io_bytes,
            bitmap,
        })
    }

    fn common(&mut self) -> Result<Common> {
        Ok(Common {
            al_slots: AL_SLOTS_FRESH,
            last_agreed_bytes: self.field_number("la-size-sect", i128::from(u64::MAX / 512))? as u64 * 512,
            bitmap_block_bytes: self.field_number("bm-byte-per-bit", u32::MAX.into())? as u32,
            device_uuid: self.field_hex16("device-uuid")?,
            peer_max_io_bytes: self.field_number("la-peer-max-bio-size", u32::MAX.into())? as u32,
            al_stripes: self.field_number("al-stripes", u32::MAX.into())? as u32,
            al_stripe_4k: self.field_number("al-stripe-size-4k", u32::MAX.into())? as u32,
        })
    }
    fn number(&mut self, what: &str, min: i128, max: i128) -> Result<i128> {
        match self.token {
            Token::Number(n) if (min..=max).contains(&n) => {
                self.advance();
                Ok(n)
            }
            _ => self.fail(what),
        }
    }
    fn hex16(&mut self) -> Result<u64> {
        let Token::Hex16(value) = self.token else { return self.fail("0x and 16 hex digits") };
        self.advance();
        Ok(value)
    }
    fn end(&mut self) -> Result<()> {
        if self.token == Token::End { Ok(()) } else { self.fail("the end of the text") }
    }

    fn field_number(&mut self, word: &str, max: i128) -> Result<i128> {
        self.keyword(word)?;
        let value = self.number(&format!("a number, 0 to {max}"), 0, max)?;
        self.punct(';')?;
        Ok(value)
    }
    fn field_hex16(&mut self, word: &str) -> Result<u64> {
        self.keyword(word)?;
        let value = self.hex16()?;
        self.punct(';')?;
        Ok(value)
    }
    fn field_hex8(&mut self, word: &str) -> Result<u32> {
        self.keyword(word)?;
        let Token::Hex8(value) = self.token else { return self.fail("0x and 8 hex digits") };
        self.advance();
        self.punct(';')?;
        Ok(value)
    }

    /// 32 records in any order, each node once.
    fn peers(&mut self) -> Result<[PeerRecord; PEERS]> {
        let mut peers = [None; PEERS];
        for _ in 0..PEERS {
            self.keyword("peer")?;
            self.punct('[')?;
            let node = match self.token {
                Token::Number(n @ 0..=31) if peers[n as usize].is_none() => n as usize,
                Token::Number(0..=31) => return self.fail("a node that was not defined before"),
                _ => return self.fail("a node id, 0 to 31"),
            };
            self.advance();
            self.punct(']')?;
            peers[node] = Some(self.peer()?);
        }
        Ok(peers.map(Option::unwrap_or_default))
    }
    fn peer(&mut self) -> Result<PeerRecord> {
        self.punct('{')?;
        self.keyword("bitmap-index")?;
        let index = self.number("a bitmap slot, -1 to 31", -1, 31)?;
        self.punct(';')?;
        let peer = PeerRecord {
            slot: u8::try_from(index).ok().map(Slot),
            bitmap_uuid: Uuid(self.field_hex16("bitmap-uuid")?),
            bitmap_dagtag: self.field_hex16("bitmap-dagtag")?,
            flags: PeerFlags(self.field_hex8("flags")?),
        };
        self.punct('}')?;
        Ok(peer)
    }
    fn history(&mut self) -> Result<[Uuid; PEERS]> {
        self.keyword("history-uuids")?;
        self.punct('{')?;
        let mut history = [Uuid::ZERO; PEERS];
        for uuid in &mut history {
            *uuid = Uuid(self.hex16()?);
            self.punct(';')?;
        }
        self.punct('}')?;
        Ok(history)
    }
    fn bitmap(&mut self, slot: u8) -> Result<Vec<Run>> {
        self.keyword("bitmap")?;
        self.punct('[')?;
        self.number(&format!("bitmap slot {slot}: they come in order"), slot.into(), slot.into())?;
        self.punct(']')?;
        self.runs()
    }
    fn runs(&mut self) -> Result<Vec<Run>> {
        self.punct('{')?;
        let mut runs: Vec<Run> = Vec::new();
        while self.token != Token::Punct('}') {
            let run = self.run()?;
            match runs.last_mut() {
                // Saturating: a total beyond any device is refused when it is fitted to one.
                Some(last) if last.value == run.value => last.count = last.count.saturating_add(run.count),
                _ if run.count == 0 => {}
                _ => runs.push(run),
            }
        }
        self.advance();
        Ok(runs)
    }
    fn run(&mut self) -> Result<Run> {
        let count = match self.token {
            Token::Number(_) => {
                let count = self.number("a count", 0, u64::MAX.into())? as u64;
                self.keyword("times")?;
                count
            }
            Token::Hex16(_) => 1,
            _ => return self.fail("0x and 16 hex digits, a count with \"times\", or \"}\""),
        };
        let value = self.hex16()?;
        self.punct(';')?;
        Ok(Run { count, value })
    }
}

/// The token that `text` starts with (no white space, no comment) and its length in bytes.
fn lex(text: &str) -> (Token<'_>, usize) {
    let Some(first) = text.chars().next() else { return (Token::End, 0) };
    if "{}[];".contains(first) {
        return (Token::Punct(first), 1);
    }
    if first == '"' {
        return lex_text(text);
    }
    // A token ends where the next one can start, so "12abc" is one bad token and not two good ones.
    let len = text.find(|c: char| c.is_ascii_whitespace() || "{}[];#\"".contains(c)).unwrap_or(text.len());
    let token = &text[..len];
    let meaning = if first.is_ascii_alphabetic() { lex_word(token) } else { lex_number(token) };
    (meaning.unwrap_or(Token::Junk(token)), len)
}

fn lex_text(text: &str) -> (Token<'_>, usize) {
    match text[1..].find(['"', '\n']) {
        Some(len @ 1..=20) if text[1 + len..].starts_with('"') => (Token::Text(&text[1..1 + len]), len + 2),
        Some(len) => (Token::Junk(&text[..1 + len]), 1 + len),
        None => (Token::Junk(text), text.len()),
    }
}

fn lex_word(token: &str) -> Option<Token<'_>> {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    token.chars().all(part_of_word).then_some(Token::Word(token))
}

fn lex_number(token: &str) -> Option<Token<'_>> {
    if let Some(hex) = token.strip_prefix("0x") {
        if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        return match hex.len() {
            8 => u32::from_str_radix(hex, 16).ok().map(Token::Hex8),
            16 => u64::from_str_radix(hex, 16).ok().map(Token::Hex16),
            _ => None,
        };
    }
    let digits = token.strip_prefix('-').unwrap_or(token);
    if !(1..=19).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    token.parse().ok().map(Token::Number)
}
