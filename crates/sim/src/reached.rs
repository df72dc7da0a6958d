//! Coverage: which rows of the handshake table, transitions, answers and packets a run has come across. A map from a
//! readable name to how often; `sim` adds the maps of all runs up, prints what was never reached and draws its next seeds
//! towards what is rare.

use std::collections::BTreeMap;

use engine::handshake::Rule;
use engine::{DiskOp, Effect, Event, Refusal};
use types::{ConnectionState, DiskState, ReplicationState};
use wire::packet::PacketInfo;

use crate::action::{ORDERS, Order};

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Reached {
    pub points: BTreeMap<String, u64>,
    packets: BTreeMap<u16, u64>,
    effects: BTreeMap<&'static str, u64>,
}

impl Reached {
    pub fn effect(&mut self, effect: &Effect) {
        *self.effects.entry(name_of(effect)).or_default() += 1;
    }

    fn count(&mut self, point: String) {
        *self.points.entry(point).or_default() += 1;
    }

    pub fn packet(&mut self, number: u16) {
        *self.packets.entry(number).or_default() += 1;
    }

    pub fn reply(&mut self, order: Order, result: &Result<(), Refusal>) {
        let answer = result.as_ref().map_or_else(|refusal| refusal.rule, |()| "done");
        self.count(format!("command {}: {answer}", order.name()));
    }

    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Role { from, to, reason } => self.count(format!("role {from} -> {to}: {reason}")),
            Event::Disk { from, to, reason, .. } => self.count(format!("disk {from} -> {to}: {reason}")),
            Event::Connection { from, to, .. } => self.count(format!("connection {from} -> {to}")),
            Event::PeerRole { from, to, .. } => self.count(format!("peer role {from} -> {to}")),
            Event::Replication { from, to, reason, .. } => self.count(format!("replication {from} -> {to}: {reason}")),
            Event::PeerDisk { from, to, .. } => self.count(format!("peer disk {from} -> {to}")),
            Event::Handshake { text, .. } => {
                let rule = text.split(" (").next().unwrap_or(text);
                self.count(format!("handshake {rule}"));
            }
            Event::NewGeneration { reason, .. } => self.count(format!("generation: {reason}")),
            Event::ResyncFinished { failed_blocks, .. } if *failed_blocks > 0 => {
                self.count("resync ended with failed blocks".into())
            }
            Event::SplitBrain { .. } => self.count("split brain".into()),
            Event::Protocol { from, to, reason, .. } => self.count(format!("protocol {from:?} -> {to:?}: {reason}")),
            Event::Warning { text } => {
                // Numbers and names differ each time.
                let words = text.split_whitespace().filter(|w| w.chars().all(|c| c.is_ascii_lowercase()));
                self.count(format!("warning {}", words.take(6).collect::<Vec<_>>().join(" ")));
            }
            Event::VerifyFinished { driving, different, skipped, complete, .. } => {
                let found = if *different > 0 { "differences" } else { "no difference" };
                let part = if *skipped > 0 { ", some skipped" } else { "" };
                let how = if *complete { "to the end" } else { "interrupted" };
                self.count(format!("verify {how}, driving {driving}: {found}{part}"))
            }
            Event::VerifyStarted { .. }
            | Event::ResyncStarted { .. }
            | Event::ResyncFinished { .. }
            | Event::Size { .. } => {}
        }
    }

    pub fn add(&mut self, other: &Reached) {
        for (point, count) in &other.points {
            *self.points.entry(point.clone()).or_default() += count;
        }
        for (packet, count) in &other.packets {
            *self.packets.entry(*packet).or_default() += count;
        }
        for (effect, count) in &other.effects {
            *self.effects.entry(effect).or_default() += count;
        }
    }

    /// Everything with its count, and what could be and never was.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (point, count) in &self.points {
            text += &format!("    {count:>10}  {point}\n");
        }
        for (effect, count) in &self.effects {
            text += &format!("    {count:>10}  effect {effect}\n");
        }
        for info in PacketInfo::all() {
            if let Some(count) = self.packets.get(&info.packet.number()) {
                text += &format!("    {count:>10}  packet {}\n", info.name);
            }
        }
        text + &self.missing()
    }

    /// What the types know and no run has shown.
    pub fn missing(&self) -> String {
        let has = |beginning: &str| self.points.keys().any(|point| point.starts_with(beginning));
        let rules = Rule::ALL.iter().map(|rule| rule.name());
        let seen =
            |rule: &str| self.points.keys().any(|p| p.starts_with("handshake") && p.ends_with(&format!(" {rule}")));
        let rules: Vec<&str> = rules.filter(|rule| !seen(rule)).collect();
        let orders: Vec<&str> = ORDERS.into_iter().filter(|order| !has(&format!("command {order}: done"))).collect();
        let to = |kind: &str, state: String| {
            self.points.keys().any(|p| {
                p.starts_with(kind) && p.split("-> ").nth(1).is_some_and(|t| t.split(':').next() == Some(&state))
            })
        };
        let disks = (0..16).filter_map(DiskState::from_wire).map(|d| d.to_string());
        let disks: Vec<String> = disks.filter(|d| !to("disk", d.clone())).collect();
        let connections = (0..32).filter_map(ConnectionState::from_wire).map(|c| c.to_string());
        let connections: Vec<String> = connections.filter(|c| !to("connection", c.clone())).collect();
        let replications = (0..32).filter_map(ReplicationState::from_wire).map(|r| r.to_string());
        let replications: Vec<String> = replications.filter(|r| !to("replication", r.clone())).collect();
        let packets = PacketInfo::all().iter().filter(|info| !self.packets.contains_key(&info.packet.number()));
        let packets: Vec<&str> = packets.map(|info| info.name).collect();
        let effects: Vec<&str> = EFFECTS.into_iter().filter(|name| !self.effects.contains_key(name)).collect();
        let mut text = String::from("never reached:\n");
        for (what, names) in [
            ("handshake rules", rules.iter().map(ToString::to_string).collect::<Vec<_>>()),
            ("commands done", orders.iter().map(ToString::to_string).collect()),
            ("disk states", disks),
            ("connection states", connections),
            ("replication states", replications),
            ("effects", effects.iter().map(ToString::to_string).collect()),
            ("packets", packets.iter().map(ToString::to_string).collect()),
        ] {
            text += &format!("    {what}: {}\n", if names.is_empty() { "none".into() } else { names.join(", ") });
        }
        text
    }
}

/// Every effect of the engine: a new one does not compile until it is named here.
fn name_of(effect: &Effect) -> &'static str {
    match effect {
        Effect::Reply { .. } => "reply",
        Effect::Complete { result: Ok(()), .. } => "complete",
        Effect::Complete { result: Err(_), .. } => "complete with an error",
        Effect::Release { .. } => "release",
        Effect::Copy { .. } => "copy",
        Effect::Disk { op, .. } => match op {
            DiskOp::Read { .. } => "disk read",
            DiskOp::ReadInto { .. } => "disk read into",
            DiskOp::Write { .. } => "disk write",
            DiskOp::Flush => "disk flush",
            DiskOp::Discard { .. } => "disk discard",
            DiskOp::WriteZeroes { .. } => "disk write zeroes",
            DiskOp::MetaWrite { .. } => "metadata write",
        },
        Effect::Digest { .. } => "digest",
        Effect::Send { .. } => "send",
        Effect::LinkContext { .. } => "link context",
        Effect::Connect { .. } => "connect",
        Effect::StopConnecting { .. } => "stop connecting",
        Effect::CloseLink { .. } => "close link",
        Effect::Device { .. } => "device",
        Effect::CloseDisk { .. } => "close disk",
        Effect::Event(_) => "event",
    }
}

const EFFECTS: [&str; 21] = [
    "reply",
    "complete",
    "complete with an error",
    "release",
    "copy",
    "disk read",
    "disk read into",
    "disk write",
    "disk flush",
    "disk discard",
    "disk write zeroes",
    "metadata write",
    "digest",
    "send",
    "link context",
    "connect",
    "stop connecting",
    "close link",
    "device",
    "close disk",
    "event",
];
