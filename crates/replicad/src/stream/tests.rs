//! Streams between two ends: arbitrary splits without I/O, a socketpair on a real ring, shortage of buffers.

use std::os::unix::net::UnixStream;

use types::ByteRange;
use wire::message::{DataFlags, DataHead};

use super::*;
use crate::payloads::Share;
use crate::ring::Completion;

const CTX: Context = Context { features: 0x3d, protocol: 124, integrity_digest_len: 0 };

fn owner(socket: Socket) -> Owner {
    Owner { peer: NodeId::new(1).unwrap(), link: LinkId(7), socket }
}

fn data(stamp: u64, len: u64) -> Message {
    Message::Data(DataHead {
        range: ByteRange::new(stamp * 4096, len).unwrap(),
        block_id: stamp,
        seq: stamp as u32,
        flags: DataFlags(0),
    })
}

fn volume() -> Option<VolumeNumber> {
    VolumeNumber::new(3)
}

/// What the bytes of the write with `stamp` are.
fn fill(bytes: &mut [u8], stamp: u64) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (stamp as usize * 31 + i / 7) as u8;
    }
}

fn expect_filled(bytes: &[u8], stamp: u64) {
    let mut expected = vec![0; bytes.len()];
    fill(&mut expected, stamp);
    assert!(bytes == expected, "the payload of write {stamp} arrived changed");
}

/// Messages with and without payload, small and of the largest size, some hundred of them.
fn conversation() -> Vec<Message> {
    (0..200)
        .map(|n| match n % 5 {
            0 => data(n, 4096),
            1 => Message::Barrier(n as u32),
            2 => data(n, 512 * (1 + n)),
            3 => Message::UnplugRemote,
            _ if n == 104 => data(n, 1 << 20),
            _ => Message::Dagtag(n),
        })
        .collect()
}

fn volume_of(message: &Message) -> Option<VolumeNumber> {
    if matches!(message, Message::Data(_)) { volume() } else { None }
}

fn write_stamp(message: &Message) -> u64 {
    match message {
        Message::Data(head) => head.block_id,
        other => panic!("{other:?} has no payload"),
    }
}

/// The stream as bytes, made without a sender.
fn as_bytes(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        wire::encode(&CTX, volume_of(message), message, &mut bytes);
        let from = bytes.len();
        bytes.resize(from + message.payload_bytes() as usize, 0);
        if from < bytes.len() {
            fill(&mut bytes[from..], write_stamp(message));
        }
    }
    bytes
}

fn check(incoming: Incoming, expected: &Message, payloads: &mut Payloads) {
    assert_eq!(&incoming.message, expected);
    assert_eq!(incoming.volume, volume_of(expected));
    assert_eq!(incoming.payload.is_some(), expected.payload_bytes() > 0);
    if let Some(id) = incoming.payload {
        assert_eq!(payloads.len(id) as u64, expected.payload_bytes());
        expect_filled(payloads.bytes_mut(id), write_stamp(expected));
        payloads.release(id);
    }
}

#[test]
fn any_split_of_the_stream_gives_the_same_messages() {
    let messages = conversation();
    let bytes = as_bytes(&messages);
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut payloads = Payloads::new(16 << 20).unwrap();
        let mut receiver = Receiver::new(Socket::Data);
        let mut expected = messages.iter();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let space = receiver.space(&payloads).unwrap();
            // Seed 0 gives single bytes at the seams that hurt most: every one of them.
            let most = if seed == 0 && rest.len() % 4096 < 64 { 1 } else { random.usize(1..40_000) };
            let n = most.min(space.len()).min(rest.len());
            // SAFETY: the receiver gave this place for the next bytes of the stream.
            unsafe { std::slice::from_raw_parts_mut(space.as_ptr(), n) }.copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            receiver.received(n);
            while let Poll::Message(incoming) = receiver.poll(&CTX, &mut payloads).unwrap() {
                check(incoming, expected.next().unwrap(), &mut payloads);
            }
        }
        assert_eq!(expected.next(), None, "seed {seed}");
        assert_eq!(receiver.consumed(), bytes.len() as u64);
        assert_eq!(payloads.allocated_bytes(), 0);
    }
}

#[test]
fn garbage_is_an_error_and_reserves_nothing() {
    let mut payloads = Payloads::new(1 << 20).unwrap();
    for garbage in
        [&b"GET / HTTP/1.1\r\n"[..], &[0x86, 0x20, 0xec, 0x20, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]]
    {
        let mut receiver = Receiver::new(Socket::Data);
        let space = receiver.space(&payloads).unwrap();
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(space.as_ptr(), garbage.len()) }.copy_from_slice(garbage);
        receiver.received(garbage.len());
        receiver.poll(&CTX, &mut payloads).unwrap_err();
        assert_eq!(payloads.allocated_bytes(), 0);
    }
}

/// Puts bytes where the receiver wants them, in pieces of any size. False: it wants no more, or found them wrong.
fn feed(receiver: &mut Receiver, mut bytes: &[u8], random: &mut fastrand::Rng, payloads: &mut Payloads) -> bool {
    while !bytes.is_empty() {
        let Some(space) = receiver.space(payloads) else { return false };
        assert!(!space.is_empty(), "a receive of no bytes would look like the end of the stream");
        let n = random.usize(1..10_000).min(space.len()).min(bytes.len());
        // SAFETY: the receiver gave this place for the next bytes of the stream.
        unsafe { std::slice::from_raw_parts_mut(space.as_ptr(), n) }.copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        receiver.received(n);
        loop {
            match receiver.poll(&CTX, payloads) {
                Ok(Poll::Message(Incoming { payload: Some(id), .. })) => drop(payloads.release(id)),
                Ok(Poll::Message(_)) => {}
                Ok(Poll::NeedBytes | Poll::NeedBuffer) => break,
                Err(_) => return false,
            }
        }
    }
    true
}

#[test]
fn no_bytes_of_a_peer_do_harm() {
    let good = as_bytes(&conversation()[..40]);
    let mut whole = 0;
    for seed in 0..2000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = good.clone();
        for _ in 0..random.usize(0..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        let cut = random.usize(..bytes.len());
        bytes.splice(
            cut..(cut + random.usize(0..20)).min(good.len()),
            std::iter::repeat_with(|| 0xff).take(seed as usize % 3),
        );
        let mut payloads = Payloads::new(4 << 20).unwrap();
        let mut receiver = Receiver::new(if seed % 8 == 0 { Socket::Control } else { Socket::Data });
        whole += u32::from(feed(&mut receiver, &bytes, &mut random, &mut payloads));
        receiver.abandon(&mut payloads);
        assert_eq!(payloads.allocated_bytes(), 0, "seed {seed}");
    }
    assert!(whole > 100, "all but {whole} were refused: the test does not go deep");
}

#[test]
fn a_peer_that_pings_and_never_reads_is_cut() {
    let (near, _far) = UnixStream::pair().unwrap();
    let (mut streams, mut payloads) = (Streams::default(), Payloads::new(1 << 20).unwrap());
    let key = streams.open(near.into(), owner(Socket::Control));
    let mut answers = 0u64;
    let answer = Outgoing { volume: None, message: Message::PingAck, payload: None };
    while streams.send(key, &CTX, &answer, &mut payloads) {
        answers += 1;
        assert!(answers * 16 <= queue_bytes_max(Socket::Control), "the queue grows");
    }
}

/// One node's half: streams on a ring of their own, with the payloads behind them.
struct End {
    ring: Ring,
    streams: Streams,
    payloads: Payloads,
    key: Key,
    completions: Vec<Completion>,
}

impl End {
    fn new(socket: UnixStream, pool_bytes: usize) -> End {
        let mut streams = Streams::default();
        let key = streams.open(socket.into(), owner(Socket::Data));
        let (ring, payloads) = (Ring::new(8).unwrap(), Payloads::new(pool_bytes).unwrap());
        End { ring, streams, payloads, key, completions: Vec::new() }
    }

    /// False if the pool has no room for the payload now.
    fn send(&mut self, message: &Message) -> bool {
        let len = message.payload_bytes() as usize;
        let payload = match len {
            0 => None,
            _ => match self.payloads.try_reserve(len, Share::Engine) {
                None => return false,
                Some(id) => Some(id),
            },
        };
        if let Some(id) = payload {
            fill(self.payloads.bytes_mut(id), write_stamp(message));
        }
        let outgoing = Outgoing { volume: volume_of(message), message: message.clone(), payload };
        assert!(self.streams.send(self.key, &CTX, &outgoing, &mut self.payloads));
        if let Some(id) = payload {
            assert!(!self.payloads.release(id), "the stream still needs it");
        }
        true
    }

    /// One round of the loop, without waiting. The last thing that happened to the stream.
    fn turn(&mut self) -> Progress {
        self.streams.arm(&mut self.ring, &mut self.payloads);
        self.ring.wait(Some(Duration::from_millis(1)), &mut self.completions);
        let mut last = Progress::Nothing;
        for completion in std::mem::take(&mut self.completions) {
            let Completion { tag, result } = completion;
            let progress = match tag.kind {
                Kind::PeerReceive => self.streams.received(tag.key, result),
                Kind::PeerSend => self.streams.sent(tag.key, result, &mut self.payloads),
                other => panic!("{other:?} was not submitted"),
            };
            if !matches!(progress, Progress::Nothing) {
                last = progress;
            }
        }
        last
    }

    fn next(&mut self) -> Option<Incoming> {
        let incoming = self.streams.next_message(self.key, &CTX, &mut self.payloads).unwrap();
        if incoming.is_none() {
            self.streams.rearm(self.key);
        }
        incoming
    }
}

#[test]
fn a_conversation_over_a_socketpair_with_few_buffers() {
    let (near, far) = UnixStream::pair().unwrap();
    // The smallest possible kernel buffers make sends short.
    socket2::SockRef::from(&near).set_send_buffer_size(1).unwrap();
    let (mut sender, mut receiver) = (End::new(near, 4 << 20), End::new(far, 1 << 20));
    let messages = conversation();
    let (mut to_send, mut expected) = (messages.iter().peekable(), messages.iter().peekable());
    // Payloads that arrived are kept for a while, so that the receiver's share runs dry again and again.
    let mut kept: std::collections::VecDeque<Incoming> = Default::default();
    let mut starved = 0;
    while expected.peek().is_some() || !kept.is_empty() {
        while let Some(message) = to_send.peek() {
            if !sender.send(message) {
                break;
            }
            to_send.next();
        }
        sender.turn();
        receiver.turn();
        let mut came = false;
        while let Some(incoming) = receiver.next() {
            kept.push_back(incoming);
            came = true;
        }
        starved += u32::from(receiver.streams.has_starved());
        if !came && let Some(incoming) = kept.pop_front() {
            check(incoming, expected.next().unwrap(), &mut receiver.payloads);
            receiver.streams.take_starved();
        }
    }
    assert!(starved > 0, "the receiver never ran out of buffers: the test does not test");
    assert_eq!(sender.payloads.allocated_bytes(), 0);
    assert_eq!(receiver.payloads.allocated_bytes(), 0);
}

#[test]
fn last_words_arrive_before_the_end_and_nothing_stays_behind() {
    let (near, far) = UnixStream::pair().unwrap();
    let (mut closing, mut other) = (End::new(near, 1 << 20), End::new(far, 1 << 20));
    assert!(closing.send(&data(1, 65536)));
    assert!(closing.send(&Message::Disconnect));
    closing.streams.close(closing.key);
    assert!(other.send(&data(2, 4096)), "what the other side still sends must not hurt");

    let mut heard = Vec::new();
    loop {
        closing.turn();
        let progress = other.turn();
        while let Some(incoming) = other.next() {
            heard.push(incoming.message);
            if let Some(id) = incoming.payload {
                other.payloads.release(id);
            }
        }
        if matches!(progress, Progress::Closed(_)) {
            break;
        }
    }
    assert_eq!(heard, [data(1, 65536), Message::Disconnect]);
    other.streams.kill(other.key);
    while !(closing.streams.is_empty() && other.streams.is_empty()) {
        closing.turn();
        other.turn();
    }
    assert_eq!((closing.payloads.allocated_bytes(), other.payloads.allocated_bytes()), (0, 0));
}

#[test]
fn a_kill_in_the_middle_of_a_payload_gives_all_buffers_back() {
    let (near, far) = UnixStream::pair().unwrap();
    let (mut killed, mut far) = (End::new(near, 4 << 20), far);
    // Nobody reads: the send stays with the kernel, part of the queue behind it.
    assert!(killed.send(&data(1, 1 << 20)));
    // And half a payload comes in.
    let half = as_bytes(&[data(2, 65536)]);
    std::io::Write::write_all(&mut far, &half[..30_000]).unwrap();
    killed.turn();
    assert!(killed.next().is_none());
    killed.turn();
    assert!(killed.payloads.allocated_bytes() >= (1 << 20) + 65536);
    killed.streams.kill(killed.key);
    while !killed.streams.is_empty() {
        killed.turn();
    }
    assert_eq!(killed.payloads.allocated_bytes(), 0);
}

#[test]
fn a_peer_that_reads_nothing_is_cut_when_its_time_is_over() {
    let (near, _far) = UnixStream::pair().unwrap();
    let mut closing = End::new(near, 4 << 20);
    assert!(closing.send(&data(1, 1 << 20)));
    closing.streams.close(closing.key);
    closing.turn();
    let deadline = closing.streams.next_deadline().expect("a draining stream has a deadline");
    closing.streams.kill_overdue(deadline);
    while !closing.streams.is_empty() {
        closing.turn();
    }
    assert_eq!(closing.payloads.allocated_bytes(), 0);
    assert_eq!(closing.streams.next_deadline(), None);
}
