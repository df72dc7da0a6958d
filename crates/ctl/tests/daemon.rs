//! The conversation with the daemon: a stand-in plays its part with the real protocol.

mod common;

use common::{Answer, replicactl};
use control::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;
use tempfile::TempDir;

/// Answers one client with `responses` and gives back what it asked.
fn daemon(folder: &Path, responses: Vec<Response>) -> JoinHandle<Command> {
    let listener = UnixListener::bind(folder.join(SOCKET_NAME)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = Vec::new();
        BufReader::new(&stream).read_until(b'\n', &mut line).unwrap();
        for response in responses {
            stream.write_all(&encode_line(&Reply::new(response)).unwrap()).unwrap();
        }
        decode_line::<Request>(&line).unwrap().command
    })
}

fn ask(arguments: &str, responses: Vec<Response>) -> (Answer, Command) {
    let folder = TempDir::new().unwrap();
    let daemon = daemon(folder.path(), responses);
    let answer = replicactl(folder.path(), arguments);
    (answer, daemon.join().unwrap())
}

fn at(text: &str) -> Target {
    text.parse().unwrap()
}

fn resource() -> ResourceReport {
    let device = |volume| DeviceReport { volume, disk_state: "UpToDate".into(), quorum: true, ..Default::default() };
    let peer = |volume, disk: &str| PeerDeviceReport {
        volume,
        replication_state: "Established".into(),
        peer_disk_state: disk.into(),
        resync_suspended: "no".into(),
        ..Default::default()
    };
    let connection = |name: &str, state: &str, disk: &str| ConnectionReport {
        name: name.into(),
        connection_state: state.into(),
        peer_role: "Secondary".into(),
        peer_devices: vec![peer(0, disk), peer(1, disk)],
        ..Default::default()
    };
    ResourceReport {
        name: "r0".into(),
        role: "Primary".into(),
        devices: vec![device(0), device(1)],
        connections: vec![connection("bob", "Connected", "UpToDate"), connection("carol", "Connecting", "DUnknown")],
        ..Default::default()
    }
}

fn words(options: &[(&str, &str)]) -> OptionWords {
    options.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[test]
fn changed_options_are_a_line_each() {
    let change = |note: Option<&str>| Change {
        object: "bob:r0".into(),
        option: "protocol".into(),
        from: "C".into(),
        to: "A".into(),
        note: note.map(Into::into),
    };
    let changes = || vec![Response::Changed { changes: vec![change(None), change(Some("not yet"))] }];
    let (text, _) = ask("adjust r0", changes());
    assert_eq!(text.out, "bob:r0: protocol: C -> A\nbob:r0: protocol: C -> A (not yet)\n");
    let (json, _) = ask("adjust r0 --json", changes());
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&value["result"], &value["changes"][1]["note"]), (&"done".into(), &"not yet".into()));
}

#[test]
fn each_command_line_asks_for_what_it_says() {
    let r0 = || at("r0");
    let table = [
        ("up all", Command::Up { target: Target::ALL }),
        ("down r0", Command::Down { target: r0() }),
        ("adjust r0", Command::Adjust { target: r0(), dry_run: false }),
        ("adjust --dry-run r0", Command::Adjust { target: r0(), dry_run: true }),
        (
            "net-options bob:r0 --protocol=A --ping-int 5",
            Command::NetOptions { target: at("bob:r0"), options: words(&[("protocol", "A"), ("ping-int", "5")]) },
        ),
        (
            "disk-options r0/1 --al-extents 100",
            Command::DiskOptions { target: at("r0/1"), options: words(&[("al-extents", "100")]) },
        ),
        (
            "peer-device-options bob:r0/1 --c-max-rate 4M",
            Command::PeerDeviceOptions { target: at("bob:r0/1"), options: words(&[("c-max-rate", "4M")]) },
        ),
        (
            "resource-options r0 --on-no-data-accessible suspend-io",
            Command::ResourceOptions { target: at("r0"), options: words(&[("on-no-data-accessible", "suspend-io")]) },
        ),
        ("attach r0/1", Command::Attach { target: at("r0/1") }),
        ("detach --force r0/1", Command::Detach { target: at("r0/1"), force: true }),
        ("connect bob:r0 --discard-my-data", Command::Connect { target: at("bob:r0"), discard_my_data: true }),
        ("disconnect bob:r0", Command::Disconnect { target: at("bob:r0"), force: false }),
        ("primary --force r0", Command::Promote { target: r0(), force: true }),
        ("promote r0", Command::Promote { target: r0(), force: false }),
        ("secondary r0", Command::Demote { target: r0(), force: false }),
        ("invalidate r0/0 --from-peer bob", Command::Invalidate { target: at("r0/0"), from_peer: Some("bob".into()) }),
        ("invalidate-remote bob:r0/0", Command::InvalidateRemote { target: at("bob:r0/0") }),
        ("pause-sync r0", Command::PauseSync { target: r0() }),
        ("resume-sync r0", Command::ResumeSync { target: r0() }),
        ("verify bob:r0/0", Command::Verify { target: at("bob:r0/0"), start: None, stop: None }),
        ("verify r0 --start 1M --stop 4096", Command::Verify { target: r0(), start: Some(2048), stop: Some(4096) }),
        ("new-current-uuid --clear-bitmap r0/0", Command::NewCurrentUuid { target: at("r0/0"), clear_bitmap: true }),
        ("outdate r0", Command::Outdate { target: r0() }),
        ("wait-connect r0 --timeout 5", Command::WaitConnect { target: r0(), timeout_s: Some(5) }),
        ("wait-sync r0 --timeout 0", Command::WaitSync { target: r0(), timeout_s: None }),
        ("wait-sync r0", Command::WaitSync { target: r0(), timeout_s: None }),
        ("get-gi r0", Command::GetGi { target: r0() }),
        ("show-gi r0", Command::ShowGi { target: r0() }),
    ];
    for (line, expected) in table {
        let (answer, asked) = ask(line, vec![Response::Done]);
        assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (0, "", ""), "{line}");
        assert_eq!(asked, expected, "{line}");
    }
}

#[test]
fn questions_are_answered_from_the_status() {
    let table = [
        ("role r0", "Primary\n"),
        ("cstate r0", "Connected\nConnecting\n"),
        ("cstate carol:r0", "Connecting\n"),
        ("dstate r0", "UpToDate/UpToDate/DUnknown\nUpToDate/UpToDate/DUnknown\n"),
        ("dstate r0/1", "UpToDate/UpToDate/DUnknown\n"),
        ("--json role r0", "[\"Primary\"]\n"),
    ];
    for (line, expected) in table {
        let (answer, asked) = ask(line, vec![Response::Status { status: vec![resource()] }]);
        assert_eq!((answer.code, answer.out.as_str()), (0, expected), "{line}");
        assert_eq!(asked, Command::Status { target: at("r0") }, "{line}");
    }
    let (answer, _) = ask("cstate dave:r0", vec![Response::Status { status: vec![resource()] }]);
    assert_eq!((answer.code, answer.out.as_str()), (10, ""));
    assert!(answer.err.contains("dave:r0: no such connection"), "{}", answer.err);
}

#[test]
fn status_is_one_value_in_two_forms() {
    let status = || vec![Response::Status { status: vec![resource()] }];
    let (text, asked) = ask("status", status());
    assert_eq!(asked, Command::Status { target: Target::ALL });
    let expected = "r0 role:Primary\n  volume:0 disk:UpToDate open:no\n  volume:1 disk:UpToDate open:no\n  \
                    bob role:Secondary\n    volume:0 peer-disk:UpToDate\n    volume:1 peer-disk:UpToDate\n  \
                    carol connection:Connecting\n\n";
    assert_eq!(text.out, expected);
    let (json, _) = ask("status --json", status());
    assert_eq!(serde_json::from_str::<StatusReport>(&json.out).unwrap(), [resource()]);
    let (none, _) = ask("status", vec![Response::Status { status: vec![] }]);
    assert_eq!((none.code, none.out.as_str()), (0, "# No resource is up.\n"));
}

#[test]
fn refusals_keep_drbds_words_and_exit_codes() {
    let refused = |code| Response::Refused {
        object: "r0".into(),
        code,
        rule: "SS_NO_UP_TO_DATE_DISK".into(),
        state: "disk:Inconsistent".into(),
        message: "Need access to UpToDate data".into(),
        next_step: Some("wait for the sync".into()),
    };
    let (answer, _) = ask("promote r0", vec![refused(-2)]);
    let line = "r0: State change failed: (-2) Need access to UpToDate data [SS_NO_UP_TO_DATE_DISK: disk:Inconsistent]; \
                wait for the sync\n";
    assert_eq!((answer.code, answer.err.as_str()), (17, line));
    assert!(ask("promote r0", vec![refused(158)]).0.err.starts_with("r0: Failure: (158) "));
    let (answer, _) = ask("--json promote r0", vec![refused(-12)]);
    let value: serde_json::Value = serde_json::from_str(&answer.err).unwrap();
    assert_eq!((answer.code, &value["exit-code"], &value["code"]), (11, &11.into(), &(-12).into()));
    let timed_out = Response::TimedOut { message: "r0: bob is still Connecting".into() };
    assert_eq!(ask("wait-connect r0 --timeout 1", vec![timed_out]).0.code, 5);
    let unknown = Response::Unknown { object: "r9".into(), message: "r9: No such resource".into(), next_step: None };
    let (answer, _) = ask("status r9", vec![unknown]);
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (10, "", "r9: No such resource\n"));
}

#[test]
fn events_stream_until_done() {
    let event = |verb, role| Response::Event {
        event: EventRecord::new(verb, Object::Resource).with("name", "r0").with("role", role),
    };
    let stream = || {
        let end = Response::Event { event: EventRecord::end_of_initial_state() };
        vec![event(Verb::Exists, "Secondary"), end, event(Verb::Change, "Primary"), Response::Done]
    };
    let (answer, asked) = ask("events2 --now --statistics r0", stream());
    assert_eq!(asked, Command::Events { target: at("r0"), now: true, statistics: true });
    let text = "exists resource name:r0 role:Secondary\nexists -\nchange resource name:r0 role:Primary\n";
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (0, text, ""));
    let (answer, _) = ask("events --json", stream());
    let first = answer.out.lines().next().unwrap();
    assert_eq!(first, r#"{"event":"exists","keys":{"name":"r0","role":"Secondary"},"object":"resource"}"#);
    let (answer, _) = ask("events --timestamps", stream());
    assert!(answer.out.lines().all(|l| l.as_bytes()[10] == b'T' && l.contains("+00:00 ")), "{}", answer.out);
}

#[test]
fn without_a_daemon_one_sentence_says_where_why_and_what_to_do() {
    let folder = TempDir::new().unwrap();
    let check = |answer: Answer| {
        assert_eq!((answer.code, answer.out.as_str(), answer.err.lines().count()), (20, "", 1), "{}", answer.err);
        for words in ["replicad is not running", SOCKET_NAME, "systemctl start replicad", "--run-dir"] {
            assert!(answer.err.contains(words), "{words}: {}", answer.err);
        }
    };
    check(replicactl(folder.path(), "status"));
    // A socket whose daemon died.
    drop(UnixListener::bind(folder.path().join(SOCKET_NAME)).unwrap());
    check(replicactl(folder.path(), "up r0"));
}

#[test]
fn a_daemon_that_talks_nonsense_does_no_harm() {
    for (bytes, words) in [
        (&b""[..], "closed the connection without an answer"),
        (b"HTTP/1.1 400\n", "a line that is not of this protocol"),
        (b"{\"version\":7,\"response\":\"done\"}\n", "protocol version 7, here it is 1"),
    ] {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET_NAME)).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = Vec::new();
            BufReader::new(&stream).read_until(b'\n', &mut line).unwrap();
            stream.write_all(bytes).unwrap();
        });
        let answer = replicactl(folder.path(), "up r0");
        thread.join().unwrap();
        assert_eq!(answer.code, 20, "{}", answer.err);
        assert!(answer.err.contains(words), "{}", answer.err);
    }
}

#[test]
fn usage_errors_completions_and_the_manual() {
    let folder = TempDir::new().unwrap();
    for line in ["fly", "up", "up r0/x", "create-md r0 --max-peers 0"] {
        let answer = replicactl(folder.path(), line);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{line}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(replicactl(folder.path(), &format!("completions {shell}")).out.contains("create-md"), "{shell}");
    }
    assert!(replicactl(folder.path(), "manual").out.contains(".TH replicactl"));
}
