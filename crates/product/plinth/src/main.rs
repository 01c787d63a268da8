//! One hypervisor for every machine: the command line.

mod accel;
mod adapter;
mod cli;
mod command;
mod console;
mod failure;
mod logging;
mod printable;

use std::process::ExitCode;

use cli::{BuildWhat, Command, ImageCommand};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let called = |n: &std::ffi::OsStr| std::path::Path::new(n).file_name() == Some("qemu-img".as_ref());
    let mut rest = args.peekable();
    if called(&name) || rest.peek().is_some_and(|first| first == "qemu-img") {
        return command::qemu_img::run(rest.skip(usize::from(!called(&name))).collect());
    }
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let format = cli.global.output;
    let done = logging::start(&cli.global).and_then(|()| match cli.command {
        Command::Run(args) => command::run::run(*args, &cli.global),
        Command::Image(ImageCommand::Build(BuildWhat::Debian(args))) => {
            command::image::build(&args, &cli.global)
        }
        Command::Disk(args) => command::disk::run(&args.command, &cli.global),
        Command::QemuImg { args } => Ok(command::qemu_img::run(args)),
        Command::Completions { shell } => command::shell::completions(shell),
        Command::Man { dir } => command::shell::man(dir.as_deref()),
    });
    match done {
        Ok(code) => code,
        Err(failure) => {
            failure.print(format);
            failure.code.into()
        }
    }
}
