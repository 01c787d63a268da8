//! `qemu-img resize`.

use plinth_image::SECTOR;
use plinth_image::format::Format;

use super::getopt::parse;
use super::open::{how, image};
use super::{Exit, Result, block_on, names, reason, say};

/// `qemu-img resize`.
pub fn run(mut args: Vec<String>) -> Result {
    // The size is last, and may begin with a minus.
    let asked_help = args.iter().any(|a| a == "-h" || a == "--help");
    if args.len() < 2 && !asked_help {
        return Err(Exit::usage("Not enough arguments"));
    }
    let size = if asked_help { String::new() } else { args.pop().unwrap_or_default() };
    let long = [("preallocation", true, "preallocation"), ("shrink", false, "shrink")];
    let parsed = parse(args, "f:hq", &long)?;
    let preallocation = parsed.value("preallocation").unwrap_or("off");
    if !matches!(preallocation, "off" | "metadata" | "falloc" | "full") {
        return Err(Exit::failed(format!("Invalid preallocation mode '{preallocation}'")));
    }
    let name = parsed.one("Expecting image file name and size")?;
    let (sign, text) = match size.as_bytes().first() {
        Some(b'+') => (1, &size[1..]),
        Some(b'-') => (-1, &size[1..]),
        _ => (0, size.as_str()),
    };
    let Some(Ok(number)) = names::size(text) else {
        let why = "Parameter 'size' expects a non-negative number below 2^64";
        return Err(Exit::failed(format!("{why}\n{}", super::options::UNITS)));
    };
    let how = how(&parsed, false)?;
    block_on(async {
        let image = image(name, parsed.value("f"), parsed.has("image-opts"), &how).await?;
        let old = image.size();
        let new = match sign {
            0 => Some(number),
            1 => old.checked_add(number),
            _ => old.checked_sub(number),
        };
        let new = new.filter(|&n| n > 0 && n <= i64::MAX as u64);
        let Some(new) = new else { return Err(Exit::failed("New image size must be positive")) };
        if new <= old && preallocation != "off" {
            return Err(Exit::failed("Preallocation can only be used for growing images"));
        }
        if new < old && !parsed.has("shrink") {
            super::warn("Use the --shrink option to perform a shrink operation.");
            super::warn(
                "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing \
                 such an operation, make sure there is no important data there.",
            );
            return Err(Exit::Code(1));
        }
        let possible = match image.format() {
            Format::Qcow2 => true,
            Format::Raw => preallocation != "metadata",
            _ => preallocation == "off",
        };
        if !possible {
            return Err(Exit::failed(format!("Unsupported preallocation mode '{preallocation}'")));
        }
        let failed = |e: plinth_image::Error| Exit::failed(reason(&e));
        let new = new.next_multiple_of(SECTOR);
        image.resize(new).await.map_err(failed)?;
        if preallocation != "off" && new > old {
            image.preallocate(old, new - old, preallocation).await.map_err(failed)?;
        }
        image.close().await.map_err(failed)?;
        if !parsed.has("q") {
            say("Image resized.\n")?;
        }
        Ok(())
    })
}
