//! From files to a [`Config`]: read, check across tables, inherit. The innermost explicit value wins:
//! common or template < resource < resource volume < node volume for disk options; the same and then
//! < connection < connection volume for peer-device options; common < resource < connection for net options.

use crate::check;
use crate::diagnostic::{ConfigError, Diagnostic, Severity, SourceFile};
use crate::model::*;
use crate::options::*;
use crate::raw::{LEVEL_KEYS, Level, RawConnection, RawNode, RawResource, RawVolume, level, resource};
use crate::reader::Section;
use crate::value::Layer;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path as FilePath, PathBuf};
use toml::Spanned;
use toml::de::DeTable;
use types::VolumeNumber;

/// Larger configuration files are a mistake. Bytes; 4 KiB per resource gives room for 4000.
const FILE_BYTES_MAX: u64 = 16 << 20;

impl Config {
    /// Reads a file, or all `*.toml` of a directory in the order of their names.
    pub fn load(path: &FilePath) -> Result<Config, ConfigError> {
        let files = files_of(path)?.into_iter().map(|file| read(&file)).collect::<Result<Vec<_>, _>>()?;
        Config::from_sources(files)
    }

    /// One file's text; `name` is for messages.
    pub fn parse(name: &FilePath, text: &str) -> Result<Config, ConfigError> {
        Config::from_sources(vec![SourceFile::new(name, text.into())])
    }

    fn from_sources(files: Vec<SourceFile>) -> Result<Config, ConfigError> {
        let out = RefCell::new(Vec::new());
        let tables: Vec<_> = files.iter().map(|file| parse_toml(file, &out)).collect();
        let mut raw = RawConfig::default();
        for (file, table) in files.iter().zip(&tables) {
            let span = table.span();
            raw.add(&Section { file, out: &out, path: String::new(), table: table.get_ref(), span });
        }
        check::all(&raw, &out);
        let mut found = out.into_inner();
        found.sort_by(|a, b| a.place.cmp(&b.place));
        let (errors, warnings): (Vec<Diagnostic>, Vec<_>) =
            found.into_iter().partition(|d| d.severity == Severity::Error);
        if !errors.is_empty() {
            return Err(ConfigError { diagnostics: errors });
        }
        let resources: Vec<Resource> = raw.resources.iter().map(|r| build(r, raw.base_of(r))).collect();
        let effective = check::effective(&raw, &resources);
        if !effective.is_empty() {
            return Err(ConfigError { diagnostics: effective });
        }
        Ok(Config { global: GlobalOptions::from_layer(&raw.global), resources, warnings })
    }
}

fn files_of(path: &FilePath) -> Result<Vec<PathBuf>, ConfigError> {
    let cannot = |e: std::io::Error| {
        ConfigError::whole(
            format!("cannot read the configuration {}: {e}", path.display()),
            "give a TOML file or a directory of *.toml with --config",
        )
    };
    if !std::fs::metadata(path).map_err(cannot)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(cannot)? {
        let file = entry.map_err(cannot)?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|e| e == "toml") {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        false => Ok(files),
        true => Err(ConfigError::whole(
            format!("the directory {} holds no *.toml", path.display()),
            "put the configuration there, or give another path with --config",
        )),
    }
}

fn read(path: &FilePath) -> Result<SourceFile, ConfigError> {
    let cannot = |why: String| {
        ConfigError::whole(format!("cannot read {}: {why}", path.display()), "check the path and the permissions")
    };
    let file = std::fs::File::open(path).map_err(|e| cannot(e.to_string()))?;
    let mut text = String::new();
    // What is no regular file has no length that says when to stop.
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| cannot(e.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(cannot(format!("it is longer than {FILE_BYTES_MAX} bytes, more are not read")));
    }
    Ok(SourceFile::new(path, text))
}

fn parse_toml<'a>(file: &'a SourceFile, out: &RefCell<Vec<Diagnostic>>) -> Spanned<DeTable<'a>> {
    let (table, errors) = DeTable::parse_recoverable(&file.text);
    // What follows the first mistake of syntax is often its echo.
    for error in errors.iter().take(1) {
        out.borrow_mut().push(Diagnostic {
            place: Some(file.place(error.span().map_or(0, |s| s.start))),
            severity: Severity::Error,
            key: String::new(),
            text: String::new(),
            cause: format!("this is no TOML: {}", error.message().replace('\n', ", ")),
            help: Some("correct the syntax there".into()),
        });
    }
    match errors.is_empty() {
        true => table,
        // The recovered part would only produce follow-up messages.
        false => Spanned::new(0..0, DeTable::new()),
    }
}

/// All files together.
#[derive(Default)]
pub(crate) struct RawConfig {
    pub global: Layer,
    pub common: Level,
    pub templates: BTreeMap<String, Level>,
    pub resources: Vec<RawResource>,
}

impl RawConfig {
    fn add(&mut self, root: &Section<'_>) {
        root.only(&["global", "common", "template", "resource"]);
        if let Some(section) = root.section("global", "global") {
            let [global] = section.options([GlobalOptions::TABLE]);
            merge_once(&mut self.global, global, &section, "global");
        }
        if let Some(section) = root.section("common", "common") {
            section.only(LEVEL_KEYS);
            self.add_common(level(&section, "common, "), &section);
        }
        if let Some(section) = root.section("template", "template") {
            for (name, item) in section.table {
                let name = name.get_ref().to_string();
                if let Some(table) = section.section(&name, format!("template {name}")) {
                    table.only(LEVEL_KEYS);
                    let level = level(&table, &format!("template {name}, "));
                    if self.templates.insert(name.clone(), level).is_some() {
                        section.bad(&name, item, "is the second template of this name", "remove one of them");
                    }
                }
            }
        }
        let resources = root.sections("resource", |i| format!("resource table {}", i + 1));
        self.resources.extend(resources.iter().filter_map(resource));
    }

    fn add_common(&mut self, level: Level, section: &Section<'_>) {
        merge_once(&mut self.common.options, level.options, section, "options");
        merge_once(&mut self.common.net, level.net, section, "net");
        merge_once(&mut self.common.disk, level.disk, section, "disk");
        merge_once(&mut self.common.peer, level.peer, section, "peer-device");
        merge_once(&mut self.common.startup, level.startup, section, "startup");
        self.common.handlers.extend(level.handlers);
    }

    /// What a resource inherits from.
    fn base_of(&self, resource: &RawResource) -> &Level {
        resource.template.as_ref().and_then(|t| self.templates.get(&t.value)).unwrap_or(&self.common)
    }
}

/// Two files of a directory must not give one option two values: neither is "the innermost".
fn merge_once(into: &mut Layer, from: Layer, section: &Section<'_>, name: &str) {
    for (key, value) in from {
        if into.insert(key, value).is_some() {
            section.wrong(
                format!("sets {name}: {key}, which another file of the directory sets, too"),
                "keep one of them",
            );
        }
    }
}

fn over<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Layer {
    let mut merged = Layer::new();
    for layer in layers {
        merged.extend(layer.iter().map(|(k, v)| (*k, v.clone())));
    }
    merged
}

/// Only for a configuration without errors.
fn build(raw: &RawResource, base: &Level) -> Resource {
    let mut handlers = base.handlers.clone();
    handlers.extend(raw.level.handlers.clone());
    let mut nodes: Vec<Node> = Vec::new();
    for node in &raw.nodes {
        nodes.push(Node {
            name: node.name.value.clone(),
            aliases: node.aliases.iter().map(|a| a.value.clone()).collect(),
            id: node.id.value,
            address: node.address.value,
            volumes: volumes(raw, base, Some(node)),
        });
    }
    Resource {
        name: raw.name.value.clone(),
        options: ResourceOptions::from_layer(&over([&base.options, &raw.level.options])),
        startup: StartupOptions::from_layer(&over([&base.startup, &raw.level.startup])),
        handlers,
        net: NetOptions::from_layer(&over([&base.net, &raw.level.net])),
        volumes: volumes(raw, base, None),
        nodes,
        connections: connections(raw, base),
    }
}

fn volumes(raw: &RawResource, base: &Level, node: Option<&RawNode>) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = raw
        .volumes
        .iter()
        .map(|volume| {
            let own = node.and_then(|n| n.volumes.iter().find(|v| v.number.value == volume.number.value));
            one_volume(raw, base, volume, own)
        })
        .collect();
    volumes.sort_by_key(|v| v.number);
    volumes
}

fn one_volume(raw: &RawResource, base: &Level, volume: &RawVolume, own: Option<&RawVolume>) -> Volume {
    let empty = Layer::new();
    let own_options = own.map_or(&empty, |v| &v.options);
    let layers = [&base.disk, &raw.level.disk, &volume.options, own_options];
    let disk = own.and_then(|v| v.disk.as_ref()).or(volume.disk.as_ref());
    let meta_disk = own.and_then(|v| v.meta_disk.as_ref()).or(volume.meta_disk.as_ref());
    let device = own.and_then(|v| v.device.as_ref()).or(volume.device.as_ref());
    let disk = disk.map_or(Disk::None, |d| d.value.clone());
    Volume {
        number: volume.number.value,
        device: device.map_or(Device::None, |d| d.value),
        meta_disk: match disk {
            Disk::None => MetaDisk::Internal,
            Disk::Path(_) => meta_disk.map_or(MetaDisk::Internal, |m| m.value.clone()),
        },
        disk,
        tiebreaker: own.and_then(|v| v.tiebreaker).or(volume.tiebreaker).unwrap_or(true),
        options: DiskOptions::from_layer(&over(layers)),
    }
}

/// Pairs that talk: those of the mesh, and those with a table of their own.
fn connections(raw: &RawResource, base: &Level) -> Vec<Connection> {
    let mut connections = Vec::new();
    for (i, a) in raw.nodes.iter().enumerate() {
        for b in &raw.nodes[i + 1..] {
            let explicit = raw.connections.iter().find(|c| check::joins(c, a, b));
            if explicit.is_some() || in_mesh(raw, a, b) {
                connections.push(one_connection(raw, base, a, b, explicit));
            }
        }
    }
    connections.sort_by_key(|c| c.nodes);
    connections
}

fn in_mesh(raw: &RawResource, a: &RawNode, b: &RawNode) -> bool {
    let Some(groups) = &raw.mesh else { return true };
    let has =
        |group: &[crate::reader::Placed<String>], node: &RawNode| group.iter().any(|n| n.value == node.name.value);
    groups.iter().any(|group| has(group, a) && has(group, b))
}

fn one_connection(
    raw: &RawResource,
    base: &Level,
    a: &RawNode,
    b: &RawNode,
    explicit: Option<&RawConnection>,
) -> Connection {
    let (a, b) = if a.id.value < b.id.value { (a, b) } else { (b, a) };
    let empty = Layer::new();
    let mut paths: Vec<[std::net::SocketAddr; 2]> = Vec::new();
    for [first, second] in explicit.iter().flat_map(|c| &c.paths) {
        let in_order = explicit.is_some_and(|c| c.nodes[0].value == a.name.value);
        paths.push(if in_order { [first.value, second.value] } else { [second.value, first.value] });
    }
    if paths.is_empty() {
        paths.push([a.address.value, b.address.value]);
    }
    let peer_device = |number: VolumeNumber| {
        let of = |volumes: &'_ [RawVolume]| {
            volumes.iter().find(|v| v.number.value == number).map_or(Layer::new(), |v| v.peer.clone())
        };
        let (volume, on_a, on_b) = (of(&raw.volumes), of(&a.volumes), of(&b.volumes));
        let explicit_volume = explicit.and_then(|c| c.volumes.iter().find(|(n, _)| n.value == number));
        let (connection, own) =
            (explicit.map_or(&empty, |c| &c.peer), explicit_volume.map_or(&empty, |(_, layer)| layer));
        PeerDeviceOptions::from_layer(&over([&base.peer, &raw.level.peer, &volume, &on_a, &on_b, connection, own]))
    };
    Connection {
        nodes: [a.id.value, b.id.value],
        net: NetOptions::from_layer(&over([&base.net, &raw.level.net, explicit.map_or(&empty, |c| &c.net)])),
        paths,
        peer_devices: raw.volumes.iter().map(|v| (v.number.value, peer_device(v.number.value))).collect(),
    }
}
