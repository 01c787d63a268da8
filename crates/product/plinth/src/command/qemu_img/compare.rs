//! `qemu-img compare`.

use plinth_image::job::{self, CompareOptions, Difference};

use super::convert::with_progress;
use super::getopt::parse;
use super::names::source_cache;
use super::open::{How, how, image};
use super::{Exit, Result, block_on, reason, say};

/// A failure other than a difference has an exit code of its own.
fn code(e: Exit, code: u8) -> Exit {
    match e {
        Exit::Failed(why, 1) => Exit::Failed(why, code),
        other => other,
    }
}

/// `qemu-img compare`.
pub fn run(args: Vec<String>) -> Result {
    let parsed = parse(args, "hf:F:T:pqsU", &[("force-share", false, "U")]).map_err(|e| code(e, 2))?;
    let [first, second] = &parsed.rest[..] else {
        return Err(code(Exit::usage("Expecting two image file names"), 2));
    };
    let cache = source_cache(parsed.value("T")).map_err(|why| Exit::Failed(why, 2))?;
    let how = How { cache, ..how(&parsed, true).map_err(|e| code(e, 2))? };
    let opts = parsed.has("image-opts");
    let shown = parsed.has("p") && !parsed.has("q");
    let (strict, quiet) = (parsed.has("s"), parsed.has("q"));
    let report = block_on(async {
        let a = image(first, parsed.value("f"), opts, &how).await.map_err(|e| code(e, 2))?;
        let b = image(second, parsed.value("F"), opts, &how).await.map_err(|e| code(e, 2))?;
        with_progress(shown, async |progress| {
            let compared = job::compare(&*a, &*b, CompareOptions { strict }, progress).await;
            compared.map_err(|e| {
                super::warn(&format!("{}: {}", e.context, reason(&e)));
                if a.size() != b.size() && !strict && !quiet {
                    // Nothing is to be done about an output that is gone.
                    let _ = say("Warning: Image size mismatch!\n");
                }
                Exit::Code(4)
            })
        })
        .await
    })?;
    let mut text = String::new();
    if report.sizes_differ && !strict && !matches!(report.difference, Some(Difference::Content(_))) {
        text += "Warning: Image size mismatch!\n";
    }
    text += &match report.difference {
        None => "Images are identical.\n".to_owned(),
        Some(Difference::Content(at)) => format!("Content mismatch at offset {at}!\n"),
        Some(Difference::Allocation(at)) => format!("Strict mode: Offset {at} block status mismatch!\n"),
        Some(Difference::Size) => "Strict mode: Image size mismatch!\n".to_owned(),
    };
    if !quiet {
        say(&text)?;
    }
    if report.difference.is_some() { Err(Exit::Code(1)) } else { Ok(()) }
}
