//! From two reports to the lines of `events` between them, in DRBD's order and grouping (docs/cli.md "events2").

use control::{EventRecord, Object, ResourceReport, Verb};

type Keys = Vec<(&'static str, String)>;

/// An object at one moment: what identifies it, and what changes, in groups that are shown together.
struct Item {
    object: Object,
    identity: Keys,
    groups: Vec<Keys>,
}

impl Item {
    fn record(&self, verb: Verb, groups: impl Iterator<Item = usize>) -> EventRecord {
        let mut record = EventRecord::new(verb, self.object);
        for (key, value) in &self.identity {
            record = record.with(key, value);
        }
        for (key, value) in groups.flat_map(|group| &self.groups[group]) {
            record = record.with(key, value);
        }
        record
    }

    fn complete(&self, verb: Verb) -> EventRecord {
        self.record(verb, 0..self.groups.len())
    }
}

/// The present state as `exists` lines.
pub fn initial(report: &ResourceReport, statistics: bool) -> Vec<EventRecord> {
    items(report, statistics).iter().map(|item| item.complete(Verb::Exists)).collect()
}

/// What changed: created objects, changes (only the groups that differ), destroyed objects last.
pub fn changes(old: &ResourceReport, new: &ResourceReport, statistics: bool) -> Vec<EventRecord> {
    let (old, new) = (items(old, statistics), items(new, statistics));
    let same = |a: &Item, b: &Item| a.object == b.object && a.identity == b.identity;
    let mut records = Vec::new();
    for item in &new {
        let Some(before) = old.iter().find(|before| same(before, item)) else {
            records.push(item.complete(Verb::Create));
            continue;
        };
        let changed: Vec<usize> = (0..item.groups.len()).filter(|g| item.groups[*g] != before.groups[*g]).collect();
        if !changed.is_empty() {
            records.push(item.record(Verb::Change, changed.into_iter()));
        }
    }
    let vanished = old.iter().rev().filter(|before| !new.iter().any(|item| same(before, item)));
    records.extend(vanished.map(|item| item.record(Verb::Destroy, 0..0)));
    records
}

fn yes_no(yes: bool) -> String {
    if yes { "yes".into() } else { "no".into() }
}

fn items(report: &ResourceReport, statistics: bool) -> Vec<Item> {
    let mut items = vec![resource(report, statistics)];
    let name = || ("name", report.name.clone());
    for connection in &report.connections {
        let identity = || {
            vec![name(), ("peer-node-id", connection.peer_node_id.to_string()), ("conn-name", connection.name.clone())]
        };
        let mut groups = vec![
            vec![("connection", connection.connection_state.clone())],
            vec![("role", connection.peer_role.clone())],
        ];
        if statistics {
            groups.push(vec![
                ("congested", yes_no(connection.congested)),
                ("ap-in-flight", connection.ap_in_flight.to_string()),
                ("rs-in-flight", connection.rs_in_flight.to_string()),
            ]);
        }
        items.push(Item { object: Object::Connection, identity: identity(), groups });
    }
    items.extend(report.devices.iter().map(|device| self::device(&report.name, device, statistics)));
    for connection in &report.connections {
        items.extend(connection.peer_devices.iter().map(|device| {
            let mut item = peer_device(device, statistics);
            item.identity = vec![
                name(),
                ("peer-node-id", connection.peer_node_id.to_string()),
                ("conn-name", connection.name.clone()),
                ("volume", device.volume.to_string()),
            ];
            item
        }));
        items.extend(connection.paths.iter().map(|path| Item {
            object: Object::Path,
            identity: vec![
                name(),
                ("peer-node-id", connection.peer_node_id.to_string()),
                ("conn-name", connection.name.clone()),
                ("local", host(&path.this_host)),
                ("peer", host(&path.remote_host)),
            ],
            groups: vec![vec![("established", yes_no(path.established))]],
        }));
    }
    items
}

fn host(host: &control::Host) -> String {
    match host.family.as_str() {
        "ipv6" => format!("ipv6:[{}]:{}", host.address, host.port),
        family => format!("{family}:{}:{}", host.address, host.port),
    }
}

fn resource(report: &ResourceReport, statistics: bool) -> Item {
    let suspended = if report.suspended_no_data { "no-data".to_string() } else { yes_no(report.suspended) };
    let mut groups = vec![
        vec![("role", report.role.clone())],
        vec![("suspended", suspended)],
        vec![("force-io-failures", yes_no(report.force_io_failures))],
    ];
    if statistics {
        groups.push(vec![("write-ordering", report.write_ordering.clone())]);
    }
    groups.push(vec![
        ("may_promote", yes_no(report.replicad.may_promote)),
        ("promotion_score", report.replicad.promotion_score.to_string()),
    ]);
    Item { object: Object::Resource, identity: vec![("name", report.name.clone())], groups }
}

fn device(resource: &str, device: &control::DeviceReport, statistics: bool) -> Item {
    let mut groups = vec![vec![
        ("backing_dev", device.replicad.backing_dev.clone()),
        ("disk", device.disk_state.clone()),
        ("client", yes_no(device.client)),
        ("open", yes_no(device.open)),
        ("quorum", yes_no(device.quorum)),
    ]];
    if statistics {
        groups.push(vec![
            ("size", device.size.to_string()),
            ("read", device.read.to_string()),
            ("written", device.written.to_string()),
            ("al-writes", device.al_writes.to_string()),
            ("bm-writes", device.bm_writes.to_string()),
            ("upper-pending", device.upper_pending.to_string()),
            ("lower-pending", device.lower_pending.to_string()),
            ("al-suspended", yes_no(device.replicad.al_suspended)),
            ("blocked", device.replicad.blocked.clone()),
        ]);
    }
    let identity = vec![
        ("name", resource.to_string()),
        ("volume", device.volume.to_string()),
        ("minor", device.minor.to_string()),
    ];
    Item { object: Object::Device, identity, groups }
}

/// Without identity: the connection has it.
fn peer_device(device: &control::PeerDeviceReport, statistics: bool) -> Item {
    let mut groups = vec![
        vec![
            ("replication", device.replication_state.clone()),
            ("peer-disk", device.peer_disk_state.clone()),
            ("peer-client", yes_no(device.peer_client)),
        ],
        vec![("resync-suspended", device.resync_suspended.clone())],
        device.sync.iter().map(|sync| ("done", format!("{:.2}", sync.percent_resync_done))).collect(),
    ];
    if statistics {
        groups.push(vec![
            ("received", device.received.to_string()),
            ("sent", device.sent.to_string()),
            ("out-of-sync", device.out_of_sync.to_string()),
            ("pending", device.pending.to_string()),
            ("unacked", device.unacked.to_string()),
        ]);
    }
    Item { object: Object::PeerDevice, identity: Vec::new(), groups }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::{ConnectionReport, DeviceReport, PeerDeviceReport};

    fn sample() -> ResourceReport {
        let peer_device = PeerDeviceReport {
            replication_state: "Established".into(),
            peer_disk_state: "UpToDate".into(),
            resync_suspended: "no".into(),
            ..Default::default()
        };
        ResourceReport {
            name: "r0".into(),
            role: "Secondary".into(),
            devices: vec![DeviceReport { minor: 10, disk_state: "UpToDate".into(), ..Default::default() }],
            connections: vec![ConnectionReport {
                peer_node_id: 1,
                name: "bob".into(),
                connection_state: "Connected".into(),
                peer_role: "Primary".into(),
                peer_devices: vec![peer_device],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn lines(records: Vec<EventRecord>) -> Vec<String> {
        records.iter().map(EventRecord::to_string).collect()
    }

    #[test]
    fn the_initial_state_has_every_object_with_all_keys() {
        let lines = lines(initial(&sample(), false));
        assert_eq!(
            lines[0],
            "exists resource name:r0 role:Secondary suspended:no force-io-failures:no may_promote:no promotion_score:0"
        );
        assert_eq!(
            lines[1],
            "exists connection name:r0 peer-node-id:1 conn-name:bob connection:Connected role:Primary"
        );
        assert!(lines[2].starts_with("exists device name:r0 volume:0 minor:10 backing_dev:"), "{}", lines[2]);
        assert_eq!(
            lines[3],
            "exists peer-device name:r0 peer-node-id:1 conn-name:bob volume:0 replication:Established \
             peer-disk:UpToDate peer-client:no resync-suspended:no"
        );
    }

    #[test]
    fn a_change_names_only_what_changed() {
        let (old, mut new) = (sample(), sample());
        assert_eq!(lines(changes(&old, &new, true)), Vec::<String>::new());
        new.connections[0].connection_state = "Connecting".into();
        new.connections[0].peer_devices.clear();
        assert_eq!(
            lines(changes(&old, &new, true)),
            [
                "change connection name:r0 peer-node-id:1 conn-name:bob connection:Connecting",
                "destroy peer-device name:r0 peer-node-id:1 conn-name:bob volume:0",
            ]
        );
        assert!(lines(changes(&new, &old, false))[1].starts_with("create peer-device name:r0"));
    }
}
