//! Two messages field by field.

use std::collections::BTreeMap;

use types::NodeId;
use wire::Message;

/// Name of the variant.
pub fn kind(message: &Message) -> String {
    format!("{message:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
}

/// Every field with its value as text. What only this run knows (challenges) has its length in place of its bytes.
fn fields(message: &Message) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut put = |name: &str, value: String| drop(fields.insert(name.to_owned(), value));
    match message {
        Message::AuthChallenge(bytes) => put("len", bytes.len().to_string()),
        Message::State(word) => {
            let bits = [
                ("role", 0, 2),
                ("peer_role", 2, 2),
                ("conn", 4, 5),
                ("disk", 9, 4),
                ("peer_disk", 13, 4),
                ("flags", 17, 15),
            ];
            for (name, shift, width) in bits {
                put(name, (word.0 >> shift & ((1 << width) - 1)).to_string());
            }
        }
        Message::Uuids(u) => {
            put("current", format!("{:x}", u.current.0));
            put("dirty_bits", u.dirty_bits.to_string());
            for bit in (0..64).map(|b| 1u64 << b).filter(|bit| u.flags & bit != 0) {
                put(&format!("flag {bit}"), "set".into());
            }
            put("node_mask", format!("{:#x}", u.node_mask));
            let nodes = NodeId::all().filter(|n| u.bitmap_mask & (1 << n.get()) != 0);
            for (node, uuid) in nodes.zip(&u.bitmap) {
                put(&format!("bitmap {node}"), format!("{:x}", uuid.0));
            }
            // Entries of zero are no history.
            for (age, uuid) in u.history.iter().enumerate().filter(|(_, uuid)| !uuid.is_zero()) {
                put(&format!("history {age}"), format!("{:x}", uuid.0));
            }
        }
        // Every field of the rest has a name or is the only one.
        other => {
            for line in format!("{other:#?}").lines().map(|l| l.trim().trim_end_matches(',')) {
                if line.ends_with(['(', '{', '[']) || line.starts_with([')', '}', ']']) {
                    continue;
                }
                let (name, value) = line.split_once(": ").unwrap_or(("value", line));
                let before = fields.remove(name).map_or(String::new(), |b: String| b + " ");
                fields.insert(name.to_owned(), before + value);
            }
        }
    }
    fields
}

/// The fields that differ: name, the kernel's value, ours.
pub fn differences(kernel: &Message, ours: &Message) -> Vec<(String, String, String)> {
    let (kernel, ours) = (fields(kernel), fields(ours));
    let names: std::collections::BTreeSet<&String> = kernel.keys().chain(ours.keys()).collect();
    let value = |of: &BTreeMap<String, String>, name: &String| of.get(name).cloned().unwrap_or_else(|| "-".into());
    names
        .into_iter()
        .map(|name| (name.clone(), value(&kernel, name), value(&ours, name)))
        .filter(|(_, kernel, ours)| kernel != ours)
        .collect()
}
