//! No text makes the reader panic, and what it accepts can be looked at from every node.

use config::Config;
use proptest::prelude::*;
use std::path::Path;

const GOOD: [&str; 2] = [include_str!("good/two-nodes.toml"), include_str!("good/three-nodes.toml")];

fn try_it(text: &str) {
    let Ok(config) = Config::parse(Path::new("x.toml"), text) else { return };
    for resource in &config.resources {
        for node in &resource.nodes {
            let local = config.for_node(&node.name).expect("the node is there");
            assert!(local.iter().any(|l| l.name == resource.name), "{} lost {}", node.name, resource.name);
        }
    }
}

/// Pieces that mean something at other places of a file.
const PIECES: [&str; 14] = [
    "0",
    "-1",
    "\"\"",
    "[]",
    "{}",
    "true",
    "[[resource]]\n",
    "[common.net]\n",
    "\"none\"",
    "99999999999999999999",
    "=",
    "\n",
    "\"ublk:10\"",
    "é",
];

proptest! {
    #[test]
    fn arbitrary_text(text in ".{0,200}") {
        try_it(&text);
    }

    #[test]
    fn good_files_with_a_hole_and_a_patch(
        which in 0..2usize, at in 0..2000usize, hole in 0..40usize, patch in proptest::sample::select(&PIECES[..])
    ) {
        let chars: Vec<char> = GOOD[which].chars().collect();
        let at = at % chars.len();
        let end = (at + hole).min(chars.len());
        let text: String = chars[..at].iter().copied().chain(patch.chars()).chain(chars[end..].iter().copied()).collect();
        try_it(&text);
    }

    #[test]
    fn good_files_with_a_line_too_many_or_too_few(which in 0..2usize, from in 0..60usize, to in 0..60usize) {
        let mut lines: Vec<&str> = GOOD[which].lines().collect();
        let line = lines.remove(from % lines.len());
        try_it(&lines.join("\n"));
        lines.insert(to % lines.len(), line);
        lines.insert(from % lines.len(), line);
        try_it(&lines.join("\n"));
    }

    #[test]
    fn values_of_all_kinds_for_every_option(
        which in 0..200usize, value in prop_oneof!["[0-9]{1,22}", "\"[0-9]{0,22}[sKMGTkiB]{0,3}\"", "-?[0-9]{1,3}\\.[0-9]", "\"[a-z-]{0,8}\""]
    ) {
        let tables = [
            ("options", config::ResourceOptions::TABLE), ("net", config::NetOptions::TABLE),
            ("disk", config::DiskOptions::TABLE), ("peer-device", config::PeerDeviceOptions::TABLE),
            ("startup", config::StartupOptions::TABLE),
        ];
        let all: Vec<_> = tables.iter().flat_map(|(section, table)| table.iter().map(move |o| (section, o.name))).collect();
        let (section, name) = all[which % all.len()];
        let text = format!(
            "[[resource]]\nname = \"r0\"\n{section} = {{ {name} = {value} }}\n\
             volume = [{{ number = 0, device = \"none\", disk = \"/d\" }}]\n\
             on = [{{ node = \"a\", node-id = 0, address = \"10.0.0.1:1\" }}, \
                   {{ node = \"b\", node-id = 1, address = \"10.0.0.2:1\" }}]\n"
        );
        try_it(&text);
    }
}

#[test]
fn deep_nesting_is_an_error_not_a_crash() {
    assert!(Config::parse(Path::new("x.toml"), &format!("a = {}", "[".repeat(100_000))).is_err());
    assert!(Config::parse(Path::new("x.toml"), &format!("{}1", "a.".repeat(100_000))).is_err());
}

#[test]
fn a_file_without_an_end_is_an_error() {
    let error = Config::load(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(error.contains("/dev/zero") && error.contains("longer than"), "{error}");
}
