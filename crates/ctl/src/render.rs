//! Text from the values that the daemon answers with. The words and their order are those of `drbdsetup status`;
//! what is ours stands on lines of its own: the progress bar of a resync and the verdict.

use control::{ConnectionReport, DeviceReport, PeerDeviceReport, ResourceReport, SyncDetails};
// Writing to a String never fails: results of `write!` are dropped throughout.
use std::fmt::Write;

/// What `status` shows beyond the usual.
#[derive(Clone, Copy, Default)]
pub struct Detail {
    pub verbose: bool,
    pub statistics: bool,
}

/// Columns before a line is wrapped, as DRBD's tool does where no terminal says otherwise.
const WIDTH: isize = 80;

/// Collects words into lines: a word that would pass the width starts a new line, four columns deeper.
struct Words<'a> {
    out: &'a mut String,
    indent: usize,
    /// Columns used, without the indent.
    used: isize,
}

impl Words<'_> {
    fn start(out: &mut String, indent: usize) -> Words<'_> {
        let _ = write!(out, "{:indent$}", "");
        Words { out, indent, used: -1 }
    }
    fn word(&mut self, word: &str) {
        let len = word.len() as isize + 1;
        if self.used >= 0 && self.used + len > WIDTH {
            self.wrap();
        }
        if self.used >= 0 {
            self.out.push(' ');
        }
        self.out.push_str(word);
        self.used = self.used.max(0) + len;
    }
    fn key(&mut self, key: &str, value: impl std::fmt::Display) {
        self.word(&format!("{key}:{value}"));
    }
    fn key_if(&mut self, show: bool, key: &str, value: impl std::fmt::Display) {
        if show {
            self.key(key, value);
        }
    }
    /// Statistics start on a line of their own.
    fn wrap(&mut self) {
        let _ = write!(self.out, "\n{:1$}", "", self.indent + 4);
        self.used = -1;
    }
    fn end(self) {
        self.out.push('\n');
    }
}

const fn yes_no(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

/// `bob:r0: protocol: C -> A`.
pub fn change(change: &control::Change) -> String {
    let note = change.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
    format!("{}: {}: {} -> {}{note}", change.object, change.option, change.from, change.to)
}

pub fn status(resources: &[ResourceReport], detail: Detail) -> String {
    if resources.is_empty() {
        return "# No resource is up.\n".into();
    }
    let mut out = String::new();
    for report in resources {
        resource(&mut out, report, detail);
        for device in &report.devices {
            self::device(&mut out, report, device, detail);
        }
        for connection in &report.connections {
            self::connection(&mut out, report, connection, detail);
        }
        if detail.statistics {
            report.devices.iter().for_each(|device| latency(&mut out, report, device));
        }
        if !report.replicad.verdict.is_empty() {
            let _ = writeln!(out, "  => {}", report.replicad.verdict);
        }
        out.push('\n');
    }
    out
}

/// `no`, or the reasons.
fn suspended(report: &ResourceReport) -> String {
    let reasons = [
        (report.suspended_user, "user"),
        (report.suspended_no_data, "no-data"),
        (report.suspended_fencing, "fencing"),
        (report.suspended_quorum, "quorum"),
    ];
    let reasons: Vec<&str> = reasons.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    if reasons.is_empty() { "no".into() } else { reasons.join(",") }
}

fn resource(out: &mut String, report: &ResourceReport, Detail { verbose, statistics }: Detail) {
    let mut words = Words::start(out, 0);
    words.word(&report.name);
    words.key_if(verbose, "node-id", report.node_id);
    words.key("role", &report.role);
    let suspended = suspended(report);
    words.key_if(verbose || suspended != "no", "suspended", suspended);
    words.key_if(verbose || report.force_io_failures, "force-io-failures", yes_no(report.force_io_failures));
    if verbose && statistics {
        words.wrap();
        words.key("write-ordering", &report.write_ordering);
    }
    words.end();
}

fn device(out: &mut String, report: &ResourceReport, device: &DeviceReport, Detail { verbose, statistics }: Detail) {
    let mut words = Words::start(out, 2);
    let only = report.devices.len() == 1 && device.volume == 0;
    words.key_if(verbose || !only, "volume", device.volume);
    words.key_if(verbose, "minor", device.minor);
    words.key("disk", &device.disk_state);
    words.key_if(device.disk_state == "Diskless", "client", yes_no(device.client));
    let own = &device.replicad;
    let backing = if own.backing_dev.is_empty() { "none" } else { &own.backing_dev };
    words.key_if(verbose, "backing_dev", backing);
    words.key_if(verbose && !own.nbd_address.is_empty(), "nbd", &own.nbd_address);
    words.key_if(verbose || !device.quorum, "quorum", yes_no(device.quorum));
    words.key("open", yes_no(device.open));
    if statistics {
        words.wrap();
        words.key_if(verbose, "size", device.size);
        words.key("read", device.read);
        words.key("written", device.written);
    }
    if statistics && verbose {
        words.key("al-writes", device.al_writes);
        words.key("bm-writes", device.bm_writes);
        words.key("upper-pending", device.upper_pending);
        words.key("lower-pending", device.lower_pending);
        words.key("al-suspended", yes_no(own.al_suspended));
    }
    let blocked = if own.blocked.is_empty() { "no" } else { &own.blocked };
    words.key_if(verbose || blocked != "no", "blocked", blocked);
    words.end();
}

fn connection(out: &mut String, report: &ResourceReport, connection: &ConnectionReport, detail: Detail) {
    let Detail { verbose, statistics } = detail;
    let connected = connection.connection_state == "Connected";
    let mut words = Words::start(out, 2);
    words.word(&connection.name);
    words.key_if(verbose, "node-id", connection.peer_node_id);
    words.key_if(verbose || !connected, "connection", &connection.connection_state);
    words.key_if(verbose || connected, "role", &connection.peer_role);
    let protocol = &connection.replicad.protocol;
    words.key_if(verbose && !protocol.is_empty(), "protocol", protocol);
    words.key_if(verbose || connection.tls, "tls", yes_no(connection.tls));
    words.key_if(verbose || connection.congested, "congested", yes_no(connection.congested));
    words.key_if(verbose || connection.congested, "ap-in-flight", connection.ap_in_flight);
    words.key_if(verbose || connection.congested, "rs-in-flight", connection.rs_in_flight);
    words.end();
    if !connected && !verbose && !statistics {
        return;
    }
    for peer_device in &connection.peer_devices {
        let only = connection.peer_devices.len() == 1 && report.devices.len() <= 1 && peer_device.volume == 0;
        self::peer_device(out, peer_device, only, detail);
    }
}

fn peer_device(out: &mut String, report: &PeerDeviceReport, only: bool, Detail { verbose, statistics }: Detail) {
    let mut words = Words::start(out, 4);
    words.key_if(verbose || !only, "volume", report.volume);
    let replicates = !matches!(report.replication_state.as_str(), "Established" | "Off");
    words.key_if(verbose || replicates, "replication", &report.replication_state);
    words.key("peer-disk", &report.peer_disk_state);
    words.key_if(report.peer_disk_state == "Diskless", "peer-client", yes_no(report.peer_client));
    if let Some(sync) = &report.sync {
        words.key("done", format_args!("{:.2}", sync.percent_resync_done));
    }
    words.key_if(verbose || report.resync_suspended != "no", "resync-suspended", &report.resync_suspended);
    if statistics {
        words.wrap();
        words.key("received", report.received);
        words.key("sent", report.sent);
        words.key_if(verbose || report.out_of_sync != 0, "out-of-sync", report.out_of_sync);
    }
    if statistics && verbose {
        words.key("pending", report.pending);
        words.key("unacked", report.unacked);
        if let Some(sync) = &report.sync {
            words.key("dbdt1", format_args!("{:.2}", rate(sync)));
            words.key("eta", sync.estimated_seconds_to_finish);
        }
    }
    words.end();
    if let Some(sync) = &report.sync {
        progress(out, report, sync);
    }
}

/// `[=========>..........] 50.00% 25.60 MiB/s 0:00:10 left, 256 MiB to go`
fn progress(out: &mut String, report: &PeerDeviceReport, sync: &SyncDetails) {
    const BAR: usize = 20;
    let percent = sync.percent_resync_done.clamp(0.0, 100.0);
    let done = (percent / 100.0 * BAR as f64) as usize;
    let bar = match done {
        BAR => "=".repeat(BAR),
        _ => format!("{}>{}", "=".repeat(done), ".".repeat(BAR - 1 - done)),
    };
    let _ = write!(out, "        [{bar}] {percent:.2}%");
    if report.replication_state.starts_with("Paused") {
        let _ = writeln!(out, " paused, {} to go", kib(report.out_of_sync));
        return;
    }
    let left = sync.estimated_seconds_to_finish;
    let time = format!("{}:{:02}:{:02}", left / 3600, left / 60 % 60, left % 60);
    // A verify goes through what is in sync.
    let to_go = sync.ov_left.map_or(report.out_of_sync, |sectors| sectors / 2);
    let _ = writeln!(out, " {:.2} MiB/s {time} left, {} to go", rate(sync), kib(to_go));
}

/// `  => a write takes 310 us: door 2, log 15, disk 120, alice 290: longest alice`. The stages are explained in
/// docs/performance.md.
fn latency(out: &mut String, report: &ResourceReport, device: &DeviceReport) {
    let own = &device.replicad.latency;
    let only = report.devices.len() == 1 && device.volume == 0;
    let volume = if only { String::new() } else { format!("volume {}: ", device.volume) };
    if let Some(write) = own.write {
        let stages = [("door", own.write_door), ("log", own.write_log), ("disk", own.write_disk)];
        let mut stages: Vec<(&str, f64)> = stages.iter().filter_map(|(name, time)| Some((*name, (*time)?))).collect();
        for connection in &report.connections {
            let of_volume = connection.peer_devices.iter().find(|d| d.volume == device.volume);
            let answer = of_volume.and_then(|d| d.replicad.as_ref()?.write_answer);
            stages.extend(answer.map(|time| (connection.name.as_str(), time)));
        }
        let longest = stages.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name);
        let stages: Vec<String> = stages.iter().map(|(name, time)| format!("{name} {time:.0}")).collect();
        let _ = writeln!(out, "  => {volume}a write takes {write:.0} us: {}: longest {longest}", stages.join(", "));
    }
    let others = [("read", own.read), ("flush", own.flush)];
    let others: Vec<String> =
        others.iter().filter_map(|(name, time)| Some(format!("a {name} takes {:.0} us", (*time)?))).collect();
    if !others.is_empty() {
        let _ = writeln!(out, "  => {volume}{}", others.join(", "));
    }
}

/// The steadiest rate that is known: over two marks, over one, since the start.
fn rate(sync: &SyncDetails) -> f64 {
    [sync.db1_dt1, sync.db0_dt0, sync.db_dt].into_iter().find(|rate| *rate > 0.0).unwrap_or(0.0)
}

fn kib(kib: u64) -> String {
    match kib {
        0..10_000 => format!("{kib} KiB"),
        10_000..10_000_000 => format!("{} MiB", kib / 1024),
        _ => format!("{} GiB", kib >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::{LatencyReport, OwnPeerDeviceKeys};

    /// DRBD's own tool printed these texts for the same values.
    fn fixture() -> Vec<ResourceReport> {
        let mut report: Vec<ResourceReport> =
            serde_json::from_str(include_str!("../tests/fixtures/status.json")).unwrap();
        let backing = [["/dev/vg0/r0", ""], ["/dev/vg0/r1_0", "/dev/vg0/r1_1"], ["none", ""]];
        for (resource, backing) in report.iter_mut().zip(backing) {
            for (device, backing) in resource.devices.iter_mut().zip(backing) {
                device.replicad.backing_dev = backing.into();
            }
        }
        // DRBD's JSON does not have it.
        report[1].devices[1].replicad.blocked = "lower".into();
        report
    }

    fn without_ours(text: &str) -> String {
        text.lines().filter(|l| !l.starts_with("        [")).map(|l| format!("{l}\n")).collect()
    }

    #[test]
    fn statistics_name_the_stage_that_takes_longest() {
        let mut report = fixture().swap_remove(0);
        let times = |write| LatencyReport {
            write: Some(write),
            write_door: Some(0.4),
            write_log: Some(12.6),
            write_disk: Some(120.0),
            flush: Some(900.5),
            ..LatencyReport::default()
        };
        let (volume, peer) = (report.devices[0].volume, report.connections[0].name.clone());
        report.devices[0].replicad.latency = times(310.2);
        let statistics = Detail { statistics: true, ..Detail::default() };
        let text = status(std::slice::from_ref(&report), statistics);
        assert!(text.contains("a write takes 310 us: door 0, log 13, disk 120: longest disk\n"), "{text}");
        assert!(text.contains("=> a flush takes 900 us\n") || text.contains("a flush takes 901 us\n"), "{text}");
        let answers = report.connections[0].peer_devices.iter_mut().find(|d| d.volume == volume).unwrap();
        answers.replicad = Some(OwnPeerDeviceKeys { write_answer: Some(290.0), ..OwnPeerDeviceKeys::default() });
        let text = status(std::slice::from_ref(&report), statistics);
        assert!(text.contains(&format!("disk 120, {peer} 290: longest {peer}\n")), "{text}");
        assert!(!status(&[report], Detail::default()).contains("takes"));
    }

    #[test]
    fn status_reads_as_drbds() {
        let table = [
            (false, false, include_str!("../tests/fixtures/status.txt")),
            (true, false, include_str!("../tests/fixtures/status-verbose.txt")),
            (false, true, include_str!("../tests/fixtures/status-statistics.txt")),
            (true, true, include_str!("../tests/fixtures/status-verbose-statistics.txt")),
        ];
        for (verbose, statistics, expected) in table {
            let text = without_ours(&status(&fixture(), Detail { verbose, statistics }));
            for (i, (ours, drbds)) in text.lines().zip(expected.lines()).enumerate() {
                assert_eq!(ours, drbds, "line {} with verbose {verbose}, statistics {statistics}", i + 1);
            }
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn json_keeps_drbds_keys_and_values() {
        fn is_part(part: &serde_json::Value, whole: &serde_json::Value, at: &str) {
            use serde_json::Value::*;
            match (part, whole) {
                (Object(part), Object(whole)) => {
                    for (key, value) in part {
                        let found = whole.get(key).unwrap_or_else(|| panic!("{at}.{key} is missing"));
                        is_part(value, found, &format!("{at}.{key}"));
                    }
                }
                (Array(part), Array(whole)) => {
                    assert_eq!(part.len(), whole.len(), "{at}");
                    part.iter().zip(whole).enumerate().for_each(|(i, (p, w))| is_part(p, w, &format!("{at}[{i}]")));
                }
                _ => assert_eq!(part, whole, "{at}"),
            }
        }
        let drbds: serde_json::Value = serde_json::from_str(include_str!("../tests/fixtures/status.json")).unwrap();
        let ours = serde_json::to_value(fixture()).unwrap();
        is_part(&drbds, &ours, "");
    }

    #[test]
    fn progress_is_shown_with_rate_and_time() {
        let text = status(&fixture(), Detail::default());
        assert!(
            text.contains("        [==========>.........] 50.00% 25.60 MiB/s 0:00:10 left, 256 MiB to go\n"),
            "{text}"
        );
        assert!(text.contains("        [>...................] 0.00% paused, 2048 KiB to go\n"), "{text}");
    }

    #[test]
    fn one_line_answers() {
        let report = fixture();
        assert_eq!(report[1].role_line(), "Primary");
        assert_eq!(report[1].cstate_lines(None), ["Connected", "Connecting", "Connected"]);
        assert_eq!(report[1].cstate_lines(Some("charlie")), ["Connecting"]);
        let both = ["UpToDate/Inconsistent/DUnknown/Diskless", "UpToDate/Inconsistent/Outdated/UpToDate"];
        assert_eq!(report[1].dstate_lines(None), both);
        assert_eq!(report[1].dstate_lines(Some(1)), both[1..]);
    }
}
