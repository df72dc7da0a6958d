//! What the files say, before inheritance: one value per table, with the place of everything a cross check may name.

use crate::diagnostic::{Place, Severity};
use crate::model::{Device, Disk, Handler, MetaDisk};
use crate::options::*;
use crate::reader::{Placed, Section};
use crate::value::{Layer, did_you_mean};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use types::{NodeId, VolumeNumber};

/// The option sections of `common`, of a template, or of a resource.
#[derive(Clone, Default)]
pub(crate) struct Level {
    pub options: Layer,
    pub net: Layer,
    pub disk: Layer,
    pub peer: Layer,
    pub startup: Layer,
    pub handlers: BTreeMap<&'static str, Handler>,
}

pub(crate) const LEVEL_KEYS: &[&str] =
    &["options", "net", "disk", "disk-options", "peer-device", "startup", "handlers"];

pub(crate) struct RawVolume {
    pub number: Placed<VolumeNumber>,
    pub device: Option<Placed<Device>>,
    pub disk: Option<Placed<Disk>>,
    pub meta_disk: Option<Placed<MetaDisk>>,
    pub tiebreaker: Option<bool>,
    pub options: Layer,
    pub peer: Layer,
}

pub(crate) struct RawNode {
    pub name: Placed<String>,
    pub aliases: Vec<Placed<String>>,
    pub id: Placed<NodeId>,
    pub address: Placed<SocketAddr>,
    pub volumes: Vec<RawVolume>,
}

pub(crate) struct RawConnection {
    pub place: Place,
    pub nodes: [Placed<String>; 2],
    pub net: Layer,
    pub peer: Layer,
    pub volumes: Vec<(Placed<VolumeNumber>, Layer)>,
    /// Addresses in the order of `nodes`.
    pub paths: Vec<[Placed<SocketAddr>; 2]>,
}

pub(crate) struct RawResource {
    pub name: Placed<String>,
    pub template: Option<Placed<String>>,
    pub level: Level,
    pub volumes: Vec<RawVolume>,
    pub nodes: Vec<RawNode>,
    pub connections: Vec<RawConnection>,
    /// `None`: all with all.
    pub mesh: Option<Vec<Vec<Placed<String>>>>,
    /// Every table in it was understood: checks for what is missing make sense.
    pub complete: bool,
}

/// Reads the option sections of a table whose other keys the caller knows.
pub(crate) fn level(section: &Section<'_>, prefix: &str) -> Level {
    let mut level = Level::default();
    let at = |key: &str| format!("{prefix}{key}");
    if let Some(s) = section.section("options", at("options")) {
        [level.options] = s.options([ResourceOptions::TABLE]);
    }
    if let Some(s) = section.section("net", at("net")) {
        [level.net] = s.options([NetOptions::TABLE]);
    }
    for key in ["disk", "disk-options"] {
        if let Some(s) = section.section(key, at(key)) {
            let [disk, peer] = s.options([DiskOptions::TABLE, PeerDeviceOptions::TABLE]);
            level.disk.extend(disk);
            level.peer.extend(peer);
        }
    }
    if let Some(s) = section.section("peer-device", at("peer-device")) {
        let [peer] = s.options([PeerDeviceOptions::TABLE]);
        level.peer.extend(peer);
    }
    if let Some(s) = section.section("startup", at("startup")) {
        [level.startup] = s.options([StartupOptions::TABLE]);
    }
    if let Some(s) = section.section("handlers", at("handlers")) {
        level.handlers = handlers(&s);
    }
    level
}

fn handlers(section: &Section<'_>) -> BTreeMap<&'static str, Handler> {
    section.only(HANDLERS);
    let mut handlers = BTreeMap::new();
    for name in HANDLERS {
        let Some(item) = section.get(name) else { continue };
        if let Some(table) = item.get_ref().as_table() {
            let shell = section.child(table, item.span(), format!("{}, {name}", section.path));
            shell.only(&["shell"]);
            if let Some(command) = shell.required("shell", "\"command for /bin/sh -c\"") {
                handlers.insert(*name, Handler::Shell(command.value.into()));
            }
        } else if item.get_ref().is_array() {
            let words: Vec<String> = section.texts(name).into_iter().map(|w| w.value.into()).collect();
            match words.is_empty() {
                false => drop(handlers.insert(*name, Handler::Program(words))),
                true => section.bad(name, item, "names no program", format!("write {name} = [\"/path/to/program\"]")),
            }
        } else {
            let help = format!("write {name} = [\"program\", \"argument\"] or {name} = {{ shell = \"...\" }}");
            section.bad(name, item, "is no command", help);
        }
        section.report(
            Severity::Warning,
            &item.span(),
            name,
            String::new(),
            "has no effect yet: this version of replicad runs no handlers".into(),
            None,
        );
    }
    handlers
}

pub(crate) fn resource(section: &Section<'_>) -> Option<RawResource> {
    let name = section.required("name", "\"r0\"").filter(|name| resource_name(section, name.value))?;
    let named = |what: &str| format!("resource {}, {what}", name.value);
    let section = &section.child(section.table, section.span.clone(), format!("resource {}", name.value));
    let errors_before = section.out.borrow().len();
    let mut known = vec!["name", "template", "volume", "on", "connection", "mesh"];
    known.extend(LEVEL_KEYS);
    section.only(&known);
    let level = level(section, &named(""));
    let volumes = section.sections("volume", |i| named(&format!("volume table {}", i + 1)));
    let nodes = section.sections("on", |i| named(&format!("on table {}", i + 1)));
    let connections = section.sections("connection", |i| named(&format!("connection table {}", i + 1)));
    let mut raw = RawResource {
        name: Placed { value: name.value.into(), place: name.place },
        template: section.text("template").map(owned),
        level,
        volumes: volumes.iter().filter_map(volume).collect(),
        nodes: nodes.iter().filter_map(node).collect(),
        connections: connections.iter().filter_map(connection).collect(),
        mesh: mesh(section),
        complete: true,
    };
    raw.complete = section.out.borrow()[errors_before..].iter().all(|d| d.severity == Severity::Warning);
    Some(raw)
}

/// The command line addresses resources by name: `all`, `minor-1`, `r:0` and `a/b` would mean something else there.
fn resource_name(section: &Section<'_>, name: &str) -> bool {
    const NAME_BYTES_MAX: usize = 127;
    let cause = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "is longer than 127 bytes"
    } else if name == "all" || name.starts_with("minor-") || name.starts_with('-') || name.starts_with('.') {
        "means something else on the command line or as a file name"
    } else if name.chars().any(|c| c.is_control() || c.is_whitespace() || "/:\\\"'".contains(c)) {
        "has a blank, a slash, a colon, a quote or a control character"
    } else {
        return true;
    };
    let item = section.get("name").expect("the caller has just read it");
    section.bad("name", item, cause, "choose another name, for example \"r0\"");
    false
}

fn owned(text: Placed<&str>) -> Placed<String> {
    Placed { value: text.value.into(), place: text.place }
}

fn volume(section: &Section<'_>) -> Option<RawVolume> {
    section.only(&["number", "device", "disk", "meta-disk", "tiebreaker", "disk-options", "peer-device"]);
    let number = volume_number(section, "number");
    let mut options = Layer::new();
    let mut peer = Layer::new();
    if let Some(s) = section.section("disk-options", format!("{}, disk-options", section.path)) {
        [options, peer] = s.options([DiskOptions::TABLE, PeerDeviceOptions::TABLE]);
    }
    if let Some(s) = section.section("peer-device", format!("{}, peer-device", section.path)) {
        let [more] = s.options([PeerDeviceOptions::TABLE]);
        peer.extend(more);
    }
    let (device, disk, meta_disk) = (device(section), disk(section), meta_disk(section));
    if let (Some(Placed { value: Disk::None, .. }), Some(meta)) = (&disk, &meta_disk)
        && meta.value != MetaDisk::Internal
    {
        let item = section.get("meta-disk").expect("just read");
        section.bad("meta-disk", item, "is given for a volume without disk", "remove meta-disk, or give a disk");
    }
    let tiebreaker = tiebreaker(section);
    Some(RawVolume { number: number?, device, disk, meta_disk, tiebreaker, options, peer })
}

fn volume_number(section: &Section<'_>, key: &str) -> Option<Placed<VolumeNumber>> {
    let number = section.required_number(key, u64::from(u16::MAX) - 1)?;
    let value = VolumeNumber::new(number.value as u16).expect("at most 65534");
    Some(Placed { value, place: number.place })
}

fn device(section: &Section<'_>) -> Option<Placed<Device>> {
    let text = section.text("device")?;
    let bad = |cause: &str, help: String| {
        let item = section.get("device").expect("just read");
        section.bad("device", item, cause, help);
        None
    };
    let value = match text.value.split_once(':') {
        None if text.value == "nbd" => Device::Nbd { listen: None },
        None if text.value == "none" => Device::None,
        Some(("ublk", number)) if number.parse().is_ok_and(|n: u32| n <= MINOR_MAX) => {
            Device::Ublk(number.parse().expect("just parsed"))
        }
        Some(("nbd", address)) => match socket_address(address) {
            Ok(address) => Device::Nbd { listen: Some(address) },
            Err(cause) => return bad(cause, NBD_ADDRESS_HELP.into()),
        },
        _ => {
            let nbd = "\"nbd\", \"nbd:ADDRESS:PORT\"";
            let help = format!("write \"ublk:N\" for /dev/ublkbN (N up to {MINOR_MAX}), {nbd}, or \"none\"");
            return bad("is no kind of device", help);
        }
    };
    if let Device::Nbd { listen: Some(address) } = value
        && address.ip().is_unspecified()
    {
        let item = section.get("device").expect("just read");
        let cause = "lets everybody use the volume who reaches any address of the node: NBD has no authentication";
        let help = "write the node's address in a network that you trust";
        let text = section.file.slice(item.span());
        section.report(Severity::Warning, &item.span(), "device", text, cause.into(), Some(help.into()));
    }
    Some(Placed { value, place: text.place })
}

const NBD_ADDRESS_HELP: &str = "write \"nbd:10.1.1.31:10809\" or \"nbd:[fd00::31]:10809\" with an address of that node, \
                                or \"nbd\" for the unix socket alone";

/// Whether the node without a disk counts in a vote that is otherwise even.
fn tiebreaker(section: &Section<'_>) -> Option<bool> {
    let item = section.get("tiebreaker")?;
    let value = item.get_ref().as_bool();
    match value {
        None => section.bad("tiebreaker", item, "is no boolean", "write tiebreaker = true or false"),
        Some(false) => {
            let cause = "has no effect yet: this version of replicad has no quorum".into();
            let text = section.file.slice(item.span());
            section.report(Severity::Warning, &item.span(), "tiebreaker", text, cause, None);
        }
        Some(true) => {}
    }
    value
}

/// The kernel's limit for minor numbers.
const MINOR_MAX: u32 = (1 << 20) - 1;

fn absolute(section: &Section<'_>, key: &str, path: &str) -> Option<PathBuf> {
    if path.starts_with('/') {
        return Some(path.into());
    }
    let item = section.get(key).expect("just read");
    section.bad(key, item, "is no absolute path", format!("write {key} = \"/dev/...\" or another path from /"));
    None
}

fn disk(section: &Section<'_>) -> Option<Placed<Disk>> {
    let text = section.text("disk")?;
    let value = match text.value {
        "none" => Disk::None,
        path => Disk::Path(absolute(section, "disk", path)?),
    };
    Some(Placed { value, place: text.place })
}

fn meta_disk(section: &Section<'_>) -> Option<Placed<MetaDisk>> {
    let text = section.text("meta-disk")?;
    let value = match text.value {
        "internal" => MetaDisk::Internal,
        path => {
            let absolute = absolute(section, "meta-disk", path)?;
            // As in drbd.conf: `/dev/md [3]` or `/dev/md[3]`.
            let indexed = path.strip_suffix(']').and_then(|p| p.rsplit_once('['));
            match indexed.map(|(device, index)| (device.trim_end(), index.parse())) {
                Some((device, Ok(index))) => MetaDisk::Indexed { path: device.into(), index },
                _ => MetaDisk::External(absolute),
            }
        }
    };
    Some(Placed { value, place: text.place })
}

fn node(section: &Section<'_>) -> Option<RawNode> {
    section.only(&["node", "node-id", "address", "volume"]);
    let mut names = node_names(section);
    let id = section.required_number("node-id", types::id::NODES_MAX as u64 - 1);
    let address = section.required("address", "\"10.1.1.31:7789\"").and_then(|text| address(section, "address", text));
    let path = section.path.clone();
    let volumes = section.sections("volume", |i| format!("{path}, volume table {}", i + 1));
    let volumes = volumes.iter().filter_map(volume).collect();
    let id = id?;
    if names.is_empty() {
        return None;
    }
    Some(RawNode {
        name: names.remove(0),
        aliases: names,
        id: Placed { value: NodeId::new(id.value as u8).expect("at most 31"), place: id.place },
        address: address?,
        volumes,
    })
}

fn node_names(section: &Section<'_>) -> Vec<Placed<String>> {
    let names = match section.get("node") {
        Some(item) if item.get_ref().is_array() => section.texts("node"),
        _ => section.required("node", "\"host name\"").into_iter().collect(),
    };
    if let Some(item) = section.get("node") {
        let bad =
            |n: &Placed<&str>| n.value.is_empty() || n.value.contains(|c: char| c.is_whitespace() || "/:".contains(c));
        if names.iter().any(bad) || (names.is_empty() && item.get_ref().is_array()) {
            section.bad("node", item, "is no host name", "write what `uname -n` says on that node");
            return Vec::new();
        }
    }
    names.into_iter().map(owned).collect()
}

fn address(section: &Section<'_>, key: &str, text: Placed<&str>) -> Option<Placed<SocketAddr>> {
    match socket_address(text.value) {
        Ok(value) => Some(Placed { value, place: text.place }),
        Err(cause) => {
            let item = section.get(key).expect("just read");
            section.bad(key, item, cause, "write \"10.1.1.31:7789\" or \"[fd00::31]:7789\"");
            None
        }
    }
}

/// An address with a port that somebody can listen on, or what is wrong with it.
fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => Err("has port 0"),
        Err(_) if text.parse::<std::net::IpAddr>().is_ok() => Err("has no port"),
        Err(_) if text.starts_with(|c: char| c.is_alphabetic()) && !text.contains("::") => {
            Err("is a host name: names are not resolved on the way to a fail-over")
        }
        Err(_) => Err("is no address"),
    }
}

fn connection(section: &Section<'_>) -> Option<RawConnection> {
    section.only(&["nodes", "net", "disk", "peer-device", "volume", "path"]);
    let mut net = Layer::new();
    let mut peer = Layer::new();
    if let Some(s) = section.section("net", format!("{}, net", section.path)) {
        [net] = s.options([NetOptions::TABLE]);
    }
    for key in ["disk", "peer-device"] {
        if let Some(s) = section.section(key, format!("{}, {key}", section.path)) {
            let [more] = s.options([PeerDeviceOptions::TABLE]);
            peer.extend(more);
        }
    }
    let path = section.path.clone();
    let volumes = section.sections("volume", |i| format!("{path}, volume table {}", i + 1));
    let volumes = volumes.iter().filter_map(connection_volume).collect();
    let Ok([a, b]) = <[Placed<&str>; 2]>::try_from(section.texts("nodes")) else {
        section.wrong("does not name two nodes", "write nodes = [\"alice\", \"bob\"]");
        return None;
    };
    let path_tables = section.sections("path", |i| format!("{path}, path {}", i + 1));
    let paths = path_tables.iter().filter_map(|s| {
        s.only(&[a.value, b.value]);
        let one = |key: &str| s.required(key, "\"10.1.1.31:7789\"").and_then(|text| address(s, key, text));
        Some([one(a.value)?, one(b.value)?])
    });
    let paths = paths.collect();
    Some(RawConnection { place: section.place(), nodes: [owned(a), owned(b)], net, peer, volumes, paths })
}

fn connection_volume(section: &Section<'_>) -> Option<(Placed<VolumeNumber>, Layer)> {
    section.only(&["number", "peer-device", "disk"]);
    let mut layer = Layer::new();
    for key in ["disk", "peer-device"] {
        if let Some(s) = section.section(key, format!("{}, {key}", section.path)) {
            let [more] = s.options([PeerDeviceOptions::TABLE]);
            layer.extend(more);
        }
    }
    Some((volume_number(section, "number")?, layer))
}

fn mesh(section: &Section<'_>) -> Option<Vec<Vec<Placed<String>>>> {
    let item = section.get("mesh")?;
    let groups = item.get_ref().as_array().and_then(|groups| {
        groups
            .iter()
            .map(|group| {
                let names = group.get_ref().as_array()?.iter();
                names
                    .map(|n| {
                        let place = section.file.place(n.span().start);
                        Some(Placed { value: n.get_ref().as_str()?.to_string(), place })
                    })
                    .collect::<Option<Vec<_>>>()
            })
            .collect::<Option<Vec<_>>>()
    });
    if groups.is_none() {
        section.bad("mesh", item, "is no array of node lists", "write mesh = [[\"alice\", \"bob\", \"carol\"]]");
    }
    groups
}

/// Used by the cross checks for names that do not exist.
pub(crate) fn unknown_node_help(resource: &RawResource, name: &str) -> String {
    let names: Vec<&str> = resource.nodes.iter().map(|n| n.name.value.as_str()).collect();
    did_you_mean(name, names.iter().copied(), &names.join(", "))
}
