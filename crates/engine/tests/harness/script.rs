//! The language of the scenarios. A file is prose, then blocks: commands, one a line, then `----`, then what they
//! print, up to an empty line. Commands:
//!
//! - `nodes a=0 b=1 [protocol=C] [volumes=1] [peers=1]`: who there is. First command of a file.
//! - `config NODE KEY=VALUE…`: protocol, secret, al (extents), peer (wrong id of the only peer), diskless (yes),
//!   diskful-peers (ids), size (limit), on-io-error, on-no-data, epoch (writes), csums, verify (hashes), max-rate (KiB/s),
//!   ping-timeout, dialect (84);
//!   before its first `attach`.
//! - `attach NODE[/V] fresh [size=8M] [stamp=N]`, `attach NODE[/V]` (the image as it is), `detach NODE [force]`.
//! - `connect a b` (whoever is StandAlone), `connect a->b [discard-my-data]`, `disconnect a->b [force]`.
//! - `synced NODE NODE…`: attach fresh, connect, skip the initial sync, silently.
//! - `link up a b arbiter=b`, `deliver a->b data|control [N|all]`, `disk a done|fail [N|all]`, `cut a b`, `heal a b`,
//!   `crash a`, `restart a` (starts and attaches from the durable image), `tick 10s`, `step N` (rounds: each socket a message, each
//!   disk an operation), `settle` (all that needs no time), `run [3s]`.
//! - `promote a [force]`, `demote a`, `invalidate a`, `invalidate-remote a->b`, `pause-sync a->b`, `resume-sync a->b`,
//!   `outdate a`, `new-current-uuid a [clear-bitmap]`, `verify a->b [start=0] [stop=8M]`.
//! - `corrupt a[/V] 0+4096`: the disk has other data there from now on, and nobody was told. `same a b 0+4096`: b's disk
//!   has a's data there.
//! - `change a KEY=VALUE…`: keys of `config`, all that follows from them as new options of the running node.
//! - `write a[/V] 0+4096 [fua] [xN STRIDE]`, `read`, `discard`, `write-zeroes … [may-unmap]`, `flush a`.
//! - `status a`, `bits a`, `uuids a` (durable), `compare a b`, `log none|events|all [WORD…]` (only lines with one of
//!   the words).

use std::collections::BTreeMap;
use std::time::Duration;

use engine::*;
use types::*;
use wire::Socket;
use wire::auth::HmacAlgorithm;

use super::cluster::{Cluster, Node, Verbosity, print_stamps};
use super::config;
use super::disk::Disk;
use super::print;

const V0: VolumeNumber = VolumeNumber::new(0).unwrap();

fn node_id(text: &str) -> NodeId {
    NodeId::new(text.parse().unwrap_or_else(|_| panic!("{text:?} is no node id"))).expect("a node id below 32")
}
fn size(text: &str) -> u64 {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    digits.parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is no size")) * unit
}
fn duration(text: &str) -> Duration {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s').unwrap_or_else(|| panic!("{text:?} is no time")), 1000),
    };
    Duration::from_millis(digits.parse::<u64>().expect("a number of seconds or milliseconds") * unit)
}
fn byte_range(text: &str) -> ByteRange {
    let (start, len) = text.split_once('+').unwrap_or_else(|| panic!("{text:?} is no START+LENGTH"));
    ByteRange::new(size(start), size(len)).expect("a range")
}
fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
}
fn protocol(text: &str) -> Protocol {
    match text {
        "A" => Protocol::A,
        "B" => Protocol::B,
        "C" => Protocol::C,
        _ => panic!("{text:?} is no protocol"),
    }
}

fn config(me: NodeId, all: &[NodeId], words: &[&str]) -> ResourceConfig {
    let volumes = value(words, "volumes").map_or(1, |n| n.parse().expect("a number of volumes"));
    config::resource(me, all, volumes, protocol(value(words, "protocol").unwrap_or("C")))
}

/// Runs one file; returns it with the expectations that came out.
pub fn replay(text: &str) -> String {
    let mut cluster = Cluster::new(Vec::new());
    let mut out = String::new();
    let mut commands: Vec<&str> = Vec::new();
    let mut lines = text.lines().peekable();
    let mut in_prose = true;
    while let Some(line) = lines.next() {
        if in_prose && !line.starts_with("nodes ") {
            out += line;
            out.push('\n');
            continue;
        }
        in_prose = false;
        if line != "----" {
            commands.push(line);
            continue;
        }
        while lines.peek().is_some_and(|l| !l.is_empty()) {
            lines.next();
        }
        for command in commands.drain(..) {
            out += command;
            out.push('\n');
            if !command.is_empty() && !command.starts_with('#') {
                execute(&mut cluster, command);
            }
        }
        out += "----\n";
        out += &std::mem::take(&mut cluster.out);
    }
    assert!(commands.iter().all(|c| c.is_empty()), "commands without ---- at the end: {commands:?}");
    out
}

fn execute(cluster: &mut Cluster, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (verb, rest) = words.split_first().expect("a line that is not empty");
    match *verb {
        "nodes" => nodes(cluster, rest),
        "config" => configure(cluster, rest),
        "change" => change(cluster, rest),
        "attach" => attach(cluster, rest),
        "connect" => connect(cluster, rest),
        "synced" => synced(cluster, rest),
        "log" => {
            cluster.only = rest[1..].iter().map(|w| w.to_string()).collect();
            cluster.verbosity = match rest[0] {
                "none" => Verbosity::None,
                "events" => Verbosity::Events,
                _ => Verbosity::All,
            }
        }
        "link" => {
            let (a, b) = (cluster.index(rest[1]), cluster.index(rest[2]));
            let arbiter = cluster.index(value(rest, "arbiter").expect("arbiter=NODE"));
            cluster.link_up(a, b, arbiter);
        }
        "deliver" => deliver(cluster, rest),
        "disk" => disk(cluster, rest),
        "cut" | "heal" => {
            let (a, b) = (cluster.index(rest[0]), cluster.index(rest[1]));
            if *verb == "cut" { cluster.cut(a, b) } else { cluster.heal(a, b) }
        }
        "crash" => cluster.crash(cluster.index(rest[0])),
        "restart" => {
            let me = cluster.index(rest[0]);
            cluster.nodes[me].start();
            let volumes: Vec<_> = cluster.nodes[me].disks.keys().copied().collect();
            volumes.into_iter().for_each(|v| cluster.attach(me, v));
        }
        "start" => {
            cluster.nodes.iter_mut().filter(|n| rest.contains(&n.name.to_string().as_str())).for_each(Node::start)
        }
        "tick" => cluster.tick_to(cluster.now + duration(rest[0])),
        "step" => cluster.step(rest[0].parse().expect("a number of rounds")),
        "settle" => cluster.settle(),
        "run" => cluster.run(rest.first().map_or(Duration::from_secs(3), |t| duration(t))),
        "write" | "read" | "discard" | "write-zeroes" | "flush" => submit(cluster, verb, rest),
        "corrupt" => {
            let (me, volume) = target(cluster, rest[0]);
            cluster.nodes[me].disks.get_mut(&volume).expect("a disk").corrupt(byte_range(rest[1]));
        }
        "same" => {
            let (a, b, range) = (cluster.index(rest[0]), cluster.index(rest[1]), byte_range(rest[2]));
            let stamps = cluster.nodes[a].disks[&V0].read(range);
            cluster.nodes[b].disks.get_mut(&V0).expect("a disk").put(range, stamps);
        }
        "status" => status(cluster, cluster.index(rest[0])),
        "bits" => bits(cluster, cluster.index(rest[0])),
        "uuids" => uuids(cluster, cluster.index(rest[0])),
        "compare" => compare(cluster, rest),
        _ => operator(cluster, verb, rest),
    }
}

fn nodes(cluster: &mut Cluster, words: &[&str]) {
    let named: Vec<(char, NodeId)> = words
        .iter()
        .filter_map(|w| w.split_once('='))
        .filter(|(name, _)| name.len() == 1)
        .map(|(name, id)| (name.chars().next().expect("one letter"), node_id(id)))
        .collect();
    let ids: Vec<NodeId> = named.iter().map(|(_, id)| *id).collect();
    let make = |(name, id): &(char, NodeId)| Node::new(*name, config(*id, &ids, words));
    *cluster = Cluster::new(named.iter().map(make).collect());
}

fn configure(cluster: &mut Cluster, words: &[&str]) {
    let me = cluster.index(words[0]);
    let config = &mut cluster.nodes[me].config;
    for (key, value) in words[1..].iter().map(|w| w.split_once('=').expect("KEY=VALUE")) {
        match key {
            "protocol" => config.peers.values_mut().for_each(|p| p.protocol = protocol(value)),
            "secret" => {
                let auth =
                    AuthConfig { algorithm: HmacAlgorithm::parse("sha256").expect("sha256"), secret: value.into() };
                config.peers.values_mut().for_each(|p| p.auth = Some(auth.clone()));
            }
            "al" => config.volumes.values_mut().for_each(|v| v.al_extents = value.parse().expect("a number")),
            "size" => config.volumes.values_mut().for_each(|v| v.size_max_bytes = Some(size(value))),
            "diskless" => config.volumes.values_mut().for_each(|v| v.diskless = true),
            "diskful-peers" => {
                let peers: Vec<NodeId> = value.split(',').filter(|w| !w.is_empty()).map(node_id).collect();
                config.volumes.values_mut().for_each(|v| v.diskful_peers = peers.clone());
            }
            "on-io-error" => config.volumes.values_mut().for_each(|v| v.on_io_error = OnIoError::PassOn),
            "on-no-data" => config.on_no_data = OnNoData::SuspendIo,
            "epoch" => config.peers.values_mut().for_each(|p| p.epoch_writes_max = value.parse().expect("a number")),
            "verify" => config.peers.values_mut().for_each(|p| p.verify_alg = value.into()),
            "dialect" => config.peers.values_mut().for_each(|p| p.dialects = wire::version::Dialects::V84),
            "csums" => config.peers.values_mut().for_each(|p| p.csums_alg = value.into()),
            "max-rate" => {
                config.peers.values_mut().for_each(|p| p.resync.max_rate_kib = value.parse().expect("a number"))
            }
            "ping-timeout" => config.peers.values_mut().for_each(|p| p.ping_timeout = duration(value)),
            "peer" => {
                let old = std::mem::take(&mut config.peers).into_values().next().expect("a peer");
                config.peers = BTreeMap::from([(node_id(value), old)]);
                config.volumes.values_mut().for_each(|v| v.diskful_peers = vec![node_id(value)]);
            }
            _ => panic!("config: unknown key {key:?}"),
        }
    }
}

fn change(cluster: &mut Cluster, words: &[&str]) {
    configure(cluster, words);
    let me = cluster.index(words[0]);
    let config = &cluster.nodes[me].config;
    let options = |v: &VolumeConfig| VolumeOptions { al_extents: v.al_extents, on_io_error: v.on_io_error };
    let change = OptionChange {
        resource: Some(config.options()),
        volumes: config.volumes.iter().map(|(n, v)| (*n, options(v))).collect(),
        peers: config.peers.clone(),
    };
    cluster.command(me, Command::ChangeOptions { change: Box::new(change) });
}

fn target(cluster: &Cluster, word: &str) -> (usize, VolumeNumber) {
    match word.split_once('/') {
        Some((name, volume)) => {
            let volume = VolumeNumber::new(volume.parse().expect("a volume number")).expect("a volume number");
            (cluster.index(name), volume)
        }
        None => (cluster.index(word), V0),
    }
}

fn arrow(cluster: &Cluster, word: &str) -> (usize, usize) {
    let (a, b) = word.split_once("->").unwrap_or_else(|| panic!("{word:?} is no FROM->TO"));
    (cluster.index(a), cluster.index(b))
}

fn attach(cluster: &mut Cluster, words: &[&str]) {
    let (me, volume) = target(cluster, words[0]);
    if words.contains(&"fresh") {
        let bytes = size(value(words, "size").unwrap_or("8M"));
        let stamp = value(words, "stamp").map_or(0, |s| s.parse().expect("a stamp"));
        let slots =
            value(words, "slots").map_or((cluster.nodes.len() as u8 - 1).max(1), |s| s.parse().expect("a number"));
        cluster.nodes[me].disks.insert(volume, Disk::fresh(bytes, slots, stamp));
    }
    if !cluster.nodes[me].is_running() {
        cluster.nodes[me].start();
    }
    cluster.attach(me, volume);
}

fn connect(cluster: &mut Cluster, words: &[&str]) {
    let discard_my_data = words.contains(&"discard-my-data");
    let one = |cluster: &mut Cluster, me: usize, other: usize| {
        let peer = cluster.peer_as_seen(me, other);
        if cluster.nodes[me].status().peers[&peer].connection == ConnectionState::StandAlone {
            cluster.command(me, Command::Connect { peer, discard_my_data });
        }
    };
    if words[0].contains("->") {
        let (me, other) = arrow(cluster, words[0]);
        return one(cluster, me, other);
    }
    let (a, b) = (cluster.index(words[0]), cluster.index(words[1]));
    one(cluster, a, b);
    one(cluster, b, a);
}

fn synced(cluster: &mut Cluster, words: &[&str]) {
    let before = std::mem::replace(&mut cluster.verbosity, Verbosity::None);
    let size = words.iter().copied().find(|w| w.starts_with("size=")).unwrap_or("size=8M");
    let slots = words.iter().copied().find(|w| w.starts_with("slots=")).unwrap_or("");
    let names: Vec<&str> = words.iter().copied().filter(|w| w.len() == 1).collect();
    for name in &names {
        let me = cluster.index(name);
        let volumes: Vec<_> = cluster.nodes[me].config.volumes.keys().copied().collect();
        volumes.iter().for_each(|v| attach(cluster, &[&format!("{name}/{v}"), "fresh", size, slots]));
    }
    for (i, a) in names.iter().enumerate() {
        names[i + 1..].iter().for_each(|b| connect(cluster, &[a, b]));
    }
    cluster.run(Duration::from_secs(3));
    let first = cluster.index(names[0]);
    for volume in cluster.nodes[first].config.volumes.keys().copied().collect::<Vec<_>>() {
        cluster.command(first, Command::NewCurrentUuid { volume, clear_bitmap: true });
        cluster.run(Duration::from_secs(3));
    }
    cluster.verbosity = before;
}

fn deliver(cluster: &mut Cluster, words: &[&str]) {
    let (from, to) = arrow(cluster, words[0]);
    let socket = if words[1] == "control" { Socket::Control } else { Socket::Data };
    match words.get(2) {
        Some(&"all") => while cluster.deliver(from, to, socket) {},
        count => {
            for i in 0..count.map_or(1, |n| n.parse::<usize>().expect("a number of messages")) {
                assert!(cluster.deliver(from, to, socket), "deliver {}: message {i} is not there", words[0]);
            }
        }
    }
}

fn disk(cluster: &mut Cluster, words: &[&str]) {
    let me = cluster.index(words[0]);
    let result = if words[1] == "fail" { Err(IoError::Io) } else { Ok(()) };
    let count = match words.get(2) {
        Some(&"all") => {
            while cluster.disk_done(me, result) {}
            return;
        }
        Some(number) => number.parse().expect("a number of operations"),
        None => 1,
    };
    for i in 0..count {
        let left = cluster.pending_ios(me);
        assert!(cluster.disk_done(me, result), "disk {}: operation {i} is not there ({left})", words[0]);
    }
}

fn submit(cluster: &mut Cluster, verb: &str, words: &[&str]) {
    let (me, volume) = target(cluster, words[0]);
    let fua = words.contains(&"fua");
    let op = match verb {
        "write" => BlockOp::Write { fua },
        "read" => BlockOp::Read,
        "discard" => BlockOp::Discard,
        "write-zeroes" => BlockOp::WriteZeroes { may_unmap: words.contains(&"may-unmap"), fua },
        _ => BlockOp::Flush,
    };
    let first = words.get(1).map_or(ByteRange::new(0, 0).expect("empty"), |w| byte_range(w));
    let repeat = words.iter().position(|w| w.starts_with('x'));
    let count = repeat.map_or(1, |i| words[i][1..].parse::<u64>().expect("xN"));
    let stride = repeat.map_or(0, |i| size(words[i + 1]));
    for i in 0..count {
        let range = ByteRange::new(first.start() + i * stride, first.len()).expect("a range");
        cluster.submit(me, volume, op, range);
    }
}

fn operator(cluster: &mut Cluster, verb: &str, words: &[&str]) {
    let force = words.contains(&"force");
    if words[0].contains("->") {
        let (me, other) = arrow(cluster, words[0]);
        let peer = cluster.peer_as_seen(me, other);
        let command = match verb {
            "disconnect" => Command::Disconnect { peer, force },
            "invalidate" => Command::Invalidate { volume: V0, from: Some(peer) },
            "invalidate-remote" => Command::InvalidateRemote { volume: V0, peer },
            "pause-sync" => Command::PauseSync { volume: V0, peer },
            "resume-sync" => Command::ResumeSync { volume: V0, peer },
            "verify" => Command::Verify {
                volume: V0,
                peer,
                start: value(words, "start").map(size),
                stop: value(words, "stop").map(size),
            },
            _ => panic!("unknown command {verb:?} between two nodes"),
        };
        return cluster.command(me, command);
    }
    let (me, volume) = target(cluster, words[0]);
    let command = match verb {
        "promote" => Command::Promote { force },
        "demote" => Command::Demote,
        "detach" => Command::Detach { volume, force },
        "invalidate" => Command::Invalidate { volume, from: None },
        "outdate" => Command::Outdate { volume },
        "new-current-uuid" => Command::NewCurrentUuid { volume, clear_bitmap: words.contains(&"clear-bitmap") },
        _ => panic!("unknown command {verb:?}"),
    };
    cluster.command(me, command);
}

// ------------------------------------------------------------------------------- questions

fn status(cluster: &mut Cluster, me: usize) {
    let status = cluster.nodes[me].status();
    let name = cluster.nodes[me].name;
    let mut text = format!("{name}: {}", status.role);
    for (number, volume) in &status.volumes {
        text += &format!(", disk {number} {} {} bytes", volume.disk, volume.size_bytes);
    }
    if status.suspended_no_data {
        text += ", suspended";
    }
    for (id, peer) in &status.peers {
        text += &format!("\n{name}:   peer {id} {} {}", peer.connection, peer.role);
        for (number, device) in &peer.volumes {
            let (replication, disk) = (device.replication, device.disk);
            text += &format!(", {number} {replication} {disk} out-of-sync {}", device.out_of_sync_bytes);
            if device.equal_by_csum_bytes > 0 {
                text += &format!(" equal-by-csum {}", device.equal_by_csum_bytes);
            }
        }
    }
    cluster.say(Verbosity::None, text);
}

fn bits(cluster: &mut Cluster, me: usize) {
    let name = cluster.nodes[me].name;
    let peers: Vec<NodeId> = cluster.nodes[me].config.peers.keys().copied().collect();
    let mut text = String::new();
    for (number, disk) in &cluster.nodes[me].disks {
        for peer in &peers {
            let in_memory = match cluster.nodes[me].is_running() {
                true => {
                    let bytes = cluster.nodes[me].status().peers[peer].volumes[number].out_of_sync_bytes;
                    format!("{}", bytes / 4096)
                }
                false => "-".into(),
            };
            let on_disk = disk.bits_on_disk(*peer).map_or("-".into(), |n| n.to_string());
            text += &format!("{name}: bits {number} towards {peer}: {in_memory} in memory, {on_disk} on disk\n");
        }
    }
    cluster.say(Verbosity::None, text);
}

fn uuids(cluster: &mut Cluster, me: usize) {
    let name = cluster.nodes[me].name;
    let superblocks: Vec<_> = cluster.nodes[me].disks.iter().map(|(n, d)| (*n, d.superblock())).collect();
    for (number, superblock) in superblocks {
        let text = print::superblock_line(&superblock, &mut cluster.names);
        cluster.say(Verbosity::None, format!("{name}: on disk {number}: {text}"));
    }
}

/// The whole volume on two nodes, as a read would find it.
fn compare(cluster: &mut Cluster, words: &[&str]) {
    let (a, b) = (cluster.index(words[0]), cluster.index(words[1]));
    let volumes: Vec<_> = cluster.nodes[a].disks.keys().copied().collect();
    for volume in volumes {
        let disks = [a, b].map(|n| &cluster.nodes[n].disks[&volume]);
        let bytes = disks.map(|d| d.superblock().last_agreed_bytes).into_iter().min().expect("two disks");
        let read = disks.map(|d| d.read(ByteRange::new(0, bytes).expect("the volume")));
        let text = match read[0].iter().zip(&read[1]).position(|(x, y)| x != y) {
            None => format!("volume {volume}: {bytes} bytes equal"),
            Some(at) => {
                let differing = read[0].iter().zip(&read[1]).filter(|(x, y)| x != y).count();
                let show = |side: &Vec<u32>| print_stamps(&side[at..(at + 8).min(side.len())]);
                let (x, y) = (show(&read[0]), show(&read[1]));
                format!("volume {volume}: {differing} sectors differ, first {}: {x} against {y}", at * 512)
            }
        };
        cluster.say(Verbosity::None, text);
    }
}
