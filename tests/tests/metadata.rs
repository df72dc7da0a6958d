//! drbdmeta, DRBD's own tool, and we on the same disk: each reads and accepts what the other writes.

use e2e::{Cluster, Setup, pattern, tools};

const TOOLS: [&str; 2] = ["ip", "drbdmeta"];

/// `drbdmeta` on a node's disk. It wants a device number for its lock; each test takes its own.
fn drbdmeta(minor: u32, cluster: &Cluster, node: usize, arguments: &[&str]) -> String {
    let (minor, disk) = (minor.to_string(), cluster.nodes[node].disk.to_str().unwrap());
    tools::run("drbdmeta", &[&["--force", &minor, "v09", disk, "internal"], arguments].concat())
}

/// What a dump says, without comments and without what only one of the tools writes.
fn essence(dump: &str) -> Vec<String> {
    let lines = dump.lines().map(|line| line.split('#').next().unwrap_or_default());
    let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn drbdmeta_dumps_what_create_md_wrote() {
    if !tools::ready("drbdmeta_dumps_what_create_md_wrote", &TOOLS) {
        return;
    }
    let cluster = Setup::default().prepare();
    cluster.alice().done("create-md r0");
    let (ours, theirs) = (cluster.alice().done("dump-md r0"), drbdmeta(6101, &cluster, 0, &["dump-md"]));
    assert!(essence(&ours).len() > 10, "{ours}");
    assert_eq!(essence(&ours), essence(&theirs));
}

#[test]
fn a_used_disk_goes_through_both_tools_and_back() {
    if !tools::ready("a_used_disk_goes_through_both_tools_and_back", &TOOLS) {
        return;
    }
    // Metadata with a history and set bits: written by the daemon.
    let mut cluster = Cluster::start();
    cluster.bob_mut().terminate();
    let mut client = cluster.alice().client();
    (0..50u64).for_each(|block| client.write(block * 262_144, &pattern(4096, block)).unwrap());
    client.disconnect().unwrap();
    assert!(cluster.alice_mut().terminate().success());

    let ours = cluster.alice().done("dump-md r0");
    assert_eq!(essence(&ours), essence(&drbdmeta(6102, &cluster, 0, &["dump-md"])));
    // Their tool restores our dump; ours restores theirs.
    let file = cluster.dir.path().join("dump");
    std::fs::write(&file, &ours).unwrap();
    let file = file.to_str().unwrap();
    cluster.alice().done("create-md r0 --force");
    drbdmeta(6102, &cluster, 0, &["restore-md", file]);
    assert_eq!(essence(&cluster.alice().done("dump-md r0")), essence(&ours));
    std::fs::write(file, drbdmeta(6102, &cluster, 0, &["dump-md"])).unwrap();
    cluster.alice().done("create-md r0 --force");
    cluster.alice().done(&format!("restore-md r0/0 {file} --force"));
    assert_eq!(essence(&cluster.alice().done("dump-md r0")), essence(&ours));

    // And it is still the metadata of this data: bob gets the difference alone.
    for node in &mut cluster.nodes {
        node.start();
        node.done("up r0");
    }
    cluster.assert_equal_copies();
    assert!(cluster.alice().log().contains("of 50 blocks"), "{}", cluster.alice().log());
}

#[test]
fn a_disk_made_by_drbdmeta_is_used_as_it_is() {
    if !tools::ready("a_disk_made_by_drbdmeta_is_used_as_it_is", &TOOLS) {
        return;
    }
    let mut cluster = Setup::default().prepare();
    drbdmeta(6103, &cluster, 0, &["create-md", "1"]);
    drbdmeta(6103, &cluster, 1, &["create-md", "1"]);
    for node in &mut cluster.nodes {
        node.start();
        node.done("up r0");
    }
    cluster.alice().done("wait-connect r0 --timeout 120");
    cluster.alice().done("promote r0 --force");
    cluster.alice().client().write(4096, &pattern(65536, 5)).unwrap();
    cluster.assert_equal_copies();
}
