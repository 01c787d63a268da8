//! `plinth disk compare`.

use std::process::ExitCode;

use plinth_image::job::{self, CompareOptions, Difference};
use serde_json::json;

use super::address::{open_either, outer_only};
use super::common::{failed, result, with_progress};
use crate::cli::Global;
use crate::cli::disk_tool::CompareArgs;
use crate::failure::{Code, Failure, Result};

pub fn run(args: &CompareArgs, global: &Global) -> Result<ExitCode> {
    // Of which of the two?
    outer_only(&args.open, "compare")?;
    let compared = with_progress("comparing", async |progress| {
        let a = open_either(&args.first, &args.open, args.first_format).await?;
        let b = open_either(&args.second, &args.open, args.second_format).await?;
        let options = CompareOptions { strict: args.strict };
        job::compare(&*a.image, &*b.image, options, progress).await.map_err(failed)
    });
    // Exit code 1 says that the disks differ.
    let report =
        compared.map_err(|f| if f.code == Code::Failed { Failure { code: Code::Usage, ..f } } else { f })?;
    let (what, at) = match report.difference {
        None => (None, None),
        Some(Difference::Content(at)) => (Some("contents"), Some(at)),
        Some(Difference::Allocation(at)) => (Some("allocation"), Some(at)),
        Some(Difference::Size) => (Some("size"), None),
    };
    let mut text = match (what, at) {
        (None, _) => "the disks are the same\n".to_owned(),
        (Some("contents"), Some(at)) => format!("the disks differ, first at byte {at}\n"),
        (Some(_), Some(at)) => format!("what is stored differs, first at byte {at}\n"),
        _ => "the disks' sizes differ\n".to_owned(),
    };
    if report.sizes_differ && what.is_none() {
        text.push_str("one of them is longer, by zeros\n");
    }
    let value = json!({
        "same": what.is_none(), "difference": what, "offset": at, "sizes_differ": report.sizes_differ,
    });
    result(global, &value, &text)?;
    Ok(if what.is_none() { ExitCode::SUCCESS } else { Code::Failed.into() })
}
