//! Every file of `bad/` gives exactly the lines of its `.expected`, and no secret. To regenerate after a change of
//! words: run with `UPDATE_EXPECTED=1`, then read the difference.

use config::Config;
use std::path::{Path, PathBuf};

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    files
}

fn parse(file: &Path) -> Result<Config, config::ConfigError> {
    let name = Path::new(file.file_name().unwrap());
    Config::parse(name, &std::fs::read_to_string(file).unwrap())
}

#[test]
fn bad_input_gets_its_message() {
    let files = files("bad");
    assert!(files.len() > 25, "the table is missing: {files:?}");
    let mut differences = Vec::new();
    for file in files {
        let error = parse(&file).expect_err(&format!("{} has to be refused", file.display()));
        let text = format!("{error}\n");
        assert!(!text.contains("topsecret") && !text.contains("12345"), "a secret in {text}");
        let expected_file = file.with_extension("expected");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            std::fs::write(&expected_file, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_file).unwrap_or_default();
        if text != expected {
            differences.push(format!("{}:\n{text}instead of\n{expected}", file.display()));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn good_input_gets_its_warnings() {
    for (file, expected) in [
        ("two-nodes", vec!["metrics", "split-brain", "after-sb-0pri", "rr-conflict", "c-min-rate"]),
        (
            "three-nodes",
            vec![
                "csums-alg",
                "on-io-error",
                "quorum",
                "on-no-quorum",
                "rs-discard-granularity",
                "device",
                "tiebreaker",
            ],
        ),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/good/{file}.toml"));
        let config = parse(&path).unwrap();
        let keys: Vec<&str> = config.warnings.iter().filter_map(|w| w.key.rsplit(' ').next()).collect();
        assert_eq!(keys, expected, "{:#?}", config.warnings);
    }
}
