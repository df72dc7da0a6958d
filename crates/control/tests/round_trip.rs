//! Every value of the protocol survives its line, and no line does harm.

use control::*;
use proptest::prelude::*;

fn target() -> impl Strategy<Value = Target> {
    let name = "[a-z][a-z0-9_.-]{0,20}";
    prop_oneof![
        Just(Target::ALL),
        (name, proptest::option::of(name), proptest::option::of(0u16..u16::MAX))
            .prop_map(|(resource, peer, volume)| { Target { resource: Some(resource), peer, volume } }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let timeout = proptest::option::of(any::<u64>());
    (target(), any::<[bool; 2]>(), timeout, proptest::option::of(".*"), 0..26usize).prop_map(
        |(target, [force, other], timeout_s, from_peer, which)| match which {
            0 => Command::Up { target },
            1 => Command::Down { target },
            2 => Command::Adjust { target, dry_run: force },
            3 => Command::Attach { target },
            4 => Command::Detach { target, force },
            5 => Command::Connect { target, discard_my_data: force },
            6 => Command::Disconnect { target, force },
            7 => Command::Promote { target, force },
            8 => Command::Demote { target, force },
            9 => Command::Status { target },
            10 => Command::Events { target, now: force, statistics: other },
            11 => Command::Role { target },
            12 => Command::Cstate { target },
            13 => Command::Dstate { target },
            14 => Command::WaitConnect { target, timeout_s },
            15 => Command::WaitSync { target, timeout_s },
            16 => Command::Invalidate { target, from_peer },
            17 => Command::InvalidateRemote { target },
            18 => Command::PauseSync { target },
            19 => Command::ResumeSync { target },
            25 => Command::Verify { target, start: timeout_s, stop: force.then_some(8) },
            20 => Command::NewCurrentUuid { target, clear_bitmap: force },
            21 => Command::Outdate { target },
            22 => Command::GetGi { target },
            23 => {
                let options = from_peer.into_iter().map(|text| ("protocol".into(), text)).collect();
                if other {
                    Command::NetOptions { target, options }
                } else {
                    Command::PeerDeviceOptions { target, options }
                }
            }
            _ => Command::ShowGi { target },
        },
    )
}

fn sync() -> impl Strategy<Value = Option<SyncDetails>> {
    proptest::option::of((any::<[u64; 4]>(), 0..10000u32).prop_map(|(numbers, rate)| SyncDetails {
        rs_total: numbers[0],
        rs_dt_start_ms: numbers[1],
        rs_failed: numbers[2],
        estimated_seconds_to_finish: numbers[3],
        db_dt: f64::from(rate) / 100.0,
        ..SyncDetails::default()
    }))
}

fn report() -> impl Strategy<Value = ResourceReport> {
    (".*", any::<[u64; 3]>(), sync(), any::<bool>()).prop_map(|(name, n, sync, flag)| ResourceReport {
        name: name.clone(),
        devices: vec![DeviceReport { volume: 7, minor: -1, size: n[0], open: flag, ..Default::default() }],
        connections: vec![ConnectionReport {
            name,
            ap_in_flight: n[1],
            paths: vec![PathReport { established: flag, ..Default::default() }],
            peer_devices: vec![PeerDeviceReport { sync, out_of_sync: n[2], ..Default::default() }],
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn response() -> impl Strategy<Value = Response> {
    prop_oneof![
        Just(Response::Done),
        (any::<i32>(), any::<[String; 3]>(), proptest::option::of(".*")).prop_map(|(code, [a, b, c], next_step)| {
            Response::Refused { object: a.clone(), code, rule: a, state: b, message: c, next_step }
        }),
        (".*", ".*").prop_map(|(object, message)| Response::Unknown { object, message, next_step: None }),
        any::<[String; 4]>().prop_map(|[object, option, from, to]| {
            let note = Some(to.clone());
            Response::Changed { changes: vec![Change { object, option, from, to, note }] }
        }),
        (".*").prop_map(|message| Response::Error { message, next_step: None }),
        (".*").prop_map(|message| Response::TimedOut { message }),
        (".*").prop_map(|message| Response::Progress { message }),
        proptest::collection::vec(".*", 0..4).prop_map(|lines| Response::Text { lines }),
        proptest::collection::vec(report(), 0..3).prop_map(|status| Response::Status { status }),
        (".*", ".*").prop_map(|(key, value)| Response::Event {
            event: EventRecord::new(Verb::Change, Object::PeerDevice).with(&key, value)
        }),
    ]
}

proptest! {
    #[test]
    fn requests(command in command()) {
        let request = Request::new(command);
        let line = encode_line(&request).unwrap();
        prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        prop_assert_eq!(decode_line::<Request>(&line).unwrap(), request.clone());
        let name = format!("\"command\":\"{}\"", request.command.name());
        prop_assert!(String::from_utf8(line).unwrap().contains(&name));
    }

    #[test]
    fn replies(response in response()) {
        let reply = Reply::new(response);
        let line = encode_line(&reply).unwrap();
        prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        prop_assert_eq!(decode_line::<Reply>(&line).unwrap(), reply);
    }

    #[test]
    fn targets(target in target()) {
        prop_assume!(target.resource.as_deref() != Some("all"));
        prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
    }

    /// Reaches what lies behind the syntax of JSON.
    #[test]
    fn no_damage_to_a_line_does_harm(
        command in command(), response in response(), at in any::<prop::sample::Index>(), patch in "[-0-9a-z\\[\\]{}\":,]{0,6}"
    ) {
        let cut = |line: Vec<u8>| {
            let text = String::from_utf8(line).unwrap();
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            let at = places[at.index(places.len())];
            format!("{}{patch}{}", &text[..at], text[at..].chars().skip(patch.len() / 2).collect::<String>())
        };
        let _ = decode_line::<Request>(cut(encode_line(&Request::new(command)).unwrap()).as_bytes());
        let _ = decode_line::<Reply>(cut(encode_line(&Reply::new(response)).unwrap()).as_bytes());
    }

    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".*") {
        let _ = decode_line::<Request>(&bytes);
        let _ = decode_line::<Reply>(text.as_bytes());
        let _ = text.parse::<Target>();
    }
}

#[test]
fn the_form_on_the_wire_stays() {
    let request = Request::new(Command::Connect { target: "bob:r0".parse().unwrap(), discard_my_data: true });
    let text = r#"{"version":1,"command":"connect","target":{"resource":"r0","peer":"bob","volume":null},"discard-my-data":true}"#;
    assert_eq!(encode_line(&request).unwrap(), format!("{text}\n").as_bytes());
    assert_eq!(encode_line(&Reply::new(Response::Done)).unwrap(), b"{\"version\":1,\"response\":\"done\"}\n");
}

#[test]
fn another_version_is_named() {
    let error = decode_line::<Request>(br#"{"version":2,"command":"fly"}"#).unwrap_err();
    assert_eq!(error.to_string(), "protocol version 2, here it is 1; update the older program");
    assert!(matches!(decode_line::<Request>(b"GET / HTTP/1.1"), Err(FrameError::Json(_))));
}

#[test]
fn bad_targets_say_what_is_wrong() {
    let table = [
        ("", "has an empty part"),
        (":r0", "has an empty part"),
        ("r0/", "has no volume number"),
        ("r0/65535", "has no volume number"),
        ("a:b:c", "has two colons"),
        ("r0/-1", "has no volume number"),
    ];
    for (text, cause) in table {
        let error = text.parse::<Target>().unwrap_err().to_string();
        assert!(error.contains(cause), "{text}: {error}");
    }
}
