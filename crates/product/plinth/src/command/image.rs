//! `plinth image` and the guests that `plinth run` knows by name.

use std::path::Path;
use std::process::ExitCode;

use plinth_guest::{DebianImage, DebianSpec, GuestArch, GuestError, build_debian, cached_debian};

use super::progress::Bars;
use crate::cli::{BuildDebianArgs, Global, OutputFormat};
use crate::failure::{Code, Failure, Result};

fn guest_failed(what: &str) -> impl FnOnce(GuestError) -> Failure {
    move |e| {
        let code = if matches!(e, GuestError::Invalid(_)) { Code::Usage } else { Code::Failed };
        let failure = Failure::from_error(code, what, &e);
        match e {
            GuestError::NoMirror | GuestError::Network { .. } | GuestError::Status { .. } => failure
                .help("name a mirror with `plinth image build debian --mirror URL -o debian.raw`")
                .help("then run it with `plinth run debian.raw`"),
            _ => failure,
        }
    }
}

fn arch(text: &str) -> Result<GuestArch> {
    text.parse().map_err(|e: GuestError| Failure::usage(e.to_string()))
}

/// `plinth image build debian`.
pub fn build(args: &BuildDebianArgs, global: &Global) -> Result<ExitCode> {
    let spec = DebianSpec {
        suite: args.suite.clone(),
        size: args.size.0,
        mirror: args.mirror.clone(),
        packages: args.package.clone(),
        hostname: args.hostname.clone(),
        require_signature: args.require_signature,
        ..DebianSpec::new(arch(&args.arch)?)
    };
    let bars = Bars::default();
    let what = format!("cannot build '{}'", args.out.display());
    let image = build_debian(&spec, &args.out, &bars).map_err(guest_failed(&what))?;
    bars.finish();
    if global.output == OutputFormat::Json {
        let value = serde_json::json!({
            "disk": image.disk, "kernel": image.kernel, "initrd": image.initrd, "append": image.cmdline,
            "suite": image.suite, "packages": image.packages.len(), "verified": image.verified,
        });
        println!("{value}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The guest that a name or the path of a built disk stands for.
pub fn named(guest: &str, wanted_arch: &str) -> Result<DebianImage> {
    if guest == "debian" {
        let bars = Bars::default();
        return cached_debian(&DebianSpec::new(arch(wanted_arch)?), &bars)
            .map_err(guest_failed("cannot get the guest 'debian'"));
    }
    let description = Path::new(guest).with_extension("json");
    if !description.exists() {
        return Err(Failure::usage(format!("there is no guest '{guest}'"))
            .help("guests known by name: debian")
            .help("a disk that `plinth image build` has made can be given by its path")
            .help("for any other disk give the kernel too: --kernel FILE --disk FILE"));
    }
    DebianImage::load(&description).map_err(guest_failed(&format!("cannot run '{guest}'")))
}
