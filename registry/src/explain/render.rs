//! An explanation as text.

use std::fmt;

use super::{Authorization, DestinationStep, Explanation, PolicyStep};

/// Some lines for people, without colours.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "caller     {}", self.caller.as_deref().unwrap_or("without identity"))?;
        writeln!(f, "service    {}, port {}", self.service, self.port)?;
        if let Some(request) = &self.request {
            writeln!(f, "request    {request}")?;
        }
        if let Some(route) = &self.route {
            writeln!(f, "route      {} in {}: {}", route.name, route.configuration, route.action)?;
            if let Some(timeout) = &route.timeout {
                writeln!(f, "timeout    {timeout}")?;
            }
            if let Some(retries) = &route.retries {
                writeln!(f, "retries    {retries}")?;
            }
        }
        for destination in &self.destinations {
            write_destination(f, destination)?;
        }
        write!(f, "outcome    {}", self.outcome)
    }
}

fn write_destination(f: &mut fmt::Formatter<'_>, destination: &DestinationStep) -> fmt::Result {
    let DestinationStep { service, subset, percent, .. } = destination;
    let subset = if subset.is_empty() { "all instances".to_owned() } else { format!("subset {subset}") };
    let mtls = destination.mtls.as_deref().map_or_else(String::new, |mtls| format!(", mtls {mtls}"));
    // Two decimals, and none where they are zeros.
    let percent = (percent * 100.0).round() / 100.0;
    writeln!(f, "to         {service}, {subset}: {percent} %{mtls}")?;
    if destination.endpoints.is_empty() {
        writeln!(f, "           no endpoints")?;
    }
    for endpoint in &destination.endpoints {
        let zone = if endpoint.zone.is_empty() { "-" } else { &endpoint.zone };
        writeln!(
            f,
            "           {} {} {} weight {} zone {zone} priority {}",
            endpoint.instance, endpoint.address, endpoint.health, endpoint.weight, endpoint.priority
        )?;
    }
    let Authorization { allowed, reason, policies } = &destination.authorization;
    for PolicyStep { policy, action, dry_run, matched, reason } in policies {
        let dry_run = if *dry_run { ", dry run" } else { "" };
        let matched = if *matched { "matches" } else { "does not match" };
        writeln!(f, "policy     {policy} ({action}{dry_run}) {matched}: {reason}")?;
    }
    writeln!(f, "decision   {}: {reason}", if *allowed { "allowed" } else { "refused" })
}
