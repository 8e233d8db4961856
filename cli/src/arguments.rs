//! The command line as a whole; each command's own arguments stand beside the command.

use clap::builder::BoolishValueParser;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands;

/// The registry's port for proxies, where an address names none.
pub(crate) const MESH_PORT: u16 = 7071;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// A service mesh in one binary: a registry that knows what is alive, and a proxy beside each instance.
#[derive(Debug, Parser)]
#[command(name = "pillion", version, styles = STYLES, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole mesh on this machine: registry, sample services, sidecars, live traffic.
    Demo(crate::demo::Arguments),
    /// The registry: which services and instances exist, told to everyone who asks.
    Registry(Box<commands::registry::Arguments>),
    /// A sidecar of one service instance, or a proxy that runs an Envoy v3 bootstrap.
    Proxy(Box<commands::proxy::Arguments>),
    /// Run a command with a sidecar beside it.
    Run(Box<commands::run::Arguments>),
    /// Ask whether the registry or proxy on this machine is ready (exit code 0 or 1).
    Ready(commands::ready::ReadyArguments),
    /// Wait until the registry or proxy on this machine is ready.
    Wait(commands::ready::WaitArguments),
    /// Take the instance beside a proxy out of service, and wait until it has nothing in flight.
    Drain(commands::drain::Arguments),
    /// Apply resource files, all or nothing.
    Apply(commands::apply::Arguments),
    /// List services, instances or resources.
    Get(commands::get::Arguments),
    /// Show everything that bears on a service.
    Describe(commands::describe::Arguments),
    /// Delete a resource.
    Delete(commands::delete::Arguments),
    /// Show what applying files would change (exit code 1 if anything).
    Diff(commands::diff::Arguments),
    /// Check resource files: every mistake, with its place.
    Validate(commands::validate::Arguments),
    /// Print the JSON Schema of resources, for editors.
    Schema(commands::schema::Arguments),
    /// Say what would happen to a request, and why.
    Explain(commands::explain::Arguments),
    /// Make and manage join tokens.
    #[command(subcommand)]
    Token(commands::token::Command),
    /// The certificate authority: its roots and their rotation.
    #[command(subcommand)]
    Ca(commands::ca::Command),
    /// Write what others need to join the mesh.
    #[command(subcommand)]
    Generate(Box<commands::generate::Command>),
    /// Save and restore everything a registry keeps.
    #[command(subcommand)]
    Snapshot(commands::snapshot::Command),
    /// Write everything in a store to a file, to move it to another engine or machine.
    Export(commands::snapshot::ExportArguments),
    /// Bring in what was kept elsewhere.
    #[command(subcommand)]
    Import(commands::snapshot::ImportCommand),
    /// Look at certificates, or keep them fresh.
    #[command(subcommand)]
    Cert(commands::cert::Command),
    /// Print a completion script for a shell.
    Completions(commands::completions::Arguments),
    /// A command in a mount namespace of its own.
    #[command(hide = true)]
    InNamespace(commands::run::names::InNamespace),
    /// One of the demo's sample services.
    #[command(hide = true, subcommand)]
    DemoService(crate::demo::services::Service),
}

/// Reads the command line and the environment; wrong usage ends the process with exit code 2.
pub(crate) fn parse() -> Arguments {
    let matches = with_switches(Arguments::command()).get_matches();
    Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Lets the variable of a switch be `1`, `yes` or `on` as well as `true`.
fn with_switches(command: clap::Command) -> clap::Command {
    let switch = |argument: clap::Arg| match argument.get_action() {
        ArgAction::SetTrue => argument.value_parser(BoolishValueParser::new()),
        _ => argument,
    };
    command.mut_args(switch).mut_subcommands(with_switches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_flag_has_an_environment_variable_and_a_description() {
        fn visit(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(
                command.is_hide_set() || command.get_about().is_some(),
                "{path} says nothing about itself"
            );
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let name = argument.get_id().as_str();
                if matches!(name, "help" | "version") {
                    continue;
                }
                assert!(argument.get_help().is_some(), "{path}: `{name}` has no help");
                if argument.is_positional() {
                    continue;
                }
                let long = argument.get_long().unwrap_or_else(|| panic!("{path}: `{name}` has no long form"));
                let variable =
                    argument.get_env().unwrap_or_else(|| panic!("{path}: --{long} has no variable"));
                let variable = variable.to_string_lossy();
                // SPIFFE names the variable of its Workload API itself.
                let named_elsewhere = variable == "SPIFFE_ENDPOINT_SOCKET";
                assert!(variable.starts_with("PILLION_") || named_elsewhere, "{path}: --{long}: {variable}");
            }
            command.get_subcommands().filter(|sub| !sub.is_hide_set()).for_each(|sub| visit(sub, &path));
        }
        visit(&Arguments::command(), "");
    }
}
