//! `pillion ca`: the mesh's certificate authority.

use http::Method;
use serde_json::{Value, json};

use super::get::text;
use crate::api::{self, ApiArguments};
use crate::output::{self, OutputArguments, Rows, line};

/// `pillion ca`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show the roots, where a rotation stands, and who is waited for.
    Status(StatusArguments),
    /// Begin a rotation of the root; the registry takes the further steps by itself.
    Rotate(RotateArguments),
    /// Take an identity, an instance or a certificate back: it is refused everywhere within seconds.
    Revoke(RevokeArguments),
    /// Take a revocation back.
    Unrevoke(UnrevokeArguments),
    /// Print the trust bundle as other meshes are to trust it: a JWK set, for `bundle.trusted` of their
    /// Federation.
    Bundle(BundleArguments),
}

/// Arguments of `pillion ca bundle`.
#[derive(Debug, clap::Args)]
pub(crate) struct BundleArguments {
    #[command(flatten)]
    api: ApiArguments,
}

/// Arguments of `pillion ca status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    api: ApiArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Arguments of `pillion ca rotate`.
#[derive(Debug, clap::Args)]
pub(crate) struct RotateArguments {
    /// Switch to the announced root although some sidecars have not acknowledged it. Possible once it has
    /// been announced for ten minutes, or a quarter of a certificate's lifetime if that is less.
    #[arg(long, env = "PILLION_FORCE")]
    force: bool,
    #[command(flatten)]
    api: ApiArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Arguments of `pillion ca revoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArguments {
    /// `spiffe://…`, `<namespace>/<service>/<instance-id>`, or a certificate's serial number in hex.
    what: String,
    /// Why, for people.
    #[arg(long, env = "PILLION_REASON", default_value = "")]
    reason: String,
    #[command(flatten)]
    api: ApiArguments,
}

/// Arguments of `pillion ca unrevoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct UnrevokeArguments {
    /// As it was revoked.
    what: String,
    #[command(flatten)]
    api: ApiArguments,
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Status(arguments) => {
            let status = arguments.api.client()?.get("/v1/ca/status").await?;
            show(&arguments.output, &status)
        }
        Command::Rotate(arguments) => {
            let headers = [("content-type", "application/json")];
            let body = json!({"force": arguments.force}).to_string();
            let client = arguments.api.client()?;
            let answer = client.request(Method::POST, "/v1/ca/rotate", &headers, body).await?;
            show(&arguments.output, &api::json(&answer)?)
        }
        Command::Revoke(RevokeArguments { what, reason, api }) => {
            let headers = [("content-type", "application/json")];
            let body = json!({"what": what, "reason": reason}).to_string();
            api.client()?.request(Method::POST, "/v1/ca/revocations", &headers, body).await?;
            line(format_args!("{what} revoked"))
        }
        Command::Unrevoke(UnrevokeArguments { what, api }) => {
            let path = format!("/v1/ca/revocations?what={}", what.replace(':', "%3A").replace('/', "%2F"));
            api.client()?.request(Method::DELETE, &path, &[], "").await?;
            line(format_args!("{what} is not revoked any more"))
        }
        Command::Bundle(arguments) => {
            line(format_args!("{}", arguments.api.client()?.get("/v1/ca/bundle").await?))
        }
    }
}

fn show(output: &OutputArguments, status: &Value) -> anyhow::Result<()> {
    output::print(output.format, status, || {
        let mut rows = Rows::new(["ROOT", "ROLE", "ENDS"]);
        for root in status["roots"].as_array().into_iter().flatten() {
            let hash = text(root, "sha256");
            let days = left(&root["notAfter"]) / (24 * 3600);
            rows.push([hash.chars().take(16).collect(), text(root, "role"), format!("in {days} days")]);
        }
        rows
    })?;
    if output.format != output::Format::Table {
        return Ok(());
    }
    for it in status["revoked"].as_array().into_iter().flatten() {
        line(format_args!("revoked: {} {}", text(it, "what"), text(it, "reason")))?;
    }
    match status["step"].as_str() {
        Some("steady") if status["inFiles"] == true => {
            line(format_args!(
                "the authority is in files; {} sidecars have not acknowledged these roots",
                status["pendingTotal"]
            ))?;
            pending(status)
        }
        Some("announced") => {
            line(format_args!(
                "the next root is announced; {} sidecars have not acknowledged it (--force is possible in {} s)",
                status["pendingTotal"],
                left(&status["forceAfter"])
            ))?;
            pending(status)
        }
        Some("switched") => {
            line(format_args!("the next root signs; the old one is retired in {} s", left(&status["until"])))
        }
        _ => line("no rotation is under way"),
    }
}

fn pending(status: &Value) -> anyhow::Result<()> {
    for name in status["pending"].as_array().into_iter().flatten() {
        line(format_args!("  {}", name.as_str().unwrap_or_default()))?;
    }
    Ok(())
}

/// Seconds until then.
fn left(seconds: &Value) -> u64 {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    seconds.as_u64().unwrap_or_default().saturating_sub(now)
}
