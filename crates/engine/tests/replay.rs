//! Captures of two DRBD 9.3.3 kernels, one of the kernels replaced by an engine: it must say what the kernel said.
//!
//! Each capture is played twice, once with the engine as node a and once as node b. The engine gets the other kernel's
//! messages, the operator's commands and the application's requests in the order of the capture; each message that it
//! sends is compared with the replaced kernel's: kind, order on its socket, every field, data. Numbers that differ from run to
//! run are mapped (`replay/identifiers.rs`). The kernel's features are reduced to what we offer.
//!
//! Where we are different on purpose stands in [`TABLE`], and nowhere else: a difference without a row fails, and so
//! does a row that nothing needed. `TRACE=1 ONLY=name` tells the story of a run.

#[path = "replay/capture.rs"]
mod capture;
#[path = "replay/compare.rs"]
mod compare;
#[path = "harness/config.rs"]
mod config;
#[path = "harness/fresh_disk.rs"]
mod fresh_disk;
#[path = "replay/identifiers.rs"]
mod identifiers;
#[path = "replay/player.rs"]
mod player;
#[path = "replay/table.rs"]
mod table;

use capture::Event;
use engine::pacing::PacingConfig;
use engine::*;
use player::{Difference, Player};
use table::{RUNS, Row, SKIPPED, TABLE};
use types::*;
use wire::Message;
use wire::auth::HmacAlgorithm;

pub const V0: VolumeNumber = VolumeNumber::new(0).unwrap();

/// What an operator or an application did on the replaced node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Do {
    Connect,
    ConnectDiscarding,
    Disconnect,
    DisconnectForced,
    Promote,
    PromoteRefused,
    PromoteForced,
    Demote,
    /// `drbdsetup down`: demoted and disconnected.
    Down,
    Outdate,
    SkipInitialSync,
    Write {
        at: u64,
        len: u64,
    },
    /// What the block holds at the end of the capture, not at its beginning.
    Rewrite {
        at: u64,
    },
    /// Other bytes on the own disk, behind the engine's back.
    Corrupt {
        at: u64,
        len: u64,
    },
    /// Sectors.
    Verify {
        start: Option<u64>,
        stop: Option<u64>,
    },
}

/// What the sidecar of a capture says about the nodes and what was done to them.
pub struct Capture {
    pub name: &'static str,
    /// Time 0 of the sidecar on the clock of the streams. Seconds.
    pub zero: f64,
    pub device_bytes: u64,
    /// Of a and b.
    pub protocol: [Protocol; 2],
    pub auth: [Option<(HmacAlgorithm, &'static str)>; 2],
    /// `resync-rate=102400`, `c-plan-ahead=0`.
    pub fixed_rate: bool,
    pub use_rle: bool,
    pub verify_alg: &'static str,
    pub csums_alg: &'static str,
    pub size_max_bytes: Option<u64>,
    /// The writes of this capture are taken from the replaced node's own messages.
    pub writes_from_capture: bool,
    /// Node, until when its run goes, and why not further.
    pub until: &'static [(char, f64, &'static str)],
    pub physical_block_bytes: u32,
    /// Seconds from time 0, node, what.
    pub script: &'static [(f64, char, Do)],
}

pub struct Run {
    pub device_bytes: u64,
    pub writes_from_capture: bool,
    pub until: Option<f64>,
    pub physical_block_bytes: u32,
    pub secret_of_peer: Option<AuthConfig>,
}

impl Run {
    /// Of the RAM disks below the captured nodes.
    fn limits(&self) -> BlockLimits {
        let physical_block_bytes = self.physical_block_bytes;
        BlockLimits { io_bytes_max: 130_560, physical_block_bytes, ..BlockLimits::default() }
    }
}

fn auth(of: Option<(HmacAlgorithm, &str)>) -> Option<AuthConfig> {
    of.map(|(algorithm, secret)| AuthConfig { algorithm, secret: secret.as_bytes().to_vec() })
}

struct Played {
    compared: usize,
    unexplained: Vec<String>,
    used: Vec<usize>,
}

fn play(capture: &Capture, me: char, change: impl FnOnce(&mut Vec<(f64, Event)>)) -> Played {
    let index = usize::from(me == 'b');
    let node = |n: u8| NodeId::new(n).unwrap();
    let mut config = config::resource(node(index as u8), &[node(0), node(1)], 1, capture.protocol[index]);
    config.volumes.get_mut(&V0).unwrap().size_max_bytes = capture.size_max_bytes;
    let connection = config.peers.get_mut(&node(1 - index as u8)).unwrap();
    connection.auth = auth(capture.auth[index]);
    connection.use_rle = capture.use_rle;
    (connection.verify_alg, connection.csums_alg) = (capture.verify_alg.into(), capture.csums_alg.into());
    if capture.fixed_rate {
        connection.resync = PacingConfig { resync_rate_kib: 102_400, plan_ahead_ds: 0, ..PacingConfig::default() };
    }
    let run = Run {
        device_bytes: capture.device_bytes,
        writes_from_capture: capture.writes_from_capture,
        until: capture.until.iter().find(|(node, ..)| *node == me).map(|(_, at, _)| *at),
        physical_block_bytes: capture.physical_block_bytes,
        secret_of_peer: auth(capture.auth[1 - index]),
    };
    let rows: Vec<(usize, &Row)> = TABLE.iter().enumerate().filter(|(_, row)| row.is_for(capture.name, me)).collect();
    let tolerated: Vec<Difference> = rows.iter().map(|(_, row)| row.difference()).collect();
    let script: Vec<(f64, Do)> =
        capture.script.iter().filter(|(_, node, _)| *node == me).map(|(at, _, what)| (*at, *what)).collect();
    let mut events = capture::load(capture.name, capture.zero, if me == 'a' { "a" } else { "b" });
    change(&mut events);
    let mut player = Player::new(&run, config, &tolerated);
    player.play(events, &script);
    let mut played = Played { compared: player.compared, unexplained: Vec::new(), used: Vec::new() };
    for found in &player.found {
        match rows.iter().find(|(_, row)| row.difference() == found.difference) {
            Some((number, _)) => played.used.push(*number),
            None => played.unexplained.push(format!("  {:?}: {}", found.difference, found.text)),
        }
    }
    played
}

#[test]
fn an_engine_in_the_place_of_a_kernel_says_what_the_kernel_said() {
    let only = std::env::var("ONLY").ok();
    let mut used = vec![false; TABLE.len()];
    let mut failures = Vec::new();
    for capture in RUNS.iter().filter(|c| only.as_ref().is_none_or(|o| c.name.contains(o))) {
        for me in ['a', 'b'] {
            let played = play(capture, me, |_| {});
            played.used.iter().for_each(|row| used[*row] = true);
            println!("{} as {me}: {} messages compared", capture.name, played.compared);
            if !played.unexplained.is_empty() {
                failures.push(format!("{} as {me}:\n{}", capture.name, played.unexplained.join("\n")));
            }
        }
        for (me, at, why) in capture.until {
            println!("SKIPPED: replay of {} as {me} from {at} s: {why}", capture.name);
        }
    }
    for row in TABLE.iter().filter(|row| row.open) {
        println!("open: {:?}: {}", row.difference(), row.reason);
    }
    for (name, reason) in SKIPPED {
        println!("SKIPPED: replay of {name}: {reason}");
    }
    let unused = TABLE.iter().zip(used).filter(|(_, used)| only.is_none() && !used);
    failures.extend(unused.map(|(row, _)| format!("a row that nothing needs: {row:?}")));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The comparison can fail: one bit in one field, one message less, two that changed places.
#[test]
fn a_changed_capture_is_noticed() {
    let capture = RUNS.iter().find(|c| c.name == "9-01-first-connect").expect("the first capture");
    let position = |events: &[(f64, Event)], wanted: &str| {
        let is = |event: &Event| matches!(event, Event::Expected(f) if compare::kind(&f.message) == wanted);
        events.iter().position(|(_, event)| is(event)).expect("a message of that kind")
    };
    let field = play(capture, 'a', |events| {
        let at = position(events, "Sizes");
        let Event::Expected(frame) = &mut events[at].1 else { unreachable!() };
        let Message::Sizes(sizes) = &mut frame.message else { unreachable!() };
        sizes.current_bytes += 512;
    });
    assert_eq!(field.unexplained.len(), 1, "{:?}", field.unexplained);
    assert!(field.unexplained[0].contains("current_bytes"), "{:?}", field.unexplained);
    let less = play(capture, 'a', |events| drop(events.remove(position(events, "SyncParam"))));
    assert!(less.unexplained.iter().any(|d| d.contains("Extra(\"SyncParam\")")), "{:?}", less.unexplained);
    let swapped = play(capture, 'a', |events| {
        let (one, other) = (position(events, "SyncParam"), position(events, "Sizes"));
        events.swap(one, other);
    });
    assert!(!swapped.unexplained.is_empty());
}
