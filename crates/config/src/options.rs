//! The option tables: every option of DRBD's sections, with range, default, unit, and whether this version of the
//! daemon acts on it. Facts: docs and manual of DRBD 9; one row here is the only place that knows an option.
//!
//! A row is `"name" field: Type = kind, support;`. Typed fields: amounts in bytes, rates in bytes per second, times as
//! `Duration`, all else as it is. To make an option effective in the daemon, turn its `NotYet` into `Effective`.

use crate::value::{BadValue, Difference, Field, Kind, Layer, OptionSpec, Support, Unit};
use crate::words::*;
use Support::{Effective, Except, NoEffect, NotYet};
use core::time::Duration;

const fn flag(default: bool) -> Kind {
    Kind::Flag { default }
}
const fn number(min: u64, max: u64, default: u64, unit: Unit) -> Kind {
    Kind::Number { min, max, default, unit }
}
const fn word(words: &'static [&'static str], default: &'static str) -> Kind {
    Kind::Word { words, default }
}
const fn hash() -> Kind {
    Kind::OptionalWord { words: Hash::WORDS }
}
/// CRC-32C is no base for an HMAC.
const fn hmac() -> Kind {
    Kind::OptionalWord { words: &["md5", "sha1", "sha256", "sha512"] }
}
const fn quorum() -> Kind {
    Kind::NumberOrWord { min: 1, max: 32, words: Quorum::WORDS, default: "off" }
}
const fn text() -> Kind {
    Kind::Text { bytes_max: 63 }
}

const REQUESTS: Unit = Unit::Count("requests");
const EXTENTS: Unit = Unit::Count("extents of 4 MiB");
const TIMES: Unit = Unit::Count("attempts");
const KEYRING: &str = "replicad uses key files of its own, not the kernel's keyring";
const RDMA: &str = "there is no RDMA transport";

macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($key:literal $field:ident: $type:ty = $kind:expr, $support:expr;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Debug)]
        pub struct $name { $(pub $field: $type,)+ }

        impl $name {
            pub const TABLE: &'static [OptionSpec] =
                &[$(OptionSpec { name: $key, kind: $kind, support: $support },)+];

            /// Every option with its value.
            fn to_layer(&self) -> Layer {
                Layer::from([$(($key, self.$field.to_value($kind)),)+])
            }

            /// What is another in `new`, in the order of the table.
            pub fn differences(&self, new: &$name) -> Vec<Difference> {
                let (from, to) = (self.to_layer(), new.to_layer());
                let differ = Self::TABLE.iter().filter(|spec| from[spec.name] != to[spec.name]);
                differ
                    .map(|spec| Difference {
                        name: spec.name,
                        from: spec.show(&from[spec.name]),
                        to: spec.show(&to[spec.name]),
                        support: spec.support,
                    })
                    .collect()
            }

            /// The same but for options that are given as on a command line. An error comes with the name it is about.
            pub fn with<'a>(
                &self,
                given: impl IntoIterator<Item = (&'a str, &'a str)>,
            ) -> Result<$name, (String, BadValue)> {
                let mut layer = self.to_layer();
                for (name, text) in given {
                    let wrong = |bad| (name.to_string(), bad);
                    let spec = Self::TABLE.iter().find(|spec| spec.name == name);
                    let spec = spec.ok_or_else(|| wrong(BadValue::unknown_name(name, Self::TABLE)))?;
                    layer.insert(spec.name, spec.parse(text).map_err(wrong)?);
                }
                Ok($name::from_layer(&layer))
            }

            /// From checked values; what is not there has its default.
            pub(crate) fn from_layer(layer: &Layer) -> $name {
                $name { $($field: {
                    const SPEC: OptionSpec = OptionSpec { name: $key, kind: $kind, support: $support };
                    let value = SPEC.value_in(layer);
                    <$type as Field>::from_value(&value, SPEC.kind)
                        .unwrap_or_else(|| panic!("{} holds {value:?}: kind and type of its row disagree", $key))
                },)+ }
            }
        }

        impl Default for $name {
            fn default() -> $name {
                $name::from_layer(&Layer::new())
            }
        }
    };
}

options! {
    /// Section `options`: one set per resource.
    ResourceOptions {
        "cpu-mask" cpu_mask: String = Kind::Text { bytes_max: 255 }, NotYet;
        "on-no-data-accessible" on_no_data_accessible: OnNoDataAccessible =
            word(OnNoDataAccessible::WORDS, "io-error"), Effective;
        // DRBD's default is yes. Here no: by default the device exists on the Primary only (docs/architecture.md).
        "auto-promote" auto_promote: bool = flag(false), NotYet;
        "peer-ack-window" peer_ack_window: u64 = number(2048, 204800, 4096, Unit::Sectors), Effective;
        "peer-ack-delay" peer_ack_delay: Duration = number(1, 10000, 100, Unit::Milliseconds), Effective;
        "twopc-timeout" twopc_timeout: Duration = number(50, 600, 300, Unit::Tenths), Effective;
        "twopc-retry-timeout" twopc_retry_timeout: Duration = number(1, 50, 1, Unit::Tenths), Effective;
        "auto-promote-timeout" auto_promote_timeout: Duration = number(0, 600, 20, Unit::Tenths), NotYet;
        "max-io-depth" max_io_depth: u32 = number(4, 4294967295, 8000, REQUESTS), Effective;
        "quorum" quorum: Quorum = quorum(), NotYet;
        "on-no-quorum" on_no_quorum: OnNoQuorum = word(OnNoQuorum::WORDS, "suspend-io"), NotYet;
        "quorum-minimum-redundancy" quorum_minimum_redundancy: Quorum = quorum(), NotYet;
        "on-suspended-primary-outdated" on_suspended_primary_outdated: OnSuspendedPrimaryOutdated =
            word(OnSuspendedPrimaryOutdated::WORDS, "disconnect"), NotYet;
        "drbd8-api-compatibility" drbd8_api_compatibility: bool = flag(false), NotYet;
    }
}

options! {
    /// Section `net`: one set per connection.
    NetOptions {
        "transport" transport: Transport = word(Transport::WORDS, "tcp"), Effective;
        "load-balance-paths" load_balance_paths: bool = flag(false), NotYet;
        "protocol" protocol: Protocol = word(Protocol::WORDS, "C"), Effective;
        "timeout" timeout: Duration = number(1, 600, 60, Unit::Tenths), Effective;
        "max-epoch-size" max_epoch_size: u32 = number(1, 20000, 2048, REQUESTS), Effective;
        "connect-int" connect_int: Duration = number(1, 120, 10, Unit::Seconds), Effective;
        "ping-int" ping_int: Duration = number(1, 120, 10, Unit::Seconds), Effective;
        "sndbuf-size" sndbuf_size: u64 = number(0, 134217728, 0, Unit::Bytes), Effective;
        "rcvbuf-size" rcvbuf_size: u64 = number(0, 134217728, 0, Unit::Bytes), Effective;
        "ko-count" ko_count: u32 = number(0, 200, 7, TIMES), Effective;
        "allow-two-primaries" allow_two_primaries: bool = flag(false), NotYet;
        "cram-hmac-alg" cram_hmac_alg: Option<Hash> = hmac(), Effective;
        "shared-secret" shared_secret: Secret = Kind::Secret { bytes_max: 63 }, Effective;
        "after-sb-0pri" after_sb_0pri: AfterSb0Pri = word(AfterSb0Pri::WORDS, "disconnect"), NotYet;
        "after-sb-1pri" after_sb_1pri: AfterSb1Pri = word(AfterSb1Pri::WORDS, "disconnect"), NotYet;
        "after-sb-2pri" after_sb_2pri: AfterSb2Pri = word(AfterSb2Pri::WORDS, "disconnect"), NotYet;
        "always-asbp" always_asbp: bool = flag(false), NotYet;
        "rr-conflict" rr_conflict: RrConflict = word(RrConflict::WORDS, "disconnect"), NotYet;
        "ping-timeout" ping_timeout: Duration = number(1, 300, 5, Unit::Tenths), Effective;
        "data-integrity-alg" data_integrity_alg: Option<Hash> = hash(), NotYet;
        "tcp-cork" tcp_cork: bool = flag(true), NoEffect("messages are always sent in batches");
        "on-congestion" on_congestion: OnCongestion = word(OnCongestion::WORDS, "block"), NotYet;
        "congestion-fill" congestion_fill: u64 = number(0, 20971520, 0, Unit::Sectors), NotYet;
        "congestion-extents" congestion_extents: u32 = number(67, 65534, 1237, EXTENTS), NotYet;
        "csums-alg" csums_alg: Option<Hash> = hash(), Effective;
        "csums-after-crash-only" csums_after_crash_only: bool = flag(false), NotYet;
        "verify-alg" verify_alg: Option<Hash> = hash(), Effective;
        "use-rle" use_rle: bool = flag(true), Effective;
        "socket-check-timeout" socket_check_timeout: Duration = number(0, 300, 0, Unit::Tenths), Effective;
        "fencing" fencing: Fencing = word(Fencing::WORDS, "dont-care"), NotYet;
        "max-buffers" max_buffers: u32 = number(32, 131072, 2048, Unit::Pages), Effective;
        "allow-remote-read" allow_remote_read: bool = flag(true), NotYet;
        "tls" tls: bool = flag(false), NotYet;
        "tls-keyring" tls_keyring: String = text(), NoEffect(KEYRING);
        "tls-privkey" tls_privkey: String = text(), NoEffect(KEYRING);
        "tls-certificate" tls_certificate: String = text(), NoEffect(KEYRING);
        "rdma-ctrl-rcvbuf-size" rdma_ctrl_rcvbuf_size: u64 = number(0, 10485760, 0, Unit::Bytes), NoEffect(RDMA);
        "rdma-ctrl-sndbuf-size" rdma_ctrl_sndbuf_size: u64 = number(0, 10485760, 0, Unit::Bytes), NoEffect(RDMA);
    }
}

options! {
    /// Section `disk`, disk and device options: one set per volume and node.
    DiskOptions {
        "size" size: u64 = number(0, 2199023255552, 0, Unit::Sectors), Effective;
        "on-io-error" on_io_error: OnIoError = word(OnIoError::WORDS, "detach"),
            // Detaches without the call: no handlers yet.
            Except(&["call-local-io-error"]);
        "disk-barrier" disk_barrier: bool = flag(false), NoEffect("no current kernel has write barriers");
        "disk-flushes" disk_flushes: bool = flag(true), NotYet;
        "disk-drain" disk_drain: bool = flag(true), NotYet;
        "md-flushes" md_flushes: bool = flag(true), NotYet;
        "resync-after" resync_after: String = Kind::Text { bytes_max: 160 }, NotYet;
        "al-extents" al_extents: u32 = number(67, 65534, 1237, EXTENTS), Effective;
        "al-updates" al_updates: bool = flag(true), NotYet;
        "discard-zeroes-if-aligned" discard_zeroes_if_aligned: bool = flag(true), NotYet;
        "disable-write-same" disable_write_same: bool = flag(false), NoEffect("the kernel has no write same any more");
        "disk-timeout" disk_timeout: Duration = number(0, 6000, 0, Unit::Tenths), NotYet;
        "read-balancing" read_balancing: ReadBalancing = word(ReadBalancing::WORDS, "prefer-local"), NotYet;
        "rs-discard-granularity" rs_discard_granularity: u64 = number(0, 1048576, 0, Unit::Bytes), NotYet;
        "bitmap" bitmap: bool = flag(true), NotYet;
        "max-bio-size" max_bio_size: u64 = number(512, 1048576, 1048576, Unit::Bytes), NotYet;
        "block-size" block_size: u64 = number(512, 4096, 512, Unit::Bytes), NotYet;
        "discard-granularity" discard_granularity: Option<u64> =
            Kind::OptionalNumber { min: 0, max: 134217728, unit: Unit::Bytes }, NotYet;
    }
}

options! {
    /// Peer-device options: one set per volume and peer.
    PeerDeviceOptions {
        "resync-rate" resync_rate: u64 = number(1, 8388608, 250, Unit::KibPerSecond), NotYet;
        "c-plan-ahead" c_plan_ahead: Duration = number(0, 300, 20, Unit::Tenths), NotYet;
        "c-delay-target" c_delay_target: Duration = number(1, 100, 10, Unit::Tenths), NotYet;
        "c-fill-target" c_fill_target: u64 = number(0, 1048576, 100, Unit::Sectors), NotYet;
        "c-max-rate" c_max_rate: u64 = number(0, 4194304, 102400, Unit::KibPerSecond), Effective;
        "c-min-rate" c_min_rate: u64 = number(0, 4194304, 250, Unit::KibPerSecond), NotYet;
        "bitmap" bitmap: bool = flag(true), NotYet;
        "resync-without-replication" resync_without_replication: bool = flag(true), NotYet;
        "peer-tiebreaker" peer_tiebreaker: bool = flag(true), NotYet;
    }
}

options! {
    /// Section `startup`: what the wait commands take when the command line says nothing.
    StartupOptions {
        "wfc-timeout" wfc_timeout: Duration = number(0, 300000, 0, Unit::Seconds), Effective;
        "degr-wfc-timeout" degr_wfc_timeout: Duration = number(0, 300000, 0, Unit::Seconds), NotYet;
        "outdated-wfc-timeout" outdated_wfc_timeout: Duration = number(0, 300000, 0, Unit::Seconds), NotYet;
        "wait-after-sb" wait_after_sb: bool = flag(false), NotYet;
    }
}

options! {
    /// Section `global`.
    GlobalOptions {
        "metrics" metrics: String = Kind::Text { bytes_max: 255 }, NotYet;
        "drbd-compat" drbd_compat: bool = flag(false), NotYet;
        "disable-ip-verification" disable_ip_verification: bool = flag(false), NotYet;
        "cmd-timeout-short" cmd_timeout_short: Duration = number(0, 900, 5, Unit::Seconds), NotYet;
        "cmd-timeout-medium" cmd_timeout_medium: Duration = number(0, 900, 121, Unit::Seconds), NotYet;
        "cmd-timeout-long" cmd_timeout_long: Duration = number(0, 900, 600, Unit::Seconds), NotYet;
        "minor-count" minor_count: u32 = number(1, 255, 32, Unit::Count("devices")),
            NoEffect("no kernel module is loaded");
        "dialog-refresh" dialog_refresh: Duration = number(0, 600, 1, Unit::Seconds), NoEffect("there is no dialog");
        "usage-count" usage_count: String = word(&["yes", "no", "ask"], "no"), NoEffect("nobody is ever contacted");
        "udev-always-use-vnr" udev_always_use_vnr: bool = flag(true),
            NoEffect("links always have the volume number");
    }
}

/// Names that section `handlers` knows.
pub const HANDLERS: &[&str] = &[
    "fence-peer",
    "unfence-peer",
    "local-io-error",
    "pri-on-incon-degr",
    "pri-lost",
    "pri-lost-after-sb",
    "initial-split-brain",
    "split-brain",
    "before-resync-target",
    "after-resync-target",
    "before-resync-source",
    "out-of-sync",
    "quorum-lost",
    "disconnected",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_their_ranges_and_of_their_types() {
        for spec in [
            ResourceOptions::TABLE,
            NetOptions::TABLE,
            DiskOptions::TABLE,
            PeerDeviceOptions::TABLE,
            StartupOptions::TABLE,
            GlobalOptions::TABLE,
        ]
        .into_iter()
        .flatten()
        {
            if let Kind::Number { min, max, default, .. } = spec.kind {
                assert!(min <= default && default <= max, "{}: {min} <= {default} <= {max}", spec.name);
            }
            if let Kind::Word { words, default } | Kind::NumberOrWord { words, default, .. } = spec.kind {
                assert!(words.contains(&default), "{}: {default}", spec.name);
            }
        }
        // `default` panics when the kind and the type of a row disagree.
        ResourceOptions::default();
        DiskOptions::default();
        PeerDeviceOptions::default();
        StartupOptions::default();
        GlobalOptions::default();
        assert_eq!(NetOptions::default().timeout, Duration::from_secs(6));
        assert_eq!(PeerDeviceOptions::default().c_max_rate, 100 << 20);
    }

    #[test]
    fn values_survive_the_way_to_a_field_and_back() {
        let net = NetOptions::default();
        assert_eq!(NetOptions::from_layer(&net.to_layer()), net);
        assert_eq!(ResourceOptions::from_layer(&ResourceOptions::default().to_layer()), ResourceOptions::default());
        assert_eq!(DiskOptions::from_layer(&DiskOptions::default().to_layer()), DiskOptions::default());
        assert_eq!(
            PeerDeviceOptions::from_layer(&PeerDeviceOptions::default().to_layer()),
            PeerDeviceOptions::default()
        );
        let given = [("protocol", "a"), ("timeout", "35"), ("max-buffers", "36k"), ("shared-secret", "x")];
        let other = net.with(given).unwrap();
        assert_eq!((other.timeout, other.max_buffers), (Duration::from_millis(3500), 36864));
        let shown: Vec<String> =
            net.differences(&other).into_iter().map(|d| format!("{} {} {}", d.name, d.from, d.to)).collect();
        let expected = ["protocol C A", "timeout 60 35", "shared-secret none (not shown)", "max-buffers 2048 36864"];
        assert_eq!(shown, expected);
        let rates = PeerDeviceOptions::default().with([("c-max-rate", "4M"), ("c-fill-target", "8K")]).unwrap();
        let shown: Vec<_> = PeerDeviceOptions::default().differences(&rates).into_iter().map(|d| d.to).collect();
        assert_eq!(shown, ["16s", "4096K"]);
        for (name, text) in [("protocl", "A"), ("protocol", "D"), ("timeout", "0"), ("timeout", "x")] {
            let (about, bad) = net.with([(name, text)]).unwrap_err();
            assert!(about == name && bad.help.is_some(), "{name} {text}: {bad:?}");
        }
    }

    #[test]
    fn the_largest_values_fit_their_fields() {
        for table in [ResourceOptions::TABLE, NetOptions::TABLE, DiskOptions::TABLE, PeerDeviceOptions::TABLE] {
            let layer: Layer = table
                .iter()
                .filter_map(|spec| match spec.kind {
                    Kind::Number { max, .. } => Some((spec.name, crate::value::Value::Number(max))),
                    _ => None,
                })
                .collect();
            ResourceOptions::from_layer(&layer);
            NetOptions::from_layer(&layer);
        }
        let size: Layer = [("size", crate::value::Value::Number(2199023255552))].into();
        assert_eq!(DiskOptions::from_layer(&size).size, 1 << 50);
    }
}
