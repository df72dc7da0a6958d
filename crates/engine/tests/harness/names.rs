//! Stable names for what is random: generations become U1, U2, … in the order in which they appear ("+": the Primary
//! bit), transactions T1, T2, …

use std::collections::BTreeMap;

use types::Uuid;

#[derive(Default)]
pub struct Names {
    uuids: BTreeMap<u64, usize>,
    transactions: BTreeMap<u32, usize>,
}

impl Names {
    pub fn uuid(&mut self, uuid: Uuid) -> String {
        let plus = if uuid.primary_bit() { "+" } else { "" };
        let id = uuid.identity();
        if id == Uuid::ZERO {
            return format!("0{plus}");
        }
        if id == Uuid::JUST_CREATED {
            return format!("NEW{plus}");
        }
        let next = self.uuids.len() + 1;
        format!("U{}{plus}", self.uuids.entry(id.0).or_insert(next))
    }

    pub fn transaction(&mut self, tid: u32) -> String {
        let next = self.transactions.len() + 1;
        format!("T{}", self.transactions.entry(tid).or_insert(next))
    }

    /// Replaces the generations inside a text that the engine made.
    pub fn rename(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let run = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
            if run == 16 {
                let uuid = u64::from_str_radix(&rest[..16], 16).expect("16 hexadecimal digits");
                out += &self.uuid(Uuid(uuid));
                rest = &rest[16..];
                continue;
            }
            let step = run.max(rest.chars().next().map_or(0, char::len_utf8));
            out += &rest[..step];
            rest = &rest[step..];
        }
        out
    }
}
