//! What a node gets out of a configuration: the innermost explicit value.

use config::words::{AfterSb0Pri, Hash, Protocol, Quorum};
use config::{Config, Device, Disk, Handler, MetaDisk};
use std::path::Path;
use std::time::Duration;
use types::{NodeId, VolumeNumber};

fn good(file: &str) -> Config {
    Config::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good").join(file)).unwrap()
}

fn volume(number: u16) -> VolumeNumber {
    VolumeNumber::new(number).unwrap()
}

#[test]
fn two_nodes() {
    let config = good("two-nodes.toml");
    let [alice] = &config.for_node("alice").unwrap()[..] else { panic!("one resource") };
    let [bob] = &config.for_node("BOB.example.org").unwrap()[..] else { panic!("one resource") };
    assert_eq!(alice.node.id, NodeId::new(0).unwrap());
    assert_eq!(alice.volumes()[0].disk, Disk::Path("/dev/vg0/r0".into()));
    assert_eq!(bob.volumes()[0].disk, Disk::Path("/dev/vg1/r0".into()));
    assert_eq!(bob.volumes()[0].device, Device::Ublk(10));
    assert_eq!(bob.volumes()[0].meta_disk, MetaDisk::Internal);
    assert_eq!(bob.volumes()[0].options.al_extents, 6007);
    let net = &alice.peers[0].net;
    assert_eq!(
        (net.protocol, net.cram_hmac_alg, net.verify_alg),
        (Protocol::C, Some(Hash::Sha256), Some(Hash::Crc32c))
    );
    assert_eq!((net.timeout, net.connect_int), (Duration::from_secs(6), Duration::from_secs(10)));
    assert_eq!(net.after_sb_0pri, AfterSb0Pri::DiscardZeroChanges);
    assert_eq!(net.shared_secret.expose(), "change me");
    let path = alice.peers[0].paths[0];
    assert_eq!((path.local.to_string(), path.remote.to_string()), ("10.1.1.31:7789".into(), "10.1.1.32:7789".into()));
    assert_eq!((bob.peers[0].paths[0].local, bob.peers[0].paths[0].remote), (path.remote, path.local));
    let peer = &alice.peers[0].volumes[&volume(0)];
    assert!(peer.has_disk && peer.options.bitmap);
    assert_eq!((peer.options.c_max_rate, peer.options.c_min_rate), (200 << 20, 10 << 20));
    let program = vec!["/usr/lib/replicad/notify-split-brain".to_string(), "root".into()];
    assert_eq!(alice.handlers["split-brain"], Handler::Program(program));
    assert!(!format!("{config:?}").contains("change me"), "the secret shows in Debug");
}

#[test]
fn three_nodes_one_without_disk() {
    let config = good("three-nodes.toml");
    let alice = &config.for_node("alice").unwrap()[0];
    assert_eq!(alice.options.quorum, Quorum::Majority);
    assert_eq!(alice.peers.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["bob", "carol.example.org"]);
    let (bob, carol) = (&alice.peers[0], &alice.peers[1]);
    assert_eq!(bob.paths.len(), 2);
    assert_eq!(bob.paths[1].local, "10.2.1.31:7790".parse().unwrap());
    assert_eq!(bob.volumes[&volume(0)].options.c_max_rate, 500 << 20);
    assert_eq!(bob.volumes[&volume(1)].options.c_max_rate, 1 << 30);
    assert_eq!(carol.volumes[&volume(0)].options.c_max_rate, 100 << 20);
    assert!(!carol.volumes[&volume(0)].has_disk && !carol.volumes[&volume(0)].options.bitmap);
    assert!(carol.volumes[&volume(0)].options.peer_tiebreaker && !carol.volumes[&volume(1)].options.peer_tiebreaker);
    assert_eq!((carol.net.timeout, bob.net.timeout), (Duration::from_secs(9), Duration::from_secs(6)));
    assert_eq!(carol.paths[0].local, "[fd00::31]:7790".parse().unwrap());
    let own = &config.for_node("carol").unwrap()[0];
    assert_eq!(own.volumes()[1].disk, Disk::None);
    assert_eq!(own.volumes()[1].meta_disk, MetaDisk::Internal);
    assert_eq!(alice.volumes()[1].meta_disk, MetaDisk::External("/dev/nvme0n1p4".into()));
    assert_eq!(alice.volumes()[0].options.rs_discard_granularity, 64 << 10);
    // Each node serves NBD on an address of its own, or on its socket alone.
    assert_eq!(alice.volumes()[1].device, Device::Nbd { listen: Some("[fd00::31]:10809".parse().unwrap()) });
    assert_eq!(own.volumes()[1].device, Device::Nbd { listen: None });
    assert_eq!(alice.volumes()[0].device, own.volumes()[0].device);
}

#[test]
fn the_example_of_the_nbd_document_gives_each_node_its_address() {
    let document = include_str!("../../../docs/nbd.md");
    let (_, rest) = document.split_once("```toml\n").unwrap();
    let config = Config::parse(Path::new("nbd.md"), rest.split_once("```").unwrap().0).unwrap();
    for (node, address) in [("alice", "10.2.0.31:10809"), ("bob", "10.2.0.32:10809")] {
        let own = &config.for_node(node).unwrap()[0];
        assert_eq!(own.volumes()[0].device, Device::Nbd { listen: Some(address.parse().unwrap()) });
    }
    assert_eq!(config.warnings, []);
}

#[test]
fn a_node_that_is_not_there_is_told_who_is() {
    let error = good("three-nodes.toml").for_node("dave").unwrap_err().to_string();
    assert_eq!(
        error,
        "error: no resource has an `on` entry for node `dave`, only for alice, bob, carol.example.org; \
         give the right name with --node, or add the node to the configuration"
    );
}

#[test]
fn a_mesh_limits_who_talks() {
    let text = r#"
        [[resource]]
        name = "r0"
        mesh = [["a", "b"]]
        volume = [{ number = 0, device = "none", disk = "/d" }]
        on = [
            { node = "a", node-id = 0, address = "10.0.0.1:1" },
            { node = "b", node-id = 1, address = "10.0.0.2:1" },
            { node = "c", node-id = 5, address = "10.0.0.3:1" },
        ]
        connection = [{ nodes = ["c", "a"] }]
    "#;
    let config = Config::parse(Path::new("mesh.toml"), text).unwrap();
    let pairs: Vec<_> = config.resources[0].connections.iter().map(|c| c.nodes.map(NodeId::get)).collect();
    assert_eq!(pairs, [[0, 1], [0, 5]]);
}

#[test]
fn a_directory_is_one_configuration() {
    let folder = std::env::temp_dir().join(format!("replicad-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let resource = |name: &str, port: u16| {
        format!(
            "[[resource]]\nname = \"{name}\"\nvolume = [{{ number = 0, device = \"none\", disk = \"/{name}\" }}]\n\
             on = [{{ node = \"a\", node-id = 0, address = \"10.0.0.1:{port}\" }}]\n"
        )
    };
    std::fs::write(folder.join("10-common.toml"), "[common.net]\nping-timeout = 7\n").unwrap();
    std::fs::write(folder.join("b.toml"), resource("b", 2)).unwrap();
    std::fs::write(folder.join("a.toml"), resource("a", 1)).unwrap();
    std::fs::write(folder.join("notes.txt"), "no TOML").unwrap();
    let config = Config::load(&folder).unwrap();
    assert_eq!(config.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(config.resources[0].net.ping_timeout, Duration::from_millis(700));
    std::fs::write(folder.join("c.toml"), "[common.net]\nping-timeout = 8\n").unwrap();
    let error = Config::load(&folder).unwrap_err().to_string();
    assert!(error.contains("sets net: ping-timeout, which another file of the directory sets, too"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
    let error = Config::load(&folder).unwrap_err().to_string();
    assert!(error.contains("cannot read the configuration"), "{error}");
}
