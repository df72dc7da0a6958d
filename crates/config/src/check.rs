//! What no single table can know: duplicates, references to what is not there, options that contradict each other.
//! Each finding names both places.

use crate::diagnostic::{Diagnostic, Place, Severity};
use crate::load::RawConfig;
use crate::model::{Device, Disk, MetaDisk, Resource};
use crate::raw::{RawConnection, RawNode, RawResource, RawVolume, unknown_node_help};
use crate::reader::Placed;
use crate::words::{Fencing, OnCongestion, Protocol};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use types::VolumeNumber;

type Out = RefCell<Vec<Diagnostic>>;

fn found(place: &Place, key: String, text: String, cause: String, help: impl Into<String>) -> Diagnostic {
    let place = Some(place.clone());
    Diagnostic { place, severity: Severity::Error, key, text, cause, help: Some(help.into()) }
}

pub(crate) fn joins(connection: &RawConnection, a: &RawNode, b: &RawNode) -> bool {
    let [x, y] = &connection.nodes;
    (x.value == a.name.value && y.value == b.name.value) || (x.value == b.name.value && y.value == a.name.value)
}

/// Checks on what the files say. Reports everything it finds.
pub(crate) fn all(raw: &RawConfig, out: &Out) {
    let names = raw.resources.iter().map(|r| (r.name.value.clone(), &r.name.place, String::new()));
    twice(
        out,
        names,
        |name| (format!("resource {name}: name"), "names a second resource".into()),
        "rename one of them",
    );
    for resource in &raw.resources {
        in_resource(resource, out);
        if let Some(template) = &resource.template
            && !raw.templates.contains_key(&template.value)
        {
            let known: Vec<&str> = raw.templates.keys().map(String::as_str).collect();
            let help = crate::value::did_you_mean(&template.value, known.iter().copied(), &known.join(", "));
            let key = format!("resource {}: template", resource.name.value);
            let text = format!("{:?}", template.value);
            out.borrow_mut().push(found(&template.place, key, text, "names no template".into(), help));
        }
    }
    across_resources(raw, out);
}

/// Reports every key after its first use. `items`: key, place, words for the first use.
fn twice<'a, K: Ord + Display + Clone>(
    out: &Out,
    items: impl Iterator<Item = (K, &'a Place, String)>,
    say: impl Fn(&K) -> (String, String),
    help: &str,
) {
    let mut first: BTreeMap<K, (&Place, String)> = BTreeMap::new();
    for (key, place, by) in items {
        match first.get(&key) {
            None => drop(first.insert(key, (place, by))),
            Some((earlier, earlier_by)) => {
                let (name, cause) = say(&key);
                let by = if earlier_by.is_empty() { String::new() } else { format!(" by {earlier_by}") };
                let cause = format!("{cause}, first used{by} at {earlier}");
                out.borrow_mut().push(found(place, name, String::new(), cause, help));
            }
        }
    }
}

fn in_resource(resource: &RawResource, out: &Out) {
    let name = &resource.name.value;
    let numbers = |volumes: &'_ [RawVolume]| -> Vec<(VolumeNumber, Place)> {
        volumes.iter().map(|v| (v.number.value, v.number.place.clone())).collect()
    };
    let volume_twice = |volumes: &[RawVolume], whose: &str| {
        let numbers = numbers(volumes);
        let items = numbers.iter().map(|(n, place)| (*n, place, String::new()));
        let say = |n: &VolumeNumber| (format!("resource {name}{whose}: volume {n}"), "is there twice".into());
        twice(out, items, say, "give each volume its own number");
    };
    volume_twice(&resource.volumes, "");
    for node in &resource.nodes {
        volume_twice(&node.volumes, &format!(", on {}", node.name.value));
    }
    let ids = resource.nodes.iter().map(|n| (n.id.value, &n.id.place, n.name.value.clone()));
    let say = |id: &types::NodeId| (format!("resource {name}: node-id {id}"), "is there twice".into());
    twice(out, ids, say, "give each node its own id, the one in its metadata");
    node_names_twice(resource, out);
    let addresses = resource.nodes.iter().map(|n| (n.address.value, &n.address.place, n.name.value.clone()));
    let say = |a: &SocketAddr| (format!("resource {name}: address {a}"), "is used by two nodes".into());
    twice(out, addresses, say, "give each node its own address");
    if resource.complete {
        references(resource, out);
    }
}

/// Reports every name that means the host of an earlier one, as [`crate::model::Node::is_named`] has it.
fn node_names_twice(resource: &RawResource, out: &Out) {
    let mut by_name: BTreeMap<String, &Placed<String>> = BTreeMap::new();
    let mut by_short_name: BTreeMap<String, &Placed<String>> = BTreeMap::new();
    for name in resource.nodes.iter().flat_map(|n| std::iter::once(&n.name).chain(&n.aliases)) {
        let full = name.value.to_ascii_lowercase();
        let short = full.split('.').next().unwrap_or_default().to_string();
        // `a` means every `a.domain`, `a.domain` means itself and `a`.
        let other_form = if full == short { by_short_name.get(&short) } else { by_name.get(&short) };
        if let Some(earlier) = by_name.get(&full).or(other_form) {
            let key = format!("resource {}: node", resource.name.value);
            let cause = format!("names the host `{}` of {}", earlier.value, earlier.place);
            let text = format!("{:?}", name.value);
            out.borrow_mut().push(found(&name.place, key, text, cause, "give each node one `on` entry"));
        }
        by_name.entry(full).or_insert(name);
        by_short_name.entry(short).or_insert(name);
    }
}

/// Names and numbers that have to exist, and tables that have to be there.
fn references(resource: &RawResource, out: &Out) {
    let name = &resource.name.value;
    let report = |d: Diagnostic| out.borrow_mut().push(d);
    let at = |what: &str| format!("resource {name}{what}");
    if resource.nodes.is_empty() {
        let help = "add [[resource.on]] with node, node-id and address for each node";
        report(found(&resource.name.place, at(""), String::new(), "has no `on` entry: nobody holds it".into(), help));
    }
    if resource.volumes.is_empty() {
        let help = "add [[resource.volume]] with number, device and disk";
        report(found(&resource.name.place, at(""), String::new(), "has no volume".into(), help));
    }
    let exists = |number: VolumeNumber| resource.volumes.iter().any(|v| v.number.value == number);
    let unknown_volume = |number: &Placed<VolumeNumber>, whose: String| {
        let known: Vec<String> = resource.volumes.iter().map(|v| v.number.value.to_string()).collect();
        let cause = "is no volume of the resource".to_string();
        let help = format!("add a [[resource.volume]] with that number; there are: {}", known.join(", "));
        found(&number.place, at(&format!("{whose}: volume {}", number.value)), String::new(), cause, help)
    };
    for node in &resource.nodes {
        for volume in node.volumes.iter().filter(|v| !exists(v.number.value)) {
            report(unknown_volume(&volume.number, format!(", on {}", node.name.value)));
        }
    }
    for volume in &resource.volumes {
        without_device(resource, volume, out);
    }
    let node_exists = |n: &str| resource.nodes.iter().any(|node| node.name.value == n);
    let named = resource.connections.iter().flat_map(|c| &c.nodes).map(|n| ("connection", n));
    let in_mesh = resource.mesh.iter().flatten().flatten().map(|n| ("mesh", n));
    for (key, node) in named.chain(in_mesh).filter(|(_, n)| !node_exists(&n.value)) {
        let help = unknown_node_help(resource, &node.value);
        let cause = "is no node of the resource".to_string();
        report(found(&node.place, at(&format!(": {key}")), format!("{:?}", node.value), cause, help));
    }
    for connection in &resource.connections {
        for (number, _) in connection.volumes.iter().filter(|(n, _)| !exists(n.value)) {
            report(unknown_volume(number, ", connection".into()));
        }
    }
    connection_twice(resource, out);
    peer_options_differ(resource, out);
}

/// `device` may come from the resource or from each node.
fn without_device(resource: &RawResource, volume: &RawVolume, out: &Out) {
    let own = |n: &RawNode| n.volumes.iter().any(|v| v.number.value == volume.number.value && v.device.is_some());
    if volume.device.is_some() || resource.nodes.iter().all(own) {
        return;
    }
    let key = format!("resource {}: volume {}", resource.name.value, volume.number.value);
    let help = "add device = \"ublk:N\" for /dev/ublkbN, \"nbd\", \"nbd:ADDRESS:PORT\", or \"none\"";
    out.borrow_mut().push(found(&volume.number.place, key, String::new(), "has no `device`".into(), help));
}

fn connection_twice(resource: &RawResource, out: &Out) {
    let pair = |c: &RawConnection| {
        let mut names = [c.nodes[0].value.clone(), c.nodes[1].value.clone()];
        names.sort();
        names.join(" and ")
    };
    let items = resource.connections.iter().map(|c| (pair(c), &c.place, String::new()));
    let name = &resource.name.value;
    let say = |pair: &String| (format!("resource {name}: connection of {pair}"), "is there twice".into());
    twice(out, items, say, "put both into one, with several `path`s if there are several links");
    for connection in resource.connections.iter().filter(|c| c.nodes[0].value == c.nodes[1].value) {
        let key = format!("resource {name}: connection");
        let cause = format!("joins {} with itself", connection.nodes[0].value);
        out.borrow_mut().push(found(&connection.place, key, String::new(), cause, "name two nodes"));
    }
}

/// Both ends own a peer device: two values for it would leave open which one counts.
fn peer_options_differ(resource: &RawResource, out: &Out) {
    let mut first: BTreeMap<(VolumeNumber, &str), (&crate::value::Value, &Placed<VolumeNumber>)> = BTreeMap::new();
    for volume in resource.nodes.iter().flat_map(|n| &n.volumes) {
        for (key, value) in &volume.peer {
            let earlier = first.entry((volume.number.value, key)).or_insert((value, &volume.number));
            if earlier.0 != value {
                let name = format!("resource {}: volume {}, {key}", resource.name.value, volume.number.value);
                let cause = format!("differs from the value of another node at {}", earlier.1.place);
                let help = "set it in [[resource.connection]] instead";
                out.borrow_mut().push(found(&volume.number.place, name, String::new(), cause, help));
            }
        }
    }
}

/// What a node has once, over all its resources: disks, metadata areas, addresses, device numbers.
fn across_resources(raw: &RawConfig, out: &Out) {
    let mut disks: Vec<(String, &Place, String)> = Vec::new();
    let mut devices: Vec<(String, &Place, String)> = Vec::new();
    for (resource, node, volume) in every_volume(raw) {
        let own = node.volumes.iter().find(|v| v.number.value == volume.number.value);
        let by = format!("{}/{}", resource.name.value, volume.number.value);
        let on = format!("on {}", node.name.value);
        let disk = own.and_then(|v| v.disk.as_ref()).or(volume.disk.as_ref());
        let meta = own.and_then(|v| v.meta_disk.as_ref()).or(volume.meta_disk.as_ref());
        if let Some(Placed { value: Disk::Path(path), place }) = disk {
            disks.push((format!("{on}: {}", path.display()), place, format!("{by} as disk")));
            match meta {
                Some(Placed { value: MetaDisk::External(path), place }) => {
                    disks.push((format!("{on}: {}", path.display()), place, format!("{by} as meta-disk")));
                }
                Some(Placed { value: MetaDisk::Indexed { path, index }, place }) => {
                    let slot = format!("{on}: {} [{index}]", path.display());
                    disks.push((slot, place, format!("{by} as meta-disk")));
                }
                _ => {}
            }
        }
        if let Some(Placed { value: Device::Ublk(number), place }) = device_of(node, volume) {
            devices.push((format!("{on}: /dev/ublkb{number}"), place, by));
        }
    }
    let say = |key: &String| (key.clone(), "is given to two volumes".to_string());
    report_per_place(out, disks, say, "give each volume its own disk");
    report_per_place(out, devices, say, "give each volume its own number");
    ports(raw, out);
    nbd_ports(raw, out);
}

/// What the node serves the volume as.
fn device_of<'a>(node: &'a RawNode, volume: &'a RawVolume) -> Option<&'a Placed<Device>> {
    let own = node.volumes.iter().find(|v| v.number.value == volume.number.value);
    own.and_then(|v| v.device.as_ref()).or(volume.device.as_ref())
}

fn every_volume(raw: &RawConfig) -> impl Iterator<Item = (&RawResource, &RawNode, &RawVolume)> {
    raw.resources.iter().flat_map(|r| r.nodes.iter().flat_map(move |n| r.volumes.iter().map(move |v| (r, n, v))))
}

/// A disk named once for all nodes clashes on all of them: one message per place is enough.
fn report_per_place(
    out: &Out,
    items: Vec<(String, &Place, String)>,
    say: impl Fn(&String) -> (String, String),
    help: &str,
) {
    let all = RefCell::new(Vec::new());
    twice(&all, items.into_iter(), say, help);
    let mut places = BTreeSet::new();
    for diagnostic in all.into_inner() {
        if places.insert(diagnostic.place.clone()) {
            out.borrow_mut().push(diagnostic);
        }
    }
}

/// A listening socket belongs to one resource. Within a resource one address serves all connections.
fn ports(raw: &RawConfig, out: &Out) {
    let mut items = Vec::new();
    for resource in &raw.resources {
        for node in &resource.nodes {
            for address in replication_addresses(resource, node) {
                let key = format!("on {}: address {}", node.name.value, address.value);
                items.push((key, &address.place, format!("resource {}", resource.name.value)));
            }
        }
    }
    let say = |key: &String| (key.clone(), "is used by two resources".to_string());
    twice(out, items.into_iter(), say, "give each resource its own port");
}

/// Where the resource listens on this node, each address once.
fn replication_addresses<'a>(resource: &'a RawResource, node: &'a RawNode) -> Vec<&'a Placed<SocketAddr>> {
    let mut own = vec![&node.address];
    for connection in &resource.connections {
        let side = connection.nodes.iter().position(|n| n.value == node.name.value);
        own.extend(connection.paths.iter().filter_map(|p| Some(&p[side?])));
    }
    own.sort_by_key(|a| a.value);
    own.dedup_by_key(|a| a.value);
    own
}

/// A listening socket for NBD belongs to one volume, and takes no port from replication. Two nodes may have the same:
/// an address that follows the Primary.
fn nbd_ports(raw: &RawConfig, out: &Out) {
    let mut taken: Vec<Taken<'_>> = Vec::new();
    for resource in &raw.resources {
        for node in &resource.nodes {
            taken.extend(replication_addresses(resource, node).into_iter().map(|address| Taken {
                node: &node.name.value,
                address: address.value,
                place: &address.place,
                by: format!("resource {} replicates", resource.name.value),
                help: "give it another port, for example 10809",
            }));
        }
    }
    let mut places: Vec<&Place> = Vec::new();
    for (resource, node, volume) in every_volume(raw) {
        let Some(Placed { value: Device::Nbd { listen: Some(address) }, place }) = device_of(node, volume) else {
            continue;
        };
        let own = Taken {
            node: &node.name.value,
            address: *address,
            place,
            by: format!("{}/{} is served", resource.name.value, volume.number.value),
            help: "give each volume its own port",
        };
        // As in `report_per_place`: once for all nodes is enough.
        if let Some(first) = taken.iter().find(|first| first.clashes_with(&own))
            && !places.contains(&place)
        {
            let key = format!("on {}: device", own.node);
            let cause = format!("listens on {}, where {}, set at {}", first.address, first.by, first.place);
            out.borrow_mut().push(found(place, key, format!("\"nbd:{address}\""), cause, first.help));
            places.push(place);
        }
        taken.push(own);
    }
}

/// An address on which a node listens.
struct Taken<'a> {
    node: &'a str,
    address: SocketAddr,
    place: &'a Place,
    /// What for.
    by: String,
    /// What somebody can do who wants to listen there, too.
    help: &'static str,
}

impl Taken<'_> {
    /// The kernel would not let two sockets listen on both: `0.0.0.0` and `[::]` take the port of every address of
    /// their family.
    fn clashes_with(&self, other: &Taken<'_>) -> bool {
        let (a, b) = (self.address, other.address);
        let all_of_one_family = a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified());
        let same_ip = a.ip().to_canonical() == b.ip().to_canonical();
        self.node == other.node && a.port() == b.port() && (same_ip || all_of_one_family)
    }
}

/// Options that contradict each other after inheritance. DRBD's kernel part has the same rules.
pub(crate) fn effective(raw: &RawConfig, resources: &[Resource]) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    for (raw, resource) in raw.resources.iter().zip(resources) {
        let mut causes: Vec<(String, &str)> = Vec::new();
        let connections = resource.connections.iter().map(|c| &c.net);
        for net in connections.chain(resource.connections.is_empty().then_some(&resource.net)) {
            causes.extend(net.contradictions());
        }
        for volume in resource.nodes.iter().flat_map(|n| &n.volumes) {
            if !volume.options.block_size.is_power_of_two() {
                let cause = format!("disk: block-size = {} is no power of two", volume.options.block_size);
                causes.push((cause, "write 512, 1024, 2048 or 4096"));
            }
        }
        causes.dedup();
        for (cause, help) in causes {
            let key = format!("resource {}:", resource.name);
            diagnostics.push(found(&raw.name.place, key, String::new(), cause, help));
        }
    }
    diagnostics
}

impl crate::options::NetOptions {
    /// Options that do not go together: the cause, and what to write instead.
    pub fn contradictions(&self) -> Vec<(String, &'static str)> {
        let net = self;
        let mut causes = Vec::new();
        let timeout = net.timeout;
        if timeout >= net.connect_int || timeout >= net.ping_int {
            let text = format!(
                "net: timeout ({} s) must be less than connect-int ({} s) and ping-int ({} s)",
                timeout.as_secs_f32(),
                net.connect_int.as_secs(),
                net.ping_int.as_secs()
            );
            causes.push((text, "lower timeout (its unit is 0.1 s) or raise the others (their unit is 1 s)"));
        }
        if net.allow_two_primaries && net.protocol != Protocol::C {
            causes.push(("net: allow-two-primaries needs protocol C".into(), "set protocol = \"C\""));
        }
        if net.fencing == Fencing::ResourceAndStonith && net.protocol == Protocol::A {
            causes.push((
                "net: fencing = resource-and-stonith does not go with protocol A".into(),
                "set protocol B or C",
            ));
        }
        if net.on_congestion != OnCongestion::Block && net.protocol != Protocol::A {
            causes.push(("net: on-congestion other than block needs protocol A".into(), "set protocol = \"A\""));
        }
        match (net.cram_hmac_alg, net.shared_secret.is_empty()) {
            (Some(_), true) => {
                causes.push(("net: cram-hmac-alg is set, but there is no shared-secret".into(), "set shared-secret"));
            }
            (None, false) => {
                let text = "net: shared-secret is set, but without cram-hmac-alg peers are not authenticated";
                causes.push((text.into(), "set cram-hmac-alg = \"sha256\""));
            }
            _ => {}
        }
        causes
    }
}
