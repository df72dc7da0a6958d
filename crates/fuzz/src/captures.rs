//! What kernels said to each other, as the wire crate's captures have it: the byte streams, one a socket and direction.

use std::collections::BTreeMap;

use serde_json::Value;
use wire::{Socket, parse_first_packet};

/// The streams of all captures whose names begin so, without the first packets of the sockets.
pub fn streams(prefix: &str) -> Vec<(Socket, Vec<u8>)> {
    let mut streams = Vec::new();
    for path in crate::files(crate::fixtures("wire"), ".streams.json.gz") {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        if !name.starts_with(prefix) {
            continue;
        }
        let capture: Value = serde_json::from_slice(&crate::unzipped(&path)).expect("JSON");
        for (id, bytes) in directions(&capture) {
            let connection = capture["connections"].as_array().expect("a list").iter().find(|c| c["id"] == id);
            let socket = match connection.and_then(|c| c["socket"].as_str()) {
                Some("data") => Socket::Data,
                Some("control") => Socket::Control,
                _ => continue,
            };
            let opens = bytes.first_chunk().is_some_and(|first| parse_first_packet(*first).is_ok());
            streams.push((socket, bytes[if opens { 8 } else { 0 }..].to_vec()));
        }
    }
    assert!(!streams.is_empty(), "no capture begins with {prefix}");
    streams
}

/// Connection and what one end sent.
fn directions(capture: &Value) -> Vec<(u64, Vec<u8>)> {
    let mut joined: BTreeMap<(u64, String), Vec<u8>> = BTreeMap::new();
    for chunk in capture["chunks"].as_array().expect("a list") {
        let key = (chunk[1].as_u64().expect("a number"), chunk[2].as_str().expect("a direction").to_owned());
        let bytes = hex::decode(chunk[3].as_str().expect("bytes")).expect("hexadecimal");
        joined.entry(key).or_default().extend(bytes);
    }
    joined.into_iter().map(|((id, _), bytes)| (id, bytes)).collect()
}
