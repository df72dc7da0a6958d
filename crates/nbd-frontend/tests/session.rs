//! The session by hand: byte for byte where clients look, and arbitrary bytes where nobody should suffer.

use nbd_client::{DISCONNECT, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, go_data, option, request as header};
use nbd_frontend::{Answer, CloseReason, Event, Export, REQUESTS_MAX, Request, Session, Want};
use proptest::prelude::*;
use types::{BlockLimits, BlockOp, ByteRange, IoError};

const MIB: u64 = 1 << 20;

const FUA: u16 = 1;

fn export() -> Export {
    Export {
        name: "r0".to_owned(),
        size_bytes: 256 * MIB,
        limits: BlockLimits { discard_bytes_max: 4 << 20, ..BlockLimits::default() },
        read_only: false,
        multi_conn: true,
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

fn simple(cookie: u64, errno: u32) -> Vec<u8> {
    [0x6744_6698u32.to_be_bytes().as_slice(), &errno.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

fn chunk(flags: u16, kind: u16, cookie: u64, content: &[u8], payload_len: u32) -> Vec<u8> {
    let len = content.len() as u32 + payload_len;
    [
        0x668e_33efu32.to_be_bytes().as_slice(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &len.to_be_bytes(),
        content,
    ]
    .concat()
}

struct Client {
    session: Session,
    export: Export,
    sent: Vec<u8>,
}

impl Client {
    /// After the greeting.
    fn greeted(client_flags: u32) -> Client {
        let mut client = Client { session: Session::new(), export: export(), sent: Vec::new() };
        let greeting = client.session.take_output();
        assert_eq!(greeting, [b"NBDMAGICIHAVEOPT".as_slice(), &[0, 3]].concat());
        client.send(&client_flags.to_be_bytes()).unwrap();
        client
    }

    fn transmitting(structured: bool) -> Client {
        let mut client = Client::greeted(3);
        if structured {
            client.send(&option(8, &[])).unwrap();
        }
        let events = client.send(&option(7, &go_data("r0"))).unwrap();
        assert_eq!(events, [Event::Selected(export())]);
        client.sent.clear();
        client
    }

    /// Feeds bytes as long as the session takes them, and collects what it sends.
    fn send(&mut self, mut bytes: &[u8]) -> Result<Vec<Event>, CloseReason> {
        let mut events = Vec::new();
        while !bytes.is_empty() && matches!(self.session.want(), Want::Bytes(_)) {
            let received = self.session.receive(&self.export, bytes);
            self.sent.extend(self.session.take_output());
            let (taken, event) = received?;
            assert!(taken > 0, "no progress");
            bytes = &bytes[taken..];
            events.extend(event);
        }
        Ok(events)
    }

    fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Option<Request> {
        let events = self.send(&header(command, flags, cookie, offset, len as u32)).unwrap();
        match events.as_slice() {
            [] => None,
            [Event::Request(request)] => Some(*request),
            other => panic!("{other:?}"),
        }
    }

    fn done(&mut self, request: Request) -> Answer {
        self.session.complete(request.tag, Ok(())).unwrap()
    }
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let mut client = Client::greeted(3);
    client.send(&option(8, &[])).unwrap();
    client.sent.clear();
    let events = client.send(&option(6, &go_data("r0"))).unwrap();
    assert!(events.is_empty(), "INFO does not begin the transmission");
    let reply = |kind: u32, data: &[u8]| {
        let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
        [magic.as_slice(), &[0, 0, 0, 6], &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
    };
    // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN.
    let size = [[0, 0].as_slice(), &(256 * MIB).to_be_bytes(), &0x01edu16.to_be_bytes()].concat();
    let mut blocks = vec![0, 3];
    [512u32, 4096, 1 << 20].iter().for_each(|b| blocks.extend(b.to_be_bytes()));
    assert_eq!(client.sent, [reply(3, &size), reply(3, &blocks), reply(1, &[])].concat());
}

#[test]
fn export_name_answers_with_and_without_zeroes() {
    for (flags, zeroes) in [(3, 0), (1, 124)] {
        let mut client = Client::greeted(flags);
        let events = client.send(&option(1, b"r0")).unwrap();
        assert_eq!(events, [Event::Selected(export())]);
        assert_eq!(client.sent.len(), 10 + zeroes);
    }
    assert_eq!(Client::greeted(3).send(&option(1, b"other")), Err(CloseReason::UnknownExport));
}

#[test]
fn options_that_are_not_served_are_refused_and_negotiation_goes_on() {
    let cases: [(u32, Vec<u8>, u32); 8] = [
        (5, vec![], 1),           // STARTTLS
        (10, go_data("r0"), 1),   // SET_META_CONTEXT
        (11, vec![], 1),          // EXTENDED_HEADERS
        (4711, vec![7; 100], 1),  // not invented yet
        (3, vec![1], 3),          // LIST with data
        (7, vec![0xff; 6], 3),    // GO whose name is longer than the option
        (7, go_data("other"), 6), // GO for an unknown export
        (7, vec![0; 5000], 9),    // longer than any option
    ];
    for (kind, data, error) in cases {
        let mut client = Client::greeted(3);
        client.send(&option(kind, &data)).unwrap();
        let answer = u32::from_be_bytes(client.sent[12..16].try_into().unwrap());
        assert_eq!(answer, (1 << 31) + error, "option {kind}");
        let events = client.send(&option(7, &go_data(""))).unwrap();
        assert_eq!(events.len(), 1, "GO after option {kind}");
    }
}

#[test]
fn what_is_no_nbd_client_is_told_apart() {
    let mut client = Client { session: Session::new(), export: export(), sent: Vec::new() };
    client.session.take_output();
    let error = client.send(b"GET / HTTP/1.1").unwrap_err();
    assert_eq!(error, CloseReason::UnknownClientFlags(u32::from_be_bytes(*b"GET ")));
    assert_eq!(client.session.want(), Want::Closed);
    let error = Client::greeted(3).send(&[0; 16]).unwrap_err();
    assert_eq!(error, CloseReason::BadOptionMagic(0));
    let long = [b"IHAVEOPT".as_slice(), &7u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    let error = Client::greeted(3).send(&long).unwrap_err();
    assert_eq!(error, CloseReason::OptionTooLong { option: 7, len: u32::MAX });
    assert_eq!(Client::greeted(3).send(&option(2, &[])).unwrap_err(), CloseReason::Aborted);
    let error = Client::transmitting(true).send(&[0; 28]).unwrap_err();
    assert_eq!(error, CloseReason::BadRequestMagic(0));
    let error = Client::transmitting(true).send(&header(WRITE, 0, 1, 0, u32::MAX)).unwrap_err();
    assert_eq!(error, CloseReason::WriteTooLong { len: u32::MAX });
}

#[test]
fn replies_are_simple_or_structured_as_agreed() {
    let mut client = Client::transmitting(false);
    let read = client.request(READ, 0, 77, 4096, 8192).unwrap();
    assert_eq!((read.op, read.range), (BlockOp::Read, range(4096, 8192)));
    let answer = client.done(read);
    assert_eq!((&answer.head[..], answer.payload), (&simple(77, 0)[..], true));
    let flush = client.request(FLUSH, 0, 78, 0, 0).unwrap();
    assert_eq!(&client.done(flush).head[..], simple(78, 0));

    let mut client = Client::transmitting(true);
    let read = client.request(READ, 0, 77, 4096, 8192).unwrap();
    let answer = client.done(read);
    assert_eq!((&answer.head[..], answer.payload), (&chunk(1, 1, 77, &4096u64.to_be_bytes(), 8192)[..], true));
    let flush = client.request(FLUSH, 0, 78, 0, 0).unwrap();
    assert_eq!(&client.done(flush).head[..], chunk(1, 0, 78, &[], 0));
    let failing = client.request(READ, 0, 79, 0, 512).unwrap();
    let answer = client.session.complete(failing.tag, Err(IoError::Io)).unwrap();
    assert_eq!((&answer.head[..], answer.payload), (&chunk(1, 0x8001, 79, &[0, 0, 0, 5, 0, 0], 0)[..], false));
}

#[test]
fn every_io_error_has_its_number() {
    let numbers = [
        (IoError::Io, 5),
        (IoError::ReadOnly, 1),
        (IoError::Invalid, 22),
        (IoError::NoSpace, 28),
        (IoError::Unsupported, 95),
    ];
    for (error, number) in numbers {
        let mut client = Client::transmitting(false);
        let request = client.request(FLUSH, 0, 5, 0, 0).unwrap();
        let answer = client.session.complete(request.tag, Err(error)).unwrap();
        assert_eq!(&answer.head[..], simple(5, number), "{error}");
    }
}

#[test]
fn bad_requests_are_answered_and_the_conversation_goes_on() {
    let end = 256 * MIB;
    let cases: [(u16, u16, u64, u32, u32); 11] = [
        (READ, 0, end, 512, 22),
        (WRITE, 0, end, 512, 28),
        (TRIM, 0, end - 512, 1024, 28),
        (READ, 0, u64::MAX, 512, 22),
        (READ, 0, 1, 512, 22),
        (READ, 0, 0, 0, 22),
        (READ, 0, 0, 33 << 20, 22),
        (FLUSH, 0, 512, 0, 22),
        (READ, 1 << 9, 0, 512, 22),
        (WRITE_ZEROES, 1 << 4, 0, 512, 95),
        (99, 0, 0, 512, 22),
    ];
    for (command, flags, offset, len, errno) in cases {
        let mut client = Client::transmitting(false);
        let mut bytes = header(command, flags, 9, offset, len);
        if command == WRITE {
            bytes.extend(vec![0; len as usize]);
        }
        assert_eq!(client.send(&bytes).unwrap(), []);
        assert_eq!(client.sent, simple(9, errno), "command {command} flags {flags} at {offset}+{len}");
        assert!(client.request(FLUSH, 0, 10, 0, 0).is_some(), "after command {command}");
    }
    let mut client = Client::transmitting(true);
    assert_eq!(client.request(READ, 1 << 2, 9, 0, 2 * MIB), None, "DF with more than one chunk");
    assert_eq!(client.sent, chunk(1, 0x8001, 9, &[0, 0, 0, 75, 0, 0], 0));
}

#[test]
fn a_read_only_export_refuses_writes_of_all_kinds() {
    for command in [WRITE, TRIM, WRITE_ZEROES] {
        let mut client = Client::greeted(3);
        client.export.read_only = true;
        client.send(&option(7, &go_data("r0"))).unwrap();
        client.sent.clear();
        let mut bytes = header(command, 0, 1, 0, 512);
        bytes.extend(vec![0; if command == WRITE { 512 } else { 0 }]);
        assert_eq!(client.send(&bytes).unwrap(), []);
        assert_eq!(client.sent, simple(1, 1));
    }
}

#[test]
fn a_long_write_runs_in_parts_and_is_answered_once() {
    let mut client = Client::transmitting(false);
    assert_eq!(client.request(WRITE, FUA, 3, MIB, 2 * MIB + 512), None);
    let mut parts = Vec::new();
    while let Want::Payload { len, .. } = client.session.want() {
        let part = client.session.payload_received();
        assert_eq!((part.op, part.range.len()), (BlockOp::Write { fua: true }, len as u64));
        parts.push(part);
    }
    let ranges: Vec<ByteRange> = parts.iter().map(|p| p.range).collect();
    assert_eq!(ranges, [range(MIB, MIB), range(2 * MIB, MIB), range(3 * MIB, 512)]);
    assert_eq!(client.session.complete(parts[1].tag, Err(IoError::NoSpace)).unwrap(), Answer::default());
    assert_eq!(client.done(parts[0]), Answer::default());
    assert_eq!(&client.done(parts[2]).head[..], simple(3, 28), "the failure of one part is the request's");
    assert_eq!(client.session.in_flight(), 0);
}

#[test]
fn a_long_structured_read_is_a_chain_of_chunks() {
    let mut client = Client::transmitting(true);
    let mut part = client.request(READ, 0, 3, 0, 2 * MIB + 512).unwrap();
    let mut heads = Vec::new();
    loop {
        let answer = client.done(part);
        assert!(answer.payload);
        heads.push(answer.head.to_vec());
        let Some(next) = answer.next else { break };
        part = next;
    }
    let data = |flags, at: u64, len| chunk(flags, 1, 3, &at.to_be_bytes(), len);
    assert_eq!(heads, [data(0, 0, 1 << 20), data(0, MIB, 1 << 20), data(1, 2 * MIB, 512)]);
    assert_eq!(client.session.in_flight(), 0);
}

/// Nothing may come between the parts: the reply of the write before goes first, and no request is taken meanwhile.
#[test]
fn a_long_simple_read_runs_alone() {
    let mut client = Client::transmitting(false);
    let flush = client.request(FLUSH, 0, 1, 0, 0).unwrap();
    assert_eq!(client.request(READ, 0, 2, 0, MIB + 512), None);
    assert_eq!(client.session.want(), Want::Nothing);
    let answer = client.done(flush);
    assert_eq!(&answer.head[..], simple(1, 0));
    let first = answer.next.unwrap();
    assert_eq!(first.range, range(0, MIB));
    let answer = client.done(first);
    assert_eq!((&answer.head[..], answer.payload), (&simple(2, 0)[..], true));
    assert_eq!(client.session.want(), Want::Nothing);
    let answer = client.done(answer.next.unwrap());
    assert_eq!((&answer.head[..], answer.payload, answer.next), (&[][..], true, None));
    assert!(matches!(client.session.want(), Want::Bytes(_)));

    let first = client.request(READ, 0, 3, 0, MIB + 512).unwrap();
    let second = client.done(first).next.unwrap();
    let failed = client.session.complete(second.tag, Err(IoError::Io));
    assert_eq!(failed, Err(CloseReason::ReadFailedMidway));
    assert_eq!(client.session.want(), Want::Closed);
}

#[test]
fn a_trim_with_fua_runs_in_parts_and_ends_with_a_flush() {
    let mut client = Client::transmitting(false);
    let mut part = client.request(TRIM, FUA, 3, 0, 6 * MIB).unwrap();
    let mut seen = vec![(part.op, part.range)];
    let answer = loop {
        let answer = client.done(part);
        let Some(next) = answer.next else { break answer };
        assert!(answer.head.is_empty());
        part = next;
        seen.push((part.op, part.range));
    };
    let discard = |start, len| (BlockOp::Discard, range(start, len));
    assert_eq!(seen, [discard(0, 4 * MIB), discard(4 * MIB, 2 * MIB), (BlockOp::Flush, range(0, 0))]);
    assert_eq!(&answer.head[..], simple(3, 0));
}

#[test]
fn a_full_session_waits_for_an_answer() {
    let mut client = Client::transmitting(true);
    let requests: Vec<Request> =
        (0..REQUESTS_MAX as u64).map(|cookie| client.request(READ, 0, cookie, 0, 512).unwrap()).collect();
    assert_eq!(client.session.want(), Want::Nothing);
    client.done(requests[17]);
    let again = client.request(READ, 0, 999, 0, 512).unwrap();
    assert_eq!(again.tag, requests[17].tag);
}

#[test]
fn a_disconnect_leaves_requests_to_be_completed() {
    let mut client = Client::transmitting(false);
    let flush = client.request(FLUSH, 0, 1, 0, 0).unwrap();
    assert_eq!(client.send(&header(DISCONNECT, 0, 2, 0, 0)).unwrap(), [Event::Disconnect]);
    assert_eq!(client.session.want(), Want::Closed);
    assert_eq!(&client.done(flush).head[..], simple(1, 0));
    assert_eq!(client.session.in_flight(), 0);
}

/// Runs a session over arbitrary bytes as a driver would, completing in an arbitrary order.
fn survive(session: &mut Session, export: &Export, mut bytes: &[u8], order: &[u8]) {
    let mut pending: Vec<Request> = Vec::new();
    let mut turns = order.iter().cycle();
    loop {
        session.take_output();
        let turn = usize::from(*turns.next().unwrap());
        let wait = matches!(session.want(), Want::Nothing);
        if (wait || turn.is_multiple_of(3)) && !pending.is_empty() {
            let request = pending.swap_remove(turn % pending.len());
            assert!(request.range.is_within(export.size_bytes), "{request:?}");
            let result = if turn.is_multiple_of(5) { Err(IoError::Io) } else { Ok(()) };
            if let Ok(answer) = session.complete(request.tag, result) {
                pending.extend(answer.next);
            }
            continue;
        }
        match session.want() {
            Want::Bytes(wanted) => {
                assert!(wanted > 0);
                let fed = &bytes[..bytes.len().min(turn + 1)];
                if fed.is_empty() {
                    break;
                }
                let Ok((taken, event)) = session.receive(export, fed) else { continue };
                assert!(taken > 0 && taken <= fed.len());
                bytes = &bytes[taken..];
                if let Some(Event::Request(request)) = event {
                    pending.push(request);
                }
            }
            Want::Payload { len, .. } => {
                assert!(len > 0 && len <= export.limits.io_bytes_max as usize);
                bytes = &bytes[len.min(bytes.len())..];
                pending.push(session.payload_received());
            }
            Want::Nothing => panic!("stuck: nothing wanted, nothing in flight"),
            Want::Closed => break,
        }
    }
    while let Some(request) = pending.pop() {
        if let Ok(answer) = session.complete(request.tag, Ok(())) {
            pending.extend(answer.next);
        }
    }
    assert_eq!(session.in_flight(), 0, "requests were never answered");
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0u32..12, any::<u32>()];
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(go_data("r0")),
        "[a-z]{0,6}".prop_map(|name| go_data(&name)),
    ];
    (kind, data).prop_map(|(kind, data)| option(kind, &data))
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let near = prop_oneof![0u64..600, (0u64..600_000).prop_map(|s| s * 512), any::<u64>()];
    let len = prop_oneof![(0u32..70_000).prop_map(|s| s * 512), 0u32..2000, any::<u32>()];
    let flags = prop_oneof![Just(0u16), 0u16..32, any::<u16>()];
    (0u16..9, flags, any::<u64>(), near, len).prop_map(|(c, f, cookie, at, len)| header(c, f, cookie, at, len))
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        order in proptest::collection::vec(any::<u8>(), 1..50),
    ) {
        survive(&mut Session::new(), &export(), &bytes, &order);
        let mut client = Client::transmitting(order[0].is_multiple_of(2));
        survive(&mut client.session, &export(), &bytes, &order);
    }

    #[test]
    fn arbitrary_options_never_panic(
        options in proptest::collection::vec(any_option(), 0..20),
        order in proptest::collection::vec(any::<u8>(), 1..50),
    ) {
        let mut client = Client::greeted(3);
        survive(&mut client.session, &export(), &options.concat(), &order);
    }

    #[test]
    fn arbitrary_requests_are_all_answered(
        requests in proptest::collection::vec(any_request(), 0..60),
        order in proptest::collection::vec(any::<u8>(), 1..50),
        structured in any::<bool>(),
    ) {
        let mut client = Client::transmitting(structured);
        survive(&mut client.session, &export(), &requests.concat(), &order);
    }
}
