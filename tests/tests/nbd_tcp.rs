//! The volume over the network: a machine that is no node uses it through NBD on TCP, with the programs that people
//! have, while the nodes change roles, lose addresses, and meet strangers and clients that die.

use e2e::network::{address, inside};
use e2e::{Cluster, Node, Setup, pattern, tcp_client, tools};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

fn setup() -> Setup {
    Setup { guests: 1, nbd_tcp: true, ..Setup::default() }
}

fn wait_free(node: &Node) {
    node.wait("nobody holds the device", |state| !state.0.devices[0].open);
}

/// What `status` says is wrong with the address.
fn trouble(node: &Node) -> String {
    node.state().0.devices[0].replicad.nbd_trouble.clone()
}

#[test]
fn another_machine_uses_the_volume_over_tcp() {
    let name = "another_machine_uses_the_volume_over_tcp";
    if !tools::ready(name, &["ip", "nbdinfo", "nbdcopy", "qemu-io", "qemu-img", "fio"]) {
        return;
    }
    let cluster = setup().start();
    let (guest, uri) = (cluster.guest(), cluster.nbd_tcp_uri(0));
    let info = tools::run_in(&guest, "nbdinfo", &["--json", &uri]);
    let size = format!("\"export-size\": {}", cluster.usable_bytes());
    for expected in ["\"export-name\": \"r0.0\"", "\"can_multi_conn\": true", "\"can_fua\": true", &size] {
        assert!(info.contains(expected), "{expected} is missing in\n{info}");
    }
    let all = format!("nbd://{}", cluster.nbd_address(0));
    assert!(tools::run_in(&guest, "nbdinfo", &["--list", &all]).contains("r0.0"));

    // All of it, over four connections, there and back.
    let file = |name: &str| cluster.dir.path().join(name).display().to_string();
    let (source, back) = (file("source"), file("back"));
    let content = pattern(cluster.usable_bytes() as usize, 5);
    std::fs::write(&source, &content).unwrap();
    let many = ["--connections=4", "--threads=4", "--flush"];
    tools::run_in(&guest, "nbdcopy", &[&many[..], &[&source, &uri]].concat());
    tools::run_in(&guest, "nbdcopy", &[&many[..2], &[&uri, &back]].concat());
    assert!(std::fs::read(&back).unwrap() == content, "what came back differs");
    assert!(cluster.data(1) == content, "the peer's copy differs");
    tools::run_in(&guest, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);

    let commands = ["write -P 0x5a 4k 64k", "write -f -P 0x11 0 4k", "write -z 1M 1M", "flush", "read -P 0x5a 4k 64k"];
    let mut words = vec!["-f", "raw", "-t", "none", &uri];
    commands.iter().for_each(|command| words.extend(["-c", command]));
    let answer = tools::run_in(&guest, "qemu-io", &words);
    assert!(!answer.contains("failed"), "{answer}");
    assert!(cluster.data(1)[4096..68 << 10].iter().all(|byte| *byte == 0x5a));

    tools::fio_verify_in(&guest, &uri, &[]);
    wait_free(cluster.alice());
    cluster.assert_equal_copies();
}

#[test]
fn remote_clients_hold_the_device_and_the_service_moves() {
    if !tools::ready("remote_clients_hold_the_device_and_the_service_moves", &["ip"]) {
        return;
    }
    let cluster = setup().start();
    let (alice, bob, guest) = (cluster.alice(), cluster.bob(), cluster.guest());
    let connect = |node: u8| tcp_client(&guest, cluster.nbd_address(node));
    // Three connections at once, one of them local: what one has written, each other reads.
    let (mut one, mut other, mut local) = (connect(0).unwrap(), connect(0).unwrap(), alice.client());
    one.write(0, &pattern(1 << 20, 1)).unwrap();
    other.flush().unwrap();
    for client in [&mut other, &mut local] {
        assert!(client.read(0, 1 << 20).unwrap() == pattern(1 << 20, 1));
    }
    let refused = alice.ctl("demote r0");
    assert_eq!(refused.code, 11, "{refused:?}");
    for words in ["3 NBD clients use volume 0", &format!("from {}:", address(2))] {
        assert!(refused.err.contains(words), "`{words}` is not in: {}", refused.err);
    }
    local.disconnect().unwrap();
    other.disconnect().unwrap();
    assert_eq!(alice.ctl("demote r0").code, 11, "one is left");
    one.disconnect().unwrap();
    wait_free(alice);

    alice.done("demote r0");
    let closed = |node: u8| connect(node).err().map(|error| error.kind());
    assert_eq!(closed(0), Some(ErrorKind::ConnectionRefused), "a Secondary serves nothing");
    bob.done("promote r0");
    let mut client = connect(1).unwrap();
    assert!(client.read(0, 1 << 20).unwrap() == pattern(1 << 20, 1), "bob serves other data");
    client.write(4096, &pattern(4096, 2)).unwrap();
    client.disconnect().unwrap();
    wait_free(bob);

    // Over and over: promote returns when the address serves, whatever of the time before is not gone yet.
    bob.done("demote r0");
    for round in 0..5 {
        alice.done("promote r0");
        let mut client = connect(0).unwrap_or_else(|e| panic!("round {round}: {e}\n{}", alice.log()));
        assert!(client.read(4096, 4096).unwrap() == pattern(4096, 2));
        // Whoever stays when it is forced is put out.
        alice.done("demote r0 --force");
        assert!(client.read(4096, 4096).is_err(), "round {round}: a Secondary still serves");
    }
    assert!(!alice.log().contains("not served on"), "{}", alice.log());
    cluster.assert_equal_copies();
}

#[test]
fn ipv6_serves_as_well() {
    let name = "ipv6_serves_as_well";
    if !tools::ready(name, &["ip", "nbdcopy", "qemu-img"]) {
        return;
    }
    let cluster = Setup { ipv6: true, ..setup() }.start();
    let guest = cluster.guest();
    let source = cluster.dir.path().join("source").display().to_string();
    std::fs::write(&source, pattern(cluster.usable_bytes() as usize, 6)).unwrap();
    assert!(cluster.nbd_tcp_uri(0).starts_with("nbd://[fd99::1]:"));
    tools::run_in(&guest, "nbdcopy", &["--connections=2", "--flush", &source, &cluster.nbd_tcp_uri(0)]);
    wait_free(cluster.alice());
    cluster.alice().done("demote r0");
    cluster.bob().done("promote r0");
    tools::run_in(&guest, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &cluster.nbd_tcp_uri(1)]);
}

/// The promotion succeeds, says what is missing, and it comes when it can.
fn is_served_late(cluster: &Cluster, node: u8, promote: &str, at: SocketAddr, next_step: &str, repair: impl FnOnce()) {
    let primary = &cluster.nodes[usize::from(node)];
    let promoted = primary.ctl(promote);
    assert_eq!(promoted.code, 0, "{promoted:?}");
    let status = primary.done("status r0");
    for words in [&format!("not served on {at}: "), next_step, "trying again every"] {
        for text in [&promoted.err, &status, &trouble(primary), &primary.log()] {
            assert!(text.contains(words), "`{words}` is not in: {text}");
        }
    }
    primary.client().write(0, &pattern(4096, u64::from(node))).unwrap();
    // Said once, however often it is tried.
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!(primary.log().matches("not served on").count(), 1, "{}", primary.log());
    repair();
    primary.wait("the address serves", |state| state.0.devices[0].replicad.nbd_trouble.is_empty());
    assert!(!primary.done("status r0").contains("not served on"));
    let shown = primary.done("status r0 --verbose");
    assert!(shown.contains(&format!("nbd:{at}")), "{shown}");
    let mut client = tcp_client(&cluster.guest(), at).unwrap();
    assert!(client.read(0, 4096).unwrap() == pattern(4096, u64::from(node)));
    client.disconnect().unwrap();
    wait_free(primary);
    primary.done("demote r0");
}

#[test]
fn an_address_that_comes_late_is_served_late() {
    if !tools::ready("an_address_that_comes_late_is_served_late", &["ip"]) {
        return;
    }
    // Bob's is a floating address, which nobody has moved to him yet.
    let floating: SocketAddr = "10.99.0.77:10809".parse().unwrap();
    let differs = vec![(1, "nbd:10.99.0.2:10809", format!("nbd:{floating}"))];
    let cluster = Setup { differs, ..setup() }.up();
    cluster.nodes.iter().for_each(|node| drop(node.done("wait-connect r0 --timeout 120")));
    // On alice, another program has the port.
    let at = cluster.nbd_address(0);
    let other = inside(&cluster.alice().namespace, || TcpListener::bind(at)).unwrap();
    is_served_late(&cluster, 0, "promote r0 --force", at, "ss -ltnp 'sport = :10809'", || drop(other));
    cluster.nodes.iter().for_each(|node| drop(node.wait_settled()));
    let give = || cluster.network.add_address(1, "10.99.0.77/24");
    is_served_late(&cluster, 1, "promote r0", floating, "add the address to this host", give);
}

#[test]
fn a_client_that_dies_lets_go_of_the_device() {
    if !tools::ready("a_client_that_dies_lets_go_of_the_device", &["ip"]) {
        return;
    }
    let cluster = setup().start();
    let (alice, guest) = (cluster.alice(), cluster.guest());
    let connect = || tcp_client(&guest, cluster.nbd_address(0)).unwrap();
    // One idle, one in the middle of a write, one with answers on their way: for the kernel three different deaths.
    let (idle, mut writing, mut reading) = (connect(), connect(), connect());
    writing.begin_write(0, 1 << 20, &pattern(4096, 1)).unwrap();
    (0..32).for_each(|_| reading.ask(0, 1 << 20).unwrap());
    assert!(alice.state().0.devices[0].open);
    cluster.network.set_link(2, false);
    wait_free(alice);
    alice.done("demote r0");
    alice.done("promote r0");
    alice.client().write(0, &pattern(1 << 20, 3)).unwrap();
    drop((idle, writing, reading));
    cluster.assert_equal_copies();
}

#[test]
fn strangers_get_little_and_for_a_short_time() {
    if !tools::ready("strangers_get_little_and_for_a_short_time", &["ip"]) {
        return;
    }
    let mut cluster = setup().start();
    let (guest, at) = (cluster.guest(), cluster.nbd_address(0));
    let stranger = || inside(&guest, || TcpStream::connect(at)).unwrap();
    // Bytes of other protocols, and of none.
    for seed in 1..200 {
        let bytes = if seed % 2 == 0 { b"GET / HTTP/1.1\r\nHost: alice\r\n\r\n".to_vec() } else { pattern(3000, seed) };
        // It may be cut off before it has said all.
        let _ = stranger().write_all(&bytes);
    }
    // More that say nothing than there are places: the last ones are closed at once.
    let mut silent: Vec<TcpStream> = (0..80).map(|_| stranger()).collect();
    let mut greeting = Vec::new();
    let _ = silent.last_mut().unwrap().read_to_end(&mut greeting);
    assert!(greeting.is_empty(), "a stranger too many was greeted");
    let alice = cluster.alice();
    assert!(!alice.state().0.devices[0].open, "nobody chose the export");
    // The local ones have their own places, and replication does not care.
    alice.client().write(0, &pattern(65536, 1)).unwrap();
    // The places come back, without anybody's help.
    let connected = || tcp_client(&guest, at).ok();
    let mut client = e2e::wait_for("a place for a client", || alice.log(), connected);
    assert!(client.read(0, 65536).unwrap() == pattern(65536, 1));
    // Which of them got a place depends on how soon the ones before had left theirs.
    let greeted = |stranger: &mut TcpStream| {
        let mut greeting = Vec::new();
        let _ = stranger.read_to_end(&mut greeting);
        greeting.starts_with(b"NBDMAGIC")
    };
    assert!(silent.iter_mut().any(greeted), "nobody was greeted, then cut");
    let lines = alice.log().lines().filter(|line| line.contains("NBD client")).count();
    assert!((1..10).contains(&lines), "{lines} lines of the log are theirs\n{}", alice.log());
    client.disconnect().unwrap();
    cluster.assert_equal_copies();
    assert!(cluster.alice_mut().is_alive());
}
