//! The log: errors only, unless the user asks for more.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::Global;
use crate::failure::{Failure, Result};

/// The environment's filter, where no option says otherwise.
const VARIABLE: &str = "PLINTH_LOG";

/// Starts the log as asked by `--log`, else by `-v`, else by the environment.
pub fn start(global: &Global) -> Result<()> {
    let directives = match (&global.log, global.verbose) {
        (Some(filter), _) => filter.clone(),
        (None, 0) => match std::env::var(VARIABLE) {
            Ok(filter) if !filter.is_empty() => filter,
            _ => "error".to_owned(),
        },
        (None, 1) => "info".to_owned(),
        (None, _) => "debug".to_owned(),
    };
    let filter: Targets = directives.parse().map_err(|e| {
        Failure::usage(format!("cannot use the log filter '{directives}': {e}"))
            .help("write a level (`info`), or levels of modules (`plinth_net=debug,info`)")
    })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}
