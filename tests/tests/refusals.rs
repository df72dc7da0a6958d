//! Peers that do not fit: each is refused with a reason that names it, and the others go on.

use e2e::{Client, Cluster, Node, Setup, pattern, tools};
use std::io::Write;
use std::process::{Command, Stdio};
use wire::message::ConnectionFeatures;

#[test]
fn split_brain_is_refused_and_told_on_both_sides() {
    if !tools::ready("split_brain_is_refused_and_told_on_both_sides", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    cluster.network.set_link(1, false);
    for node in [alice, bob] {
        node.wait("the peer is gone", |state| state.connection() != "Connected");
    }
    alice.client().write(0, &pattern(65536, 1)).unwrap();
    bob.done("promote r0 --force");
    bob.client().write(1 << 20, &pattern(65536, 2)).unwrap();
    let (of_alice, of_bob) = (cluster.data(0), cluster.data(1));
    cluster.network.set_link(1, true);
    for node in [alice, bob] {
        node.wait_connection("StandAlone");
        assert!(node.log().contains("split brain"), "{}", node.log());
        let text = node.done("status r0");
        assert!(text.contains("replicactl connect"), "the status does not say what to do:\n{text}");
    }
    assert!(cluster.data(0) == of_alice && cluster.data(1) == of_bob, "data was changed");

    // One gives up its changes, as the message says.
    bob.wait("nobody holds the device", |state| !state.0.devices[0].open);
    bob.done("demote r0");
    bob.done("connect r0 --discard-my-data");
    alice.done("connect r0");
    cluster.assert_equal_copies();
    assert!(cluster.data(1)[..65536] == of_alice[..65536], "the victim kept its own");
    assert!(cluster.data(1)[1 << 20..][..65536] == of_alice[1 << 20..][..65536]);
}

/// Bob's configuration differs: the nodes never connect, and a log says why with all of `words`.
fn mismatch(name: &str, from: &'static str, to: &str, words: &[&str]) {
    if !tools::ready(name, &["ip"]) {
        return;
    }
    let mut cluster = Setup { differs: vec![(1, from, to.to_string())], ..Setup::default() }.up();
    let told = |node: &Node| words.iter().all(|word| node.log().contains(word));
    let logs = || format!("alice:\n{}\nbob:\n{}", cluster.alice().log(), cluster.bob().log());
    e2e::wait_for(&format!("{words:?} in a log"), logs, || cluster.nodes.iter().any(told).then_some(()));
    for node in &mut cluster.nodes {
        assert!(node.is_alive(), "{}", node.log());
        assert_ne!(node.state().connection(), "Connected");
        assert_eq!(node.state().disk(), "Inconsistent", "nothing was changed");
    }
}

#[test]
fn another_secret_is_refused() {
    mismatch("another_secret_is_refused", "for tests", "for others", &["secret"]);
}

#[test]
fn another_protocol_is_refused() {
    mismatch("another_protocol_is_refused", "protocol = \"C\"", "protocol = \"A\"", &["protocol"]);
}

#[test]
fn another_node_id_is_refused() {
    mismatch("another_node_id_is_refused", "node-id = 1", "node-id = 5", &["node"]);
}

#[test]
fn another_resource_is_refused() {
    let name = "another_resource_is_refused";
    if !tools::ready(name, &["ip"]) {
        return;
    }
    let mut cluster =
        Setup { differs: vec![(1, "name = \"r0\"", "name = \"other\"".into())], ..Setup::default() }.prepare();
    for (node, resource) in cluster.nodes.iter_mut().zip(["r0", "other"]) {
        node.done(&format!("create-md {resource}"));
        node.start_without_r0();
        node.done(&format!("up {resource}"));
    }
    let told =
        |node: &Node| node.log().contains("resource") && (node.log().contains("other") || node.log().contains("r0"));
    let logs = || format!("alice:\n{}\nbob:\n{}", cluster.alice().log(), cluster.bob().log());
    e2e::wait_for("a word about the resource", logs, || cluster.nodes.iter().any(told).then_some(()));
    assert_ne!(cluster.alice().state().connection(), "Connected");
}

#[test]
fn a_peer_with_a_smaller_disk_is_refused_and_named() {
    let name = "a_peer_with_a_smaller_disk_is_refused_and_named";
    if !tools::ready(name, &["ip"]) {
        return;
    }
    // Equal copies first, then bob comes back with a smaller disk and fresh metadata.
    let mut cluster = Cluster::start();
    cluster.bob_mut().terminate();
    std::fs::File::create(&cluster.bob().disk).and_then(|f| f.set_len(32 << 20)).unwrap();
    cluster.bob().done("create-md r0");
    cluster.bob_mut().start();
    cluster.bob().done("up r0");
    let logs = || format!("alice:\n{}\nbob:\n{}", cluster.alice().log(), cluster.bob().log());
    let told = |node: &Node| node.log().contains("size") || node.log().contains("smaller");
    e2e::wait_for("a word about the size", logs, || cluster.nodes.iter().any(told).then_some(()));
    let mut client: Client = cluster.alice().client();
    assert_eq!(client.size_bytes, cluster.usable_bytes(), "the Primary shrank under its user");
    client.write(client.size_bytes - 4096, &pattern(4096, 4)).unwrap();
    let bob = cluster.bob().state();
    assert_ne!((bob.connection(), bob.disk()), ("Connected", "UpToDate"));
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    if !tools::ready("garbage_on_the_port_harms_nobody", &["ip"]) {
        return;
    }
    let mut cluster = Cluster::start();
    let address = e2e::network::address(0);
    // From bob's namespace, with the shell's own sockets: nothing more has to be installed.
    let throw = |bytes: &[u8]| {
        let script = format!("exec 3<>/dev/tcp/{address}/7789 && cat >&3");
        let mut shell = Command::new("ip")
            .args(["netns", "exec", &cluster.bob().namespace, "bash", "-c", &script])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The daemon may close before it has it all: that is the point.
        let _ = shell.stdin.take().unwrap().write_all(bytes);
        let _ = shell.wait();
    };
    throw(b"GET / HTTP/1.1\r\nHost: alice\r\n\r\n");
    throw(&[0; 4096]);
    throw(&[0xff; 65536]);
    (0..8).for_each(|seed| throw(&pattern(3000, seed + 1)));
    // A header of the first packet with a length beyond all reason.
    throw(&[0x86, 0x20, 0xec, 0x20, 0x00, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    throw(&[]);
    assert!(cluster.alice_mut().is_alive() && cluster.bob_mut().is_alive());
    cluster.alice().client().write(0, &pattern(65536, 9)).unwrap();
    cluster.assert_equal_copies();
    assert_eq!(cluster.alice().log().matches("connection Connected -> ").count(), 0, "the good peer was cut");
}

#[test]
fn a_peer_that_speaks_only_other_versions_is_refused_and_named() {
    if !tools::ready("a_peer_that_speaks_only_other_versions_is_refused_and_named", &["ip", "bash"]) {
        return;
    }
    let mut cluster = Setup::default().prepare();
    cluster.alice().done("create-md r0");
    cluster.alice_mut().start();
    cluster.alice().done("up r0");
    for (protocol_min, protocol_max) in [(200, 210), (86, 99)] {
        let mut data = wire::first_packet(wire::Socket::Data).to_vec();
        let offer = ConnectionFeatures {
            protocol_min,
            protocol_max,
            features: wire::version::FEATURES_OFFERED,
            sender_node_id: 1,
            receiver_node_id: 0,
        };
        wire::encode(&wire::Context::UNAGREED, None, &wire::Message::ConnectionFeatures(offer), &mut data);
        let file = |name: &str, bytes: &[u8]| {
            let path = cluster.dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let (data, control) = (file("data", &data), file("control", &wire::first_packet(wire::Socket::Control)));
        let port = format!("/dev/tcp/{}/7789", e2e::network::address(0));
        // Ends when alice closes.
        let script = format!("exec 3<>{port} 4<>{port} && cat {data} >&3 && cat {control} >&4 && cat <&3 >/dev/null");
        let told = format!("{protocol_max}");
        let logs = || cluster.alice().log();
        e2e::wait_for("a word about the versions", logs, || {
            // Alice may be between two attempts: the peer tries again, as peers do.
            tools::output("timeout", &["10", "ip", "netns", "exec", &cluster.bob().namespace, "bash", "-c", &script]);
            cluster.alice().log().lines().any(|l| l.contains("version") && l.contains(&told)).then_some(())
        });
        // Told once, not tried for ever; until somebody says so.
        cluster.alice().wait_connection("StandAlone");
        cluster.alice().done("connect r0");
    }
    assert!(cluster.alice_mut().is_alive());
    assert_eq!(cluster.alice().state().disk(), "Inconsistent", "nothing was changed");
}
