//! Metadata on a device of its own: its size and that of the data are whatever the operator has.

mod support;

use control::Command;
use support::{Cluster, r0};

const MIB: u64 = 1 << 20;

/// Neither size needs to be a multiple of a page, nor fit the other.
#[test]
fn external_metadata_of_any_size_serves_what_it_has_bits_for() {
    let cases = [
        ("the bitmap ends within a page", 16 * MIB, (256 << 10) + 512, 16 * MIB),
        ("the data ends within a sector", 16 * MIB + 700, 256 << 10, 16 * MIB + 512),
        // One slot: 32 KiB less superblock and log, a bit for 4 KiB.
        ("the bitmap is too small for the data", 4096 * MIB, 72 << 10, 1152 * MIB),
        ("the metadata has a disk of its own", 16 * MIB, 1 << 40, 16 * MIB),
    ];
    for (what, data_bytes, meta_bytes, usable) in cases {
        println!("{what}");
        let cluster = Cluster::without_metadata(2);
        cluster.use_external_metadata(0, data_bytes, meta_bytes, 1);
        let node = cluster.start(0);
        node.done(Command::Attach { target: r0() });
        node.promote(true);
        let mut client = node.nbd();
        assert_eq!(client.size_bytes, usable, "{what}");
        client.write(usable - 512, &[7; 512]).unwrap();
        client.disconnect().unwrap();
        for _ in 0..2 {
            node.done(Command::Down { target: r0() });
            node.done(Command::Attach { target: r0() });
        }
        assert_eq!(node.report().devices[0].size, usable / 1024, "{what}");
    }
}

/// The size goes to the peer in sectors.
#[test]
fn a_peer_connects_to_a_disk_that_ends_within_a_sector() {
    let cluster = Cluster::new(2);
    cluster.use_external_metadata(0, 16 * MIB + 700, 256 << 10, 1);
    let nodes = cluster.start_all();
    nodes[1].promote(true);
    nodes[0].wait_in_sync();
    assert_eq!(nodes[0].report().devices[0].size, nodes[1].report().devices[0].size);
}
