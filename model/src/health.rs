//! Health of an instance: four independent inputs and the one pure function that combines them.

/// What the lease says: how long ago the instance was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lease {
    /// Heard within two beat intervals.
    #[default]
    Heard,
    /// Two beats missed: still used.
    Late,
    /// Three beats missed: about to leave, unless the brake holds it.
    Silent,
    /// Silent, but kept by the mass-expiry brake.
    Protected,
}

/// What the instance says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reported {
    /// Started, not yet serving.
    Starting,
    /// Serving.
    #[default]
    Ready,
    /// Not serving for now.
    NotReady,
    /// Leaving: serves what it has, takes nothing new.
    Draining,
}

/// What the sidecar's check of its own application says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Probe {
    /// No check configured, or no result yet counted against the instance.
    #[default]
    Unknown,
    /// Enough checks in a row succeeded.
    Passing,
    /// Enough checks in a row failed.
    Failing,
}

/// What an operator says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Administrative {
    /// Nothing special.
    #[default]
    Enabled,
    /// Taken out of service by an operator.
    Maintenance,
}

/// The four inputs of one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HealthInputs {
    /// From heartbeats.
    pub lease: Lease,
    /// From the instance itself.
    pub reported: Reported,
    /// From its sidecar's check.
    pub probe: Probe,
    /// From an operator.
    pub administrative: Administrative,
}

/// The combined state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Health {
    /// Takes traffic.
    #[default]
    Serving,
    /// Takes traffic; something is amiss (a beat is late).
    Warning,
    /// Silent but protected: takes traffic only when serving ones do not suffice.
    Stale,
    /// Serves what it has, takes nothing new.
    Draining,
    /// Takes no traffic.
    Down,
}

impl Health {
    /// Combines the four inputs. Explicit statements win over silence.
    pub fn combine(inputs: HealthInputs) -> Self {
        use {Administrative as A, Lease as L, Probe as P, Reported as R};
        match (inputs.administrative, inputs.reported, inputs.probe, inputs.lease) {
            (A::Maintenance, ..) => Self::Down,
            (_, R::Draining, ..) => Self::Draining,
            (_, R::Starting | R::NotReady, ..) | (_, _, P::Failing, _) => Self::Down,
            (_, _, _, L::Silent) => Self::Down,
            (_, _, _, L::Protected) => Self::Stale,
            (_, _, _, L::Late) => Self::Warning,
            (_, _, _, L::Heard) => Self::Serving,
        }
    }

    /// Whether new traffic may be sent there in the first place (`serving` or `warning`).
    pub fn takes_traffic(self) -> bool {
        matches!(self, Self::Serving | Self::Warning)
    }

    /// The word used in the API, in metrics and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Warning => "warning",
            Self::Stale => "stale",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_win_over_silence() {
        use {Administrative as A, Lease as L, Probe as P, Reported as R};
        for (lease, reported, probe, administrative, want) in [
            (L::Heard, R::Ready, P::Unknown, A::Enabled, Health::Serving),
            (L::Late, R::Ready, P::Passing, A::Enabled, Health::Warning),
            (L::Silent, R::Ready, P::Passing, A::Enabled, Health::Down),
            (L::Protected, R::Ready, P::Passing, A::Enabled, Health::Stale),
            (L::Protected, R::Ready, P::Failing, A::Enabled, Health::Down),
            (L::Heard, R::Starting, P::Unknown, A::Enabled, Health::Down),
            (L::Silent, R::Draining, P::Failing, A::Enabled, Health::Draining),
            (L::Heard, R::Ready, P::Passing, A::Maintenance, Health::Down),
        ] {
            let inputs = HealthInputs { lease, reported, probe, administrative };
            assert_eq!(Health::combine(inputs), want, "{inputs:?}");
        }
    }
}
