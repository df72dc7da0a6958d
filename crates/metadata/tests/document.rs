//! The tables of `docs/ondisk.md` that are marked "(from the code)" against the constants.

use metadata::{DeviceFlags, PeerFlags, activity_log, superblock};

/// First columns of the table whose header row starts with `columns`, below `heading`.
fn table(heading: &str, columns: &str) -> Vec<Vec<String>> {
    let document = include_str!("../../../docs/ondisk.md");
    let (_, below) = document.split_once(heading).unwrap_or_else(|| panic!("no {heading:?} in docs/ondisk.md"));
    let rows = below.lines().skip_while(|line| !line.starts_with(columns)).skip(2);
    let cells = |line: &str| line.split('|').skip(1).map(|cell| cell.trim().to_string()).collect();
    rows.take_while(|line| line.starts_with('|')).map(cells).collect()
}

fn assert_fields(heading: &str, digits: usize, fields: &[(usize, &str, &str)]) {
    let documented: Vec<Vec<String>> =
        table(heading, "| offset | width | field |").iter().map(|row| row[..3].to_vec()).collect();
    let from_code =
        fields.iter().map(|(at, width, name)| vec![format!("{at:0digits$X}"), (*width).into(), (*name).into()]);
    let from_code: Vec<Vec<String>> = from_code.collect();
    for row in &from_code {
        println!("| {} |", row.join(" | "));
    }
    assert_eq!(documented, from_code, "{heading}");
}

#[test]
fn field_tables_are_those_of_the_code() {
    assert_fields("## Superblock", 3, superblock::FIELDS);
    assert_fields("Peer record. *(from the code)*", 2, superblock::PEER_FIELDS);
    assert_fields("## Activity log", 3, activity_log::FIELDS);
}

#[test]
fn flag_table_is_that_of_the_code() {
    let row =
        |word: &str, bits: u32, name: &str| vec![word.to_string(), bits.trailing_zeros().to_string(), name.into()];
    let device = DeviceFlags::NAMED.iter().map(|(flag, name)| row("device", flag.0, name));
    let peer = PeerFlags::NAMED.iter().map(|(flag, name)| row("peer", flag.0, name));
    let documented: Vec<Vec<String>> =
        table("## Superblock", "| word | bit | name |").iter().map(|row| row[..3].to_vec()).collect();
    assert_eq!(documented, device.chain(peer).collect::<Vec<_>>());
}
