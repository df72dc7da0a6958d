//! docs/wire.md says what the code does: its tables are printed from the code.
//!
//! `WIRE_DOC=write cargo test -p wire --test document` writes them into the document.

use std::fmt::Write;
use std::path::PathBuf;
use wire::Socket;
use wire::packet::{Body, PacketInfo, Scope};
use wire::version::{FEATURES_OFFERED, PROTOCOL_MAX, PROTOCOL_MIN, feature};

fn document() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/wire.md")
}

fn length(body: Body) -> String {
    match body {
        Body::Exact(len) => len.to_string(),
        Body::Sizes => "32, with WSAME 56".to_owned(),
        Body::Bulk => "24 + digest + data".to_owned(),
        Body::Tail { fixed, min, max, step } => {
            let mut text = format!("{min}..={max}");
            if fixed > 0 {
                text = format!("{fixed} + {text}");
            }
            if step > 1 {
                write!(text, ", by {step}").unwrap();
            }
            text
        }
    }
}

fn since(info: &PacketInfo) -> String {
    let mut parts = Vec::new();
    if info.since > PROTOCOL_MIN {
        parts.push(info.since.to_string());
    }
    if info.until < PROTOCOL_MAX {
        parts.push(format!("until {}", info.until));
    }
    parts.extend(feature::NAMES.iter().filter(|(bit, _)| info.feature & bit != 0).map(|(_, name)| (*name).to_owned()));
    parts.join(", ")
}

fn packets() -> String {
    let mut table = String::from("| # | Name | Socket | Volume | Length | Needs | Sent by | Answer |\n");
    table.push_str("|---|---|---|---|---|---|---|---|\n");
    for info in PacketInfo::all() {
        let socket = if info.socket == Socket::Data { "data" } else { "control" };
        let volume = match info.scope {
            Scope::Volume => "yes",
            Scope::Connection => "no",
            Scope::Either => "yes or no",
        };
        writeln!(
            table,
            "| {:#04x} | {} | {socket} | {volume} | {} | {} | {} | {} |",
            info.packet.number(),
            info.name,
            length(info.body),
            since(info),
            info.direction,
            info.answer
        )
        .unwrap();
    }
    table
}

fn features() -> String {
    let mut table = String::from("| Bit | Name | Offered |\n|---|---|---|\n");
    for (bit, name) in feature::NAMES {
        let offered = if FEATURES_OFFERED & bit != 0 { "yes" } else { "no" };
        writeln!(table, "| {bit:#05x} | {name} | {offered} |").unwrap();
    }
    writeln!(table, "\nVersions {PROTOCOL_MIN}..={PROTOCOL_MAX}, features {FEATURES_OFFERED:#x}.").unwrap();
    table
}

/// The text between the two marks of `name`.
fn part<'a>(text: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->\n"));
    let start = text.find(&begin).unwrap_or_else(|| panic!("docs/wire.md lacks {begin:?}")) + begin.len();
    let stop = text.find(&end).unwrap_or_else(|| panic!("docs/wire.md lacks {end:?}"));
    (&text[..start], &text[start..stop], &text[stop..])
}

#[test]
fn the_tables_of_the_document_are_those_of_the_code() {
    let mut text = std::fs::read_to_string(document()).expect("docs/wire.md is part of the repository");
    let write = std::env::var_os("WIRE_DOC").is_some_and(|value| value == "write");
    for (name, expected) in [("packets", packets()), ("features", features())] {
        let (before, found, after) = part(&text, name);
        if write {
            text = format!("{before}{expected}{after}");
        } else {
            assert!(
                found == expected,
                "docs/wire.md, table of {name}, differs from the code; write it anew with \
                 WIRE_DOC=write cargo test -p wire --test document\nfound:\n{found}\nexpected:\n{expected}"
            );
        }
    }
    if write {
        std::fs::write(document(), text).unwrap();
    }
}
