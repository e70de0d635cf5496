//! The command line: one file a subcommand.
//!
//! In: arguments. Out: an exit code: 0 done, 1 failed, 2 wrong usage.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

pub mod check;
pub mod completions;
pub mod demo;
pub mod fleet;
pub mod list;
pub mod module;
pub mod policy;
pub mod quarantine;
mod rates;
pub mod run;
pub mod signing;
pub mod status;
pub mod tap;
pub mod top;
mod visible;
mod words;

/// Follows log files, filters their lines in WebAssembly, produces them to Kafka; loses none.
#[derive(Debug, Parser)]
#[command(name = "weir", version, max_term_width = 100)]
pub struct Cli {
    /// What goes with every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What goes with every command.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Settings: weir.toml, or the older config.ini [default: ./weir.toml, then /etc/weir/weir.toml]
    #[arg(long, global = true, value_name = "FILE", env = "WEIR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Kafka brokers, in place of `kafka.brokers`; `mock` is an in-process broker
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT,…",
        env = "WEIR_KAFKA_BROKERS",
        hide_short_help = true
    )]
    pub kafka_brokers: Option<String>,
    /// etcd endpoints, in place of `etcd.endpoints`
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT,…",
        env = "WEIR_ETCD_ENDPOINTS",
        hide_short_help = true
    )]
    pub etcd_endpoints: Option<String>,
    /// State directory, in place of `state.dir`
    #[arg(long, global = true, value_name = "DIR", env = "WEIR_STATE_DIR", hide_short_help = true)]
    pub state_dir: Option<PathBuf>,
    /// How the agent's own log is written
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", hide_short_help = true)]
    pub log_format: LogFormat,
}

/// How the agent's own log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent
    Run(run::RunArgs),
    /// Check settings, list, etcd, Kafka, modules, policy: all problems at once
    Check(check::CheckArgs),
    /// See the whole story in one process: a broker, a log being written, a filter, a live swap
    Demo(demo::DemoArgs),
    /// Read and change the collect list, in etcd or a file
    #[command(subcommand)]
    List(list::ListCommand),
    /// Build filters and move them to the fleet
    #[command(subcommand)]
    Module(module::ModuleCommand),
    /// Is everything delivered? Entries, files, lag, modules, problems of this host's agent
    Status(status::StatusArgs),
    /// The status, live, in the terminal
    Top(top::TopArgs),
    /// The lines of an entry as they pass its filter: before and after, live, sampled under load
    Tap(tap::TapArgs),
    /// Every agent on this etcd: version, applied revision, troubled entries, last seen
    Fleet(fleet::FleetArgs),
    /// What this host's policy allows a list to ask for, and why
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Lines set aside on this host: look at them, send them again, remove them
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineCommand),
    /// Print what makes a shell complete weir's commands and options
    Completions(completions::CompletionsArgs),
    /// Write the man pages; packages call this
    #[command(hide = true)]
    Man(completions::ManArgs),
    /// Compile a module; `weir` calls this itself, under limits
    #[command(hide = true)]
    Compile(crate::filter::compile::CompileArgs),
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { common, command } = self;
        match command {
            Command::Run(args) => run::run(&common, args),
            Command::Check(args) => check::run(&common, args),
            Command::Demo(args) => demo::run(&common, args),
            Command::List(command) => list::run(&common, command),
            Command::Module(command) => module::run(&common, command),
            Command::Status(args) => status::run(&common, args),
            Command::Top(args) => top::run(&common, args),
            Command::Tap(args) => tap::run(&common, args),
            Command::Fleet(args) => fleet::run(&common, args),
            Command::Policy(command) => policy::run(&common, command),
            Command::Quarantine(command) => quarantine::run(&common, command),
            Command::Completions(args) => completions::completions(&mut Self::command(), args),
            Command::Man(args) => completions::man(Self::command(), args),
            Command::Compile(args) => crate::filter::compile::run(args),
        }
    }
}
