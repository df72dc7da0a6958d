//! `dump-md`: the exact lines of drbdmeta 9.22, comments included.

use core::fmt::{self, Write};

use super::{Common, slot_words};
use crate::layout::Layout;
use crate::superblock::{DeviceFlags, PEERS, PeerFlags, PeerRecord, Superblock};
use crate::v08::SuperblockV08;

/// What is not metadata.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpOptions<'a> {
    /// Second comment line, by custom the local time.
    pub time: &'a str,
    /// Third comment line, by custom `host> command line`.
    pub command: &'a str,
    /// Print the member mask. drbdmeta before 9.27 (Debian 12) refuses a dump with it, and without it the mask is lost.
    pub members: bool,
}

/// Prints checked metadata. `image` holds at least the bitmap of the agreed size (asserted).
///
/// Metadata whose activity log is not applied gets a line that no parser accepts, as drbdmeta does with `--force`: its
/// bitmap misses the hot extents.
pub fn write_dump(
    out: &mut impl Write,
    options: DumpOptions<'_>,
    sb: &Superblock,
    layout: &Layout,
    image: &[u8],
) -> fmt::Result {
    write_preamble(out, options, "v09", !sb.flags.contains(DeviceFlags::AL_CLEAN))?;
    write_head(out, options, sb, layout)?;
    for (node, peer) in sb.peers.iter().enumerate() {
        write_peer(out, node, peer)?;
    }
    write_history(out, sb)?;
    write_common(out, &Common::of(sb))?;
    let bytes = sb.geometry().bitmap_bytes(sb.last_agreed_bytes).expect("checked against the device");
    assert!(image.len() as u64 >= bytes, "bitmap image of {} bytes, {bytes} needed", image.len());
    writeln!(out, "# bm-bytes {bytes};")?;
    for slot in 0..sb.max_peers {
        write!(out, "bitmap[{slot}] {{")?;
        let words = SlotWords::new(image, bytes, sb.max_peers, slot);
        write_words(out, &words)?;
        write!(out, "\n}}\n")?;
    }
    // A quirk of the original, kept because dumps get compared: only the last slot counts, padding included.
    write_bits_set(out, &SlotWords::new(image, bytes, sb.max_peers, sb.max_peers - 1))
}

/// The same for metadata of DRBD 8. The flags are printed, as newer drbdmeta do; 9.22 prints 0 in their place, and a
/// disk restored from that is Inconsistent.
pub fn write_dump_v08(
    out: &mut impl Write,
    options: DumpOptions<'_>,
    sb: &SuperblockV08,
    layout: &Layout,
    image: &[u8],
) -> fmt::Result {
    write_preamble(out, options, "v08", sb.unclean())?;
    write_places(out, sb.md_size_sectors, layout)?;
    let [younger, older] = sb.history;
    writeln!(out, "uuid {{")?;
    let uuids = [sb.current_uuid, sb.bitmap_uuid, younger, older].map(|uuid| uuid.0);
    writeln!(out, "    0x{:016X}; 0x{:016X}; 0x{:016X}; 0x{:016X};", uuids[0], uuids[1], uuids[2], uuids[3])?;
    write!(out, "    flags 0x{:08X};\n}}\n", sb.flags.0)?;
    let common = Common::of(&sb.convert(None));
    write_common(out, &common)?;
    let bytes = sb.geometry().bitmap_bytes(common.last_agreed_bytes).expect("checked against the device");
    assert!(image.len() as u64 >= bytes, "bitmap image of {} bytes, {bytes} needed", image.len());
    let words = SlotWords::new(image, bytes, 1, 0);
    write!(out, "# bm-bytes {bytes};\nbm {{")?;
    write_words(out, &words)?;
    write!(out, "\n}}\n")?;
    write_bits_set(out, &words)
}

fn write_bits_set(out: &mut impl Write, words: &SlotWords<'_>) -> fmt::Result {
    let bits_set: u64 = (0..words.count).map(|i| u64::from(words.get(i).count_ones())).sum();
    writeln!(out, "# bits-set {bits_set};")
}

fn write_preamble(out: &mut impl Write, options: DumpOptions<'_>, version: &str, unclean: bool) -> fmt::Result {
    writeln!(out, "# DRBD meta data dump")?;
    write_comment(out, options.time)?;
    write_comment(out, options.command)?;
    write!(out, "#\n\nversion \"{version}\";\n\n")?;
    if unclean {
        writeln!(out, "This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap.")?;
        write!(out, "# You should \"apply-al\" first, if you plan to restore this.\n\n")?;
    }
    Ok(())
}

fn write_places(out: &mut impl Write, md_size_sectors: u32, layout: &Layout) -> fmt::Result {
    writeln!(out, "# md_size_sect {md_size_sectors}")?;
    writeln!(out, "# md_offset {}", layout.superblock)?;
    writeln!(out, "# al_offset {}", layout.activity_log)?;
    write!(out, "# bm_offset {}\n\n", layout.bitmap)
}

/// A line break in it must not end the comment.
fn write_comment(out: &mut impl Write, text: &str) -> fmt::Result {
    write!(out, "# ")?;
    for c in text.chars() {
        out.write_char(if c.is_control() { ' ' } else { c })?;
    }
    writeln!(out)
}

fn write_head(out: &mut impl Write, options: DumpOptions<'_>, sb: &Superblock, layout: &Layout) -> fmt::Result {
    writeln!(out, "max-peers {};", sb.max_peers)?;
    write_places(out, sb.md_size_sectors, layout)?;
    writeln!(out, "node-id {};", sb.node_id.map_or(-1, |id| id.get().into()))?;
    writeln!(out, "current-uuid 0x{:016X};", sb.current_uuid.0)?;
    writeln!(out, "flags 0x{:08X};", sb.flags.0)?;
    if options.members {
        writeln!(out, "members 0x{:016X};", sb.members)?;
    }
    Ok(())
}

fn write_peer(out: &mut impl Write, node: usize, peer: &PeerRecord) -> fmt::Result {
    writeln!(out, "peer[{node}] {{")?;
    writeln!(out, "    bitmap-index {};", peer.slot.map_or(-1, |slot| slot.0.into()))?;
    writeln!(out, "    bitmap-uuid 0x{:016X};", peer.bitmap_uuid.0)?;
    writeln!(out, "    bitmap-dagtag 0x{:016X};", peer.bitmap_dagtag)?;
    write!(out, "    flags 0x{:08X};", peer.flags.0)?;
    let mut separator = " # ";
    for bit in (0..32).map(|n| PeerFlags(1 << n)).filter(|bit| peer.flags.contains(*bit)) {
        match PeerFlags::NAMED.iter().find(|(flag, _)| *flag == bit) {
            Some((_, name)) => write!(out, "{separator}{name}")?,
            None => write!(out, "{separator}0x{:x}=?", bit.0)?,
        }
        separator = " | ";
    }
    write!(out, "\n}}\n")
}

fn write_history(out: &mut impl Write, sb: &Superblock) -> fmt::Result {
    write!(out, "history-uuids {{")?;
    for i in 0..PEERS {
        if i % 4 == 0 {
            write!(out, "\n       ")?;
        }
        write!(out, " 0x{:016X};", sb.history[i].0)?;
    }
    write!(out, "\n}}\n")
}

fn write_common(out: &mut impl Write, common: &Common) -> fmt::Result {
    writeln!(out, "# al-extents {};", common.al_slots)?;
    writeln!(out, "la-size-sect {};", common.last_agreed_bytes / types::range::SECTOR_BYTES)?;
    writeln!(out, "bm-byte-per-bit {};", common.bitmap_block_bytes)?;
    writeln!(out, "device-uuid 0x{:016X};", common.device_uuid)?;
    writeln!(out, "la-peer-max-bio-size {};", common.peer_max_io_bytes)?;
    writeln!(out, "al-stripes {};", common.al_stripes)?;
    writeln!(out, "al-stripe-size-4k {};", common.al_stripe_4k)
}

/// The 32-bit words of one slot of an image.
struct SlotWords<'a> {
    image: &'a [u8],
    peers: u64,
    slot: u64,
    count: u64,
}

impl SlotWords<'_> {
    fn new(image: &[u8], bytes: u64, max_peers: u8, slot: u8) -> SlotWords<'_> {
        let count = slot_words(bytes, max_peers, slot);
        SlotWords { image, peers: max_peers.into(), slot: slot.into(), count }
    }
    fn global(&self, i: u64) -> u64 {
        i * self.peers + self.slot
    }
    fn get(&self, i: u64) -> u32 {
        let at = self.global(i) as usize * 4;
        u32::from_le_bytes([self.image[at], self.image[at + 1], self.image[at + 2], self.image[at + 3]])
    }
    /// Words from `i` on that equal word `i`, in whole groups of eight.
    fn run(&self, i: u64) -> u64 {
        let value = self.get(i);
        let end = (i + 1..self.count).find(|k| self.get(*k) != value).unwrap_or(self.count);
        (end - i) / 8 * 8
    }
}

/// Four values of 64 bits per line; runs that are longer than a line in one value with a count.
fn write_words(out: &mut impl Write, words: &SlotWords<'_>) -> fmt::Result {
    let mut i = 0;
    while i < words.count {
        if i % 8 == 0 {
            if words.global(i) % 64 == words.slot {
                write!(out, "\n   # at {}kB", 128 * i * words.peers)?;
            }
            write!(out, "\n   ")?;
            let run = words.run(i);
            if run > 8 {
                let word = words.get(i);
                write!(out, " {} times 0x{word:08X}{word:08X};", run / 2)?;
                i += run;
                continue;
            }
        }
        if i + 1 < words.count {
            write!(out, " 0x{:08X}{:08X};", words.get(i + 1), words.get(i))?;
        }
        i += 2;
    }
    Ok(())
}
