//! The words of a command line, before and after clap.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Parser;
use clap::error::ErrorKind;

use super::{Cli, OutputFormat};
use crate::failure::Failure;

/// Options that may stand without a value, and the values that they have. Clap takes their value behind `=` only, or it
/// would take the image's name in `check --repair d.qcow2` for one.
const OPTIONAL: [(&str, &[&str]); 2] = [("--compress", &["zlib", "zstd"]), ("--repair", &["leaks", "all"])];

/// Joins an option of `plinth disk` that may stand without a value to the word behind it, if that is one.
fn join(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let (mut disk, mut over) = (false, false);
    for word in words {
        disk |= word == "disk";
        over |= word == "--";
        let values = joined.last().and_then(|last| OPTIONAL.iter().find(|o| last == o.0)).map(|o| o.1);
        match (values, joined.last_mut()) {
            (Some(values), Some(last)) if disk && !over && values.iter().any(|v| word == *v) => {
                last.push("=");
                last.push(word);
            }
            _ => joined.push(word),
        }
    }
    joined
}

static FORMAT: OnceLock<OutputFormat> = OnceLock::new();

/// How this process prints results and errors.
pub fn output_format() -> OutputFormat {
    FORMAT.get().copied().unwrap_or(OutputFormat::Text)
}

/// How errors of a command line are printed that nobody could parse.
fn wanted_format(words: &[OsString]) -> OutputFormat {
    let apart = words.windows(2).any(|w| w[0] == "--output" && w[1] == "json");
    if apart || words.iter().any(|w| w == "--output=json") { OutputFormat::Json } else { OutputFormat::Text }
}

/// What clap says of a wrong command line, as any other failure: what is wrong, then a line of help for each paragraph.
fn failure(text: &str) -> Failure {
    let mut paragraphs = text.trim().split("\n\n").map(|p| {
        let lines: Vec<_> = p.lines().map(str::trim).collect();
        lines.join(" ")
    });
    let what = paragraphs.next().unwrap_or_default();
    let failure = Failure::usage(what.strip_prefix("error: ").unwrap_or(&what));
    paragraphs.fold(failure, Failure::help)
}

/// The command line of this process; or, with what is to be said printed, how it ends.
pub fn parse() -> Result<Cli, ExitCode> {
    let words = join(std::env::args_os());
    let cli = Cli::try_parse_from(&words).map_err(|e| {
        let help = matches!(
            e.kind(),
            ErrorKind::DisplayHelp
                | ErrorKind::DisplayVersion
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        );
        if help || wanted_format(&words) == OutputFormat::Text {
            e.exit();
        }
        let failure = failure(&e.render().to_string());
        failure.print(OutputFormat::Json);
        ExitCode::from(failure.code)
    })?;
    let _ = FORMAT.set(cli.global.output);
    Ok(cli)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Words as a shell takes them apart, with single quotes.
    fn words(text: &str) -> Vec<OsString> {
        let mut words = Vec::new();
        for (n, part) in text.split('\'').enumerate() {
            match n % 2 {
                0 => words.extend(part.split_whitespace().map(OsString::from)),
                _ => words.push(part.into()),
            }
        }
        words
    }

    #[test]
    fn values_that_may_be_missing_are_not_the_next_argument() {
        for (text, want) in [
            ("plinth disk check --repair d.qcow2", "plinth disk check --repair d.qcow2"),
            ("plinth disk check --repair leaks d.qcow2", "plinth disk check --repair=leaks d.qcow2"),
            ("plinth disk convert --compress zstd a b", "plinth disk convert --compress=zstd a b"),
            ("plinth disk check -- --repair all", "plinth disk check -- --repair all"),
        ] {
            assert_eq!(join(words(text)), words(want));
        }
    }

    /// Commands and what is below them.
    fn all(command: &clap::Command) -> Vec<clap::Command> {
        let below = command.get_subcommands().flat_map(all);
        std::iter::once(command.clone()).chain(below).collect()
    }

    #[test]
    fn examples_of_the_help_can_be_written_so() {
        let mut seen = 0;
        let mut root = Cli::command();
        // What is below is made when it is asked for.
        root.build();
        for command in all(&root) {
            let Some(help) = command.get_after_help().map(ToString::to_string) else { continue };
            let examples = help.split("Examples:\n").nth(1).unwrap_or_default();
            // A line that goes on is indented deeper, or not at all.
            for line in examples.lines().take_while(|l| l.starts_with("  ")) {
                let line = line.split(['|', '>', '#']).next().unwrap_or_default();
                if !line.trim_start().starts_with("plinth ") || line.contains("=> ") {
                    continue;
                }
                if let Err(e) = Cli::try_parse_from(join(words(line))) {
                    panic!("{line}: {e}");
                }
                seen += 1;
            }
        }
        assert!(seen > 50, "{seen} examples");
    }
}
