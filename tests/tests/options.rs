//! Options of a running resource: what `adjust` and the `...-options` commands change, what they refuse, and that no
//! write suffers from it.

use e2e::load::{Load, assert_kept};
use e2e::{Cluster, Node, Setup, tools};

/// Another word in a node's configuration.
fn edit(node: &Node, from: &str, to: &str) {
    let text = std::fs::read_to_string(&node.config).expect("the configuration can be read");
    assert!(text.contains(from), "`{from}` is not in:\n{text}");
    std::fs::write(&node.config, text.replace(from, to)).expect("the configuration can be written");
}

fn edit_all(cluster: &Cluster, from: &str, to: &str) {
    cluster.nodes.iter().for_each(|node| edit(node, from, to));
}

fn protocol(node: &Node) -> String {
    node.state().0.connections[0].replicad.protocol.clone()
}

fn wait_protocol(cluster: &Cluster, wanted: &str) {
    for node in &cluster.nodes {
        node.wait(&format!("protocol {wanted}"), |state| state.0.connections[0].replicad.protocol == wanted);
    }
}

#[test]
fn the_protocol_changes_under_writes_from_either_side() {
    if !tools::ready("the_protocol_changes_under_writes_from_either_side", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    let load = Load::start(&alice.device(), 0, 512);
    let mut before = "C";
    // The Primary's side, the Secondary's, and each protocol after each other.
    for (round, to) in ["A", "C", "B", "A", "B", "C", "A", "C"].into_iter().enumerate() {
        load.wait_acknowledged(50);
        edit_all(&cluster, &format!("protocol = \"{before}\""), &format!("protocol = \"{to}\""));
        let (first, second) = if round % 2 == 0 { (alice, bob) } else { (bob, alice) };
        let said = first.done("adjust r0");
        assert_eq!(said, format!("{}:r0: protocol: {before} -> {to}\n", second.name));
        wait_protocol(&cluster, to);
        for node in &cluster.nodes {
            assert_eq!(node.done("adjust r0"), "", "there is nothing left to do");
        }
        before = to;
    }
    load.wait_acknowledged(50);
    // Under C again: from here on what completed is on both.
    let written = load.stop();
    bob.wait_settled();
    assert_kept(&mut alice.client(), &written);
    cluster.wait_equal_copies();
    alice.wait("nobody holds the device", |state| !state.0.devices[0].open);
    alice.done("demote r0");
    bob.done("promote r0");
    assert_kept(&mut bob.client(), &written);
}

#[test]
fn fio_verifies_while_the_protocol_changes() {
    let name = "fio_verifies_while_the_protocol_changes";
    if !tools::ready(name, &["ip", "fio"]) {
        return;
    }
    let cluster = Cluster::start();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    let uri = alice.nbd_uri();
    let mut changes = 0;
    std::thread::scope(|scope| {
        let fio = scope.spawn(|| tools::fio_verify(&uri, &[]));
        for to in ["A", "B", "C"].into_iter().cycle() {
            let node = if changes % 2 == 0 { alice } else { bob };
            node.done(&format!("net-options r0 --protocol {to}"));
            wait_protocol(&cluster, to);
            changes += 1;
            if to == "C" && fio.is_finished() {
                break;
            }
        }
    });
    assert!(changes >= 3, "{changes} changes");
    for node in &cluster.nodes {
        assert_eq!(node.state().connection(), "Connected");
        assert!(!node.log().contains("ProtocolError"), "{}", node.log());
    }
    cluster.wait_equal_copies();
    cluster.assert_equal_copies();
}

#[test]
fn adjust_changes_what_differs_and_says_what_has_to_wait() {
    if !tools::ready("adjust_changes_what_differs_and_says_what_has_to_wait", &["ip"]) {
        return;
    }
    let cluster = Setup { net: "max-epoch-size = 2048,", ..Setup::default() }.start();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    assert_eq!(alice.done("adjust r0"), "", "it runs as configured");
    edit_all(&cluster, "max-epoch-size = 2048", "max-epoch-size = 20, max-buffers = 100, verify-alg = \"crc32c\"");
    edit_all(&cluster, "for tests", "told to nobody");
    edit_all(
        &cluster,
        "name = \"r0\"\n",
        "name = \"r0\"\ndisk = { al-extents = 67, on-io-error = \"pass_on\", c-max-rate = \"8M\" }\n\
         options = { on-no-data-accessible = \"suspend-io\", peer-ack-delay = 50 }\n",
    );
    let expected = "r0: on-no-data-accessible: io-error -> suspend-io\n\
                    r0: peer-ack-delay: 100 -> 50\n\
                    r0/0: on-io-error: detach -> pass_on\n\
                    r0/0: al-extents: 1237 -> 67 (takes effect at the next attach)\n\
                    bob:r0: max-epoch-size: 2048 -> 20\n\
                    bob:r0: shared-secret: (not shown) -> (not shown) (takes effect at the next connect)\n\
                    bob:r0: verify-alg: none -> crc32c\n\
                    bob:r0: max-buffers: 2048 -> 100\n\
                    bob:r0/0: c-max-rate: 102400K -> 8192K\n";
    assert_eq!(alice.done("adjust r0 --dry-run"), expected);
    assert_eq!(alice.done("adjust r0"), expected, "the dry run changed nothing");
    assert_eq!(alice.done("adjust r0"), "");
    assert_eq!(alice.done("adjust r0 --json"), "{\"result\":\"done\"}\n");
    let json: serde_json::Value = serde_json::from_str(&bob.done("adjust r0 --json")).expect("one value");
    assert_eq!(json["changes"].as_array().map(Vec::len), Some(9));
    assert_eq!(json["changes"][4]["object"], "alice:r0");

    // The new secret holds from the next connect on, the new size of the log from the next attach on.
    alice.wait_settled();
    alice.done("disconnect r0");
    alice.done("connect r0");
    bob.done("connect r0");
    bob.wait_settled();
    bob.done("detach r0");
    assert!(bob.done("dump-md r0/0").contains("al-extents 1237;"), "not before the disk is attached again");
    assert_eq!(bob.done("adjust r0"), "", "attaches, and no option is left");
    bob.wait_settled();
    bob.done("detach r0");
    assert!(bob.done("dump-md r0/0").contains("al-extents 67;"));
    bob.done("attach r0");
    bob.wait_settled();
    for node in &cluster.nodes {
        assert!(!node.log().contains("told to nobody") && !node.done("status r0 --json").contains("told to nobody"));
    }
    alice.client().write(0, &e2e::pattern(1 << 20, 1)).unwrap();
    cluster.assert_equal_copies();
}

#[test]
fn what_is_no_option_is_refused_and_nothing_changes() {
    if !tools::ready("what_is_no_option_is_refused_and_nothing_changes", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let alice = cluster.alice();
    let whole = std::fs::read_to_string(&alice.config).expect("the configuration can be read");
    let cases = [
        ("name = \"r0\"\n", "name = \"r0\"\ndisk = { size = \"4M\" }\n", "size of volume 0"),
        (":7789", ":7790", "address of bob"),
        ("alice.img", "other.img", "disk of volume 0"),
        ("device = \"nbd\"", "device = \"none\"", "device of volume 0"),
        ("node-id = 0", "node-id = 7", "node-id of alice"),
        ("node = \"bob\"", "node = \"berta\"", "no connection to bob, a connection to berta"),
    ];
    for (from, to, named) in cases {
        edit(alice, "protocol = \"C\"", "protocol = \"A\"");
        edit(alice, from, to);
        for command in ["adjust r0", "adjust r0 --dry-run"] {
            let answer = alice.ctl(command);
            assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{named}: {answer:?}");
            assert!(answer.err.contains(named) && answer.err.contains("restart replicad"), "{named}: {answer:?}");
        }
        assert_eq!(protocol(alice), "C", "{named}");
        std::fs::write(&alice.config, &whole).unwrap();
    }
    edit(alice, "protocol = \"C\"", "protocol = \"D\"");
    let answer = alice.ctl("adjust r0");
    assert!(answer.code == 1 && answer.err.contains("protocol"), "{answer:?}");
    std::fs::write(&alice.config, &whole).unwrap();

    for (line, words) in [
        ("net-options r0 --protocol D", "protocol"),
        ("net-options r0 --timeout 300", "ping-int"),
        ("net-options r0/0 --protocol A", "net-options is not for one volume"),
        ("disk-options r0/0 --size 4M", "resize"),
        ("disk-options bob:r0 --al-extents 100", "disk-options is not for one peer"),
        ("resource-options r0/0 --max-io-depth 100", "resource-options is not for one volume"),
        ("peer-device-options r0 --c-max-rate 5", "no unit"),
    ] {
        let answer = alice.ctl(line);
        assert!(answer.code == 1 && answer.err.contains(words), "{line}: {answer:?}");
    }
    for line in ["net-options r0", "net-options r0 --shared-secret x", "disk-options r0/0 --protocol A"] {
        assert_eq!(alice.ctl(line).code, 2, "{line}");
    }
    assert_eq!(alice.done("adjust r0"), "", "nothing was changed");
    cluster.assert_equal_copies();
}

#[test]
fn single_options_hold_until_the_next_adjust() {
    if !tools::ready("single_options_hold_until_the_next_adjust", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let alice = cluster.alice();
    assert_eq!(alice.done("net-options bob:r0 --protocol a"), "bob:r0: protocol: C -> A\n");
    wait_protocol(&cluster, "A");
    assert_eq!(alice.done("net-options r0 --protocol A"), "", "it is A");
    assert_eq!(alice.done("disk-options r0/0 --on-io-error pass_on"), "r0/0: on-io-error: detach -> pass_on\n");
    assert_eq!(alice.done("peer-device-options bob:r0/0 --c-max-rate 8M"), "bob:r0/0: c-max-rate: 102400K -> 8192K\n");
    assert_eq!(alice.done("resource-options r0 --max-io-depth 100"), "r0: max-io-depth: 8000 -> 100\n");
    let back = "r0: max-io-depth: 100 -> 8000\nr0/0: on-io-error: pass_on -> detach\nbob:r0: protocol: A -> C\n\
                bob:r0/0: c-max-rate: 8192K -> 102400K\n";
    assert_eq!(alice.done("adjust all"), back);
    wait_protocol(&cluster, "C");
    assert!(alice.done("status r0 --verbose").contains("protocol:C"));
    cluster.assert_equal_copies();
}

#[test]
fn a_change_while_the_nodes_are_apart_is_found_and_mended_by_adjust() {
    if !tools::ready("a_change_while_the_nodes_are_apart_is_found_and_mended_by_adjust", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    cluster.network.set_link(1, false);
    for node in [alice, bob] {
        node.wait("the peer is gone", |state| state.connection() != "Connected");
    }
    edit_all(&cluster, "protocol = \"C\"", "protocol = \"B\"");
    assert_eq!(alice.done("adjust r0"), "bob:r0: protocol: C -> B\n");
    alice.client().write(0, &e2e::pattern(65536, 1)).unwrap();
    cluster.network.set_link(1, true);
    // Who refuses first may close before the other one has read why: that one goes on trying.
    let refused =
        |node: &&Node| node.state().connection() == "StandAlone" && node.log().contains("option protocol differs");
    let logs = || format!("alice:\n{}\nbob:\n{}", alice.log(), bob.log());
    e2e::wait_for("a node that says no", logs, || [alice, bob].iter().any(refused).then_some(()));
    assert_eq!(bob.done("adjust r0"), "alice:r0: protocol: C -> B\n");
    assert_eq!(alice.done("adjust r0"), "", "connects again if it has to");
    cluster.assert_equal_copies();
    assert_eq!((protocol(alice), protocol(bob)), ("B".into(), "B".into()));
}
