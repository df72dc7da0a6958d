//! Configuration files. Promises: refused with a place, or every node that it names finds its resources.

use std::path::Path;

use config::Config;

pub fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let config = match Config::parse(Path::new("fuzz.toml"), text) {
        Ok(config) => config,
        Err(error) => return assert!(error.to_string().contains("fuzz.toml"), "{error}"),
    };
    for resource in &config.resources {
        for node in &resource.nodes {
            let local = config.for_node(&node.name).expect("the node is there");
            assert!(local.iter().any(|l| l.name == resource.name), "{} lost {}", node.name, resource.name);
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tests");
    let directories = ["good", "bad"].map(|kind| crate::files(tests.join(kind), ".toml"));
    directories.iter().flatten().map(|path| std::fs::read(path).expect("a readable file")).collect()
}
