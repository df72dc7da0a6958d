//! Options whose value is one of a few words. The words are DRBD's; the tables in `options.rs` name these types.
//! `parse` and `word` are inverse to each other; a new word is one line here.

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// As in drbd.conf.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }
            pub fn parse(word: &str) -> Option<$name> {
                match word { $($word => Some($name::$variant),)+ _ => None }
            }
        }
    };
}

words! {
    /// When a write counts as done.
    Protocol {
        /// Handed to the send path.
        A = "A",
        /// Received by the peer.
        B = "B",
        /// On the peer's disk.
        C = "C",
    }
}
words! { OnNoDataAccessible { IoError = "io-error", SuspendIo = "suspend-io", } }
words! { OnNoQuorum { IoError = "io-error", SuspendIo = "suspend-io", } }
words! { OnSuspendedPrimaryOutdated { Disconnect = "disconnect", ForceSecondary = "force-secondary", } }
words! {
    AfterSb0Pri {
        Disconnect = "disconnect",
        DiscardYoungerPrimary = "discard-younger-primary",
        DiscardOlderPrimary = "discard-older-primary",
        DiscardZeroChanges = "discard-zero-changes",
        DiscardLeastChanges = "discard-least-changes",
        DiscardLocal = "discard-local",
        DiscardRemote = "discard-remote",
    }
}
words! {
    AfterSb1Pri {
        Disconnect = "disconnect",
        Consensus = "consensus",
        DiscardSecondary = "discard-secondary",
        CallPriLostAfterSb = "call-pri-lost-after-sb",
        ViolentlyAs0p = "violently-as0p",
    }
}
words! {
    AfterSb2Pri {
        Disconnect = "disconnect",
        CallPriLostAfterSb = "call-pri-lost-after-sb",
        ViolentlyAs0p = "violently-as0p",
    }
}
words! {
    RrConflict {
        Disconnect = "disconnect",
        CallPriLost = "call-pri-lost",
        Violently = "violently",
        RetryConnect = "retry-connect",
        AutoDiscard = "auto-discard",
    }
}
words! { OnCongestion { Block = "block", PullAhead = "pull-ahead", Disconnect = "disconnect", } }
words! {
    Fencing {
        DontCare = "dont-care",
        ResourceOnly = "resource-only",
        ResourceAndStonith = "resource-and-stonith",
    }
}
words! {
    OnIoError {
        /// The one underscore among DRBD's words.
        PassOn = "pass_on",
        CallLocalIoError = "call-local-io-error",
        Detach = "detach",
    }
}
words! {
    ReadBalancing {
        PreferLocal = "prefer-local",
        PreferRemote = "prefer-remote",
        RoundRobin = "round-robin",
        LeastPending = "least-pending",
        WhenCongestedRemote = "when-congested-remote",
        Striping32K = "32K-striping",
        Striping64K = "64K-striping",
        Striping128K = "128K-striping",
        Striping256K = "256K-striping",
        Striping512K = "512K-striping",
        Striping1M = "1M-striping",
    }
}
words! {
    /// Hash functions by the kernel's names. Empty in a table: none.
    Hash { Crc32c = "crc32c", Md5 = "md5", Sha1 = "sha1", Sha256 = "sha256", Sha384 = "sha384", Sha512 = "sha512", }
}
words! { Transport { Tcp = "tcp", } }

/// `quorum` and `quorum-minimum-redundancy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quorum {
    Off,
    Majority,
    All,
    /// 1..=32.
    Nodes(u32),
}

impl Quorum {
    pub const WORDS: &'static [&'static str] = &["off", "majority", "all"];
}

/// A value that nothing may print: `Debug` says only that it is there.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }
    /// For the one place that computes the authentication.
    pub fn expose(&self) -> &str {
        &self.0
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(none)" } else { "Secret(not shown)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        assert!(!format!("{:?}", Secret::new("tell-me-not".into())).contains("tell"));
    }

    #[test]
    fn words_and_variants_are_inverse() {
        for word in ReadBalancing::WORDS {
            assert_eq!(ReadBalancing::parse(word).map(ReadBalancing::word), Some(*word));
        }
        assert_eq!(OnIoError::parse("pass-on"), None);
    }
}
