//! One daemon and what goes wrong around it: refusals, garbage, usage.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command as Process;

use control::{Command, Response, Target};
use support::{Cluster, PATIENCE, r0};

fn refused(response: Response) -> (i32, String, String) {
    match response {
        Response::Refused { code, message, next_step, .. } => (code, message, next_step.unwrap_or_default()),
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn a_disk_without_metadata_is_refused_with_the_next_step() {
    let cluster = Cluster::without_metadata(2);
    let node = cluster.start(0);
    let (code, message, next_step) = refused(node.ask(Command::Up { target: r0() }));
    assert_eq!(code, 119, "{message}");
    assert!(message.contains("No valid meta-data signature found"), "{message}");
    assert!(next_step.contains("replicactl create-md r0/0"), "{next_step}");
    assert_eq!(node.report().devices[0].disk_state, "Diskless");
}

#[test]
fn metadata_with_an_index_is_refused_with_the_next_step() {
    let cluster = Cluster::new(2);
    cluster.use_external_metadata(0, 16 << 20, 128 << 20, 1);
    let text = std::fs::read_to_string(&cluster.config).unwrap();
    let indexed = text.replace("meta0.img\"", "meta0.img [0]\"");
    assert_ne!(indexed, text);
    std::fs::write(&cluster.config, indexed).unwrap();
    let node = cluster.start(0);
    let (code, message, next_step) = refused(node.ask(Command::Up { target: r0() }));
    assert_eq!(code, 116, "{message}");
    assert!(message.contains("meta0.img index 0") && next_step.contains("of its own"), "{message}; {next_step}");
    assert_eq!(node.report().devices[0].disk_state, "Diskless");
}

#[test]
fn a_disk_in_use_is_refused() {
    let cluster = Cluster::new(2);
    let file = File::open(cluster.disk(0)).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let node = cluster.start(0);
    let (code, message, _) = refused(node.ask(Command::Attach { target: r0() }));
    assert_eq!(code, 114, "{message}");
    drop(file);
    node.done(Command::Attach { target: r0() });
    let (code, _, _) = refused(node.ask(Command::Attach { target: r0() }));
    assert_eq!(code, 124);
    node.done(Command::Detach { target: r0(), force: false });
    node.done(Command::Attach { target: r0() });
}

#[test]
fn promotion_without_good_data_is_refused_and_the_rule_is_named() {
    let cluster = Cluster::new(2);
    let node = cluster.start(0);
    node.done(Command::Attach { target: r0() });
    let (code, message, _) = refused(node.ask(Command::Promote { target: r0(), force: false }));
    assert_eq!((code, message.as_str()), (-2, "Need access to UpToDate data"));
    node.promote(true);
    assert_eq!(node.report().role, "Primary");
    let mut client = node.nbd();
    client.write(4096, &[7; 4096]).unwrap();
    assert_eq!(client.read(4096, 4096).unwrap(), [7; 4096]);
}

#[test]
fn what_does_not_exist_is_unknown() {
    let cluster = Cluster::new(2);
    let node = cluster.start(0);
    for target in ["r9", "r0/7", "nobody:r0"] {
        let target: Target = target.parse().unwrap();
        let answer = node.ask(Command::Dstate { target: target.clone() });
        assert!(matches!(answer, Response::Unknown { .. }), "{target}: {answer:?}");
    }
    let answer = node.ask(Command::WaitConnect { target: r0(), timeout_s: Some(0) });
    assert!(matches!(answer, Response::TimedOut { .. }), "{answer:?}");
}

#[test]
fn a_command_for_more_than_was_named_is_refused() {
    let cluster = Cluster::new(2);
    let node = cluster.start(0);
    node.done(Command::Attach { target: r0() });
    let (volume, peer) = (Target { volume: Some(0), ..r0() }, Target { peer: Some("n1".into()), ..r0() });
    let commands = [
        (Command::Down { target: volume.clone() }, "down is not for one volume"),
        (Command::Promote { target: volume.clone(), force: true }, "promote is not for one volume"),
        (Command::Disconnect { target: volume, force: true }, "disconnect is not for one volume"),
        (Command::Invalidate { target: peer.clone(), from_peer: None }, "invalidate is not for one peer"),
        (Command::Detach { target: peer, force: true }, "detach is not for one peer"),
    ];
    for (command, expected) in commands {
        let (code, message, next_step) = refused(node.ask(command));
        assert_eq!((code, message.as_str()), (0, expected));
        assert!(next_step.contains("nothing was changed"), "{next_step}");
    }
    assert_eq!(
        (node.report().role.as_str(), node.report().devices[0].disk_state.as_str()),
        ("Secondary", "Inconsistent")
    );
}

#[test]
fn events_begin_with_the_present_state() {
    let cluster = Cluster::new(2);
    let node = cluster.start(0);
    let lines: Vec<String> = node
        .answers(Command::Events { target: r0(), now: true, statistics: false })
        .iter()
        .filter_map(|answer| if let Response::Event { event } = answer { Some(event.to_string()) } else { None })
        .collect();
    assert!(lines[0].starts_with("exists resource name:r0 role:Secondary"), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "exists -");
}

/// What a client may write into the socket: nothing of it may matter to anybody else.
#[test]
fn no_bytes_on_the_control_socket_end_the_daemon() {
    let cluster = Cluster::new(2);
    let node = cluster.start(0);
    let nested = format!("{{\"version\":1,\"command\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let long = "x".repeat(control::LINE_BYTES_MAX + 1);
    let lines = [
        "",
        "null",
        "{}",
        "[]",
        "\u{0}\u{1}é",
        "GET / HTTP/1.1",
        r#"{"version":1}"#,
        r#"{"version":2,"command":"status"}"#,
        r#"{"version":-1,"command":"status"}"#,
        r#"{"version":1,"command":"status"}"#,
        r#"{"version":1,"command":"no-such-command","target":{"resource":"r0"}}"#,
        r#"{"version":1,"command":"status","target":{"resource":7}}"#,
        r#"{"version":1,"command":"wait-sync","target":{"resource":"r0"},"timeout_s":-1}"#,
        r#"{"version":1,"command":"wait-sync","target":{"resource":"r0","volume":65536},"timeout_s":0}"#,
        &nested,
        &long,
    ];
    for line in lines {
        let shown: String = line.chars().take(80).collect();
        let mut stream = UnixStream::connect(node.run_dir.join(control::SOCKET_NAME)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The daemon may have hung up on the longest one before all of it was written.
        let _ = stream.write_all(format!("{line}\n").as_bytes());
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("\"response\":\"error\""), "{shown}: {answer}");
    }
    let mut half = UnixStream::connect(node.run_dir.join(control::SOCKET_NAME)).unwrap();
    half.write_all(br#"{"version":1,"#).unwrap();
    drop(half);
    assert_eq!(node.report().name, "r0");
}

#[test]
fn no_target_of_any_command_ends_the_daemon() {
    let cluster = Cluster::new(2);
    let node = cluster.start(0);
    let targets = [
        Target::ALL,
        r0(),
        Target { volume: Some(0), ..r0() },
        Target { volume: Some(u16::MAX), ..r0() },
        Target { peer: Some("n1".into()), ..r0() },
        Target { peer: Some("n0".into()), volume: Some(9), ..r0() },
        Target { peer: Some(String::new()), ..Target::resource("") },
        Target::resource(&"x".repeat(100_000)),
    ];
    // Twice: without and with a disk, a role and a device.
    for round in 0..2 {
        for target in targets.clone() {
            let (force, from_peer) = (true, Some("n7".to_string()));
            let at = || target.clone();
            let commands = [
                Command::Adjust { target: at(), dry_run: false },
                Command::Attach { target: at() },
                Command::Connect { target: at(), discard_my_data: true },
                Command::Promote { target: at(), force },
                Command::Status { target: at() },
                Command::Events { target: at(), now: true, statistics: true },
                Command::Role { target: at() },
                Command::Cstate { target: at() },
                Command::Dstate { target: at() },
                Command::WaitConnect { target: at(), timeout_s: Some(0) },
                Command::WaitSync { target: at(), timeout_s: Some(0) },
                Command::Invalidate { target: at(), from_peer },
                Command::Invalidate { target: at(), from_peer: None },
                Command::InvalidateRemote { target: at() },
                Command::PauseSync { target: at() },
                Command::ResumeSync { target: at() },
                Command::NewCurrentUuid { target: at(), clear_bitmap: true },
                Command::Outdate { target: at() },
                Command::GetGi { target: at() },
                Command::ShowGi { target: at() },
                Command::Disconnect { target: at(), force },
                Command::Demote { target: at(), force },
                Command::Detach { target: at(), force },
                Command::Up { target: at() },
                Command::Down { target: at() },
            ];
            for command in commands {
                node.ask(command);
            }
        }
        if round == 0 {
            node.done(Command::Attach { target: r0() });
            node.promote(true);
        }
    }
    assert_eq!(node.report().name, "r0");
}

/// From a peer's address.
fn connect_from(peer: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(peer.ip(), 0).into())?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ends(mut stream: TcpStream) -> bool {
    let mut rest = Vec::new();
    // A reset is an end, too.
    stream.read_to_end(&mut rest).map_or_else(|e| e.kind() == std::io::ErrorKind::ConnectionReset, |_| true)
}

#[test]
fn garbage_on_the_port_is_closed_and_a_misbehaving_peer_is_dropped() {
    let cluster = Cluster::new(2);
    let (own, peer) = (cluster.address(0), cluster.address(1));
    let node = cluster.start(0);
    node.done(Command::Up { target: r0() });
    node.wait_until("it listens", || connect_from(peer, own).is_ok());

    let mut garbage = connect_from(peer, own).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(ends(garbage));
    let stranger = connect_from("127.0.0.1:0".parse().unwrap(), own).unwrap();
    assert!(ends(stranger));

    // A peer that makes both sockets properly, then talks nonsense. It listens, too: this node's own attempt becomes
    // one of the two sockets, or is replaced.
    let _listener = TcpListener::bind(peer).unwrap();
    let mut data = connect_from(peer, own).unwrap();
    data.write_all(&wire::first_packet(wire::Socket::Data)).unwrap();
    let mut control = connect_from(peer, own).unwrap();
    control.write_all(&wire::first_packet(wire::Socket::Control)).unwrap();
    data.write_all(&[0xee; 64]).unwrap();
    assert!(ends(data));
    node.wait_until("the reason is logged", || node.log().contains("magic"));
    // It lives, and keeps looking for the peer.
    let state = node.report().connections[0].connection_state.clone();
    assert!(["Unconnected", "Connecting", "ProtocolError"].contains(&state.as_str()), "{state}");
}

#[test]
fn usage_and_configuration_errors_end_with_2() {
    let cluster = Cluster::new(2);
    let run = |arguments: &[&str]| {
        let mut process = Process::new(env!("CARGO_BIN_EXE_replicad"));
        process.args(arguments).arg("--run-dir").arg(cluster.dir.path().join("run-x")).output().unwrap()
    };
    assert_eq!(run(&["--no-such-option"]).status.code(), Some(2));
    let missing = run(&["--config", "/no/such/file.toml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/file.toml"));

    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut unheard = Process::new(env!("CARGO_BIN_EXE_replicad"));
    unheard.args(["--config", "/no/such/file.toml"]).stderr(full);
    assert_eq!(unheard.status().unwrap().code(), Some(2), "also where stderr is on a full disk");

    let config = cluster.dir.path().join("replicad.toml").display().to_string();
    let stranger = run(&["--config", &config, "--node", "nobody"]);
    assert_eq!(stranger.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&stranger.stderr).contains("n0"), "names the nodes that there are");
}

#[test]
fn a_second_daemon_on_the_same_run_directory_is_refused() {
    let cluster = Cluster::new(2);
    let first = cluster.start(0);
    let second = Process::new(env!("CARGO_BIN_EXE_replicad"))
        .arg("--config")
        .arg(cluster.dir.path().join("replicad.toml"))
        .args(["--node", "n0", "--run-dir"])
        .arg(&first.run_dir)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another replicad"));
    assert_eq!(first.report().name, "r0");
}
