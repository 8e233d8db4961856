//! Response flags: why a request did not simply succeed. Envoy's names, in
//! the order in which Envoy comes to them.

/// A set of response flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $text:literal;)*) => {
        impl Flags {
            $($(#[$doc])* pub(crate) const $name: Self = Self(1 << $bit);)*
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $text)),*];
        }
    };
}

flags! {
    /// Every retry allowed was used.
    RETRY_LIMIT = 14, "URX";
    /// A limit of ours was reached.
    UPSTREAM_OVERFLOW = 7, "UO";
    /// A health check is answered here with a failure.
    FAILED_LOCAL_HEALTH_CHECK = 0, "LH";
    /// No healthy upstream endpoint.
    NO_HEALTHY_UPSTREAM = 1, "UH";
    /// The route's timeout, or the last try's.
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT";
    /// We reset the upstream stream.
    LOCAL_RESET = 3, "LR";
    /// The upstream reset the stream.
    UPSTREAM_RESET = 4, "UR";
    /// The upstream could not be connected to.
    UPSTREAM_CONNECTION_FAILURE = 5, "UF";
    /// The upstream closed the connection.
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC";
    /// No route, or no filter chain.
    NO_ROUTE = 8, "NR";
    /// A delay was injected.
    DELAY_INJECTED = 9, "DI";
    /// An abort was injected.
    FAULT_INJECTED = 10, "FI";
    /// A limit of ours refused it.
    RATE_LIMITED = 11, "RL";
    /// The authorization server said no, or nothing.
    UNAUTHORIZED_EXTERNAL_SERVICE = 12, "UAEX";
    /// The client went away.
    DOWNSTREAM_TERMINATION = 13, "DC";
    /// Nothing moved for too long.
    STREAM_IDLE = 15, "SI";
    /// The client broke the protocol.
    DOWNSTREAM_PROTOCOL_ERROR = 17, "DPE";
    /// The upstream broke the protocol.
    UPSTREAM_PROTOCOL_ERROR = 18, "UPE";
    /// The cluster does not exist.
    NO_CLUSTER = 22, "NC";
    /// The connection lived as long as it may.
    DURATION_TIMEOUT = 24, "DT";
    /// The process has too little memory.
    OVERLOADED = 27, "OM";
    /// A name could not be resolved.
    DNS_RESOLUTION_FAILURE = 26, "DF";
}

impl Flags {
    /// No flag.
    pub(crate) const NONE: Self = Self(0);

    /// Adds `other`.
    pub(crate) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether one of `other` is set.
    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the one of this name is set.
    pub(crate) fn has_named(self, name: &str) -> bool {
        Self::ALL.iter().any(|&(flag, text)| text == name && self.has(flag))
    }

    /// `URX,UF`, or `-` for none.
    pub(crate) fn text(self) -> std::borrow::Cow<'static, str> {
        let mut names = Self::ALL.iter().filter(|(flag, _)| self.has(*flag)).map(|&(_, name)| name);
        match (names.next(), names.next()) {
            (None, _) => "-".into(),
            (Some(only), None) => only.into(),
            (Some(first), Some(second)) => {
                let mut text = format!("{first},{second}");
                for name in names {
                    text.push(',');
                    text.push_str(name);
                }
                text.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_joined_in_their_order() {
        let mut flags = Flags::RETRY_LIMIT;
        flags.add(Flags::UPSTREAM_CONNECTION_FAILURE);
        assert_eq!(flags.text(), "URX,UF");
        assert_eq!(Flags::NONE.text(), "-");
    }
}
