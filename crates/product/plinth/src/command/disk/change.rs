//! `plinth disk resize` and `plinth disk amend`.

use std::process::ExitCode;

use plinth_image::format::{Options, Progress};
use serde_json::json;

use super::common::{close, failed, interruptible, open_image, result, secret, usage};
use crate::cli::disk_tool::{AmendArgs, ResizeArgs};
use crate::cli::{Global, Size, size};
use crate::failure::{Failure, Result};

/// The new size that the user means: `20G`, `+1G`, `-1G`.
fn new_size(text: &str, old: u64) -> Result<u64> {
    let (sign, number) = match text.as_bytes().first() {
        Some(b'+') => (1, &text[1..]),
        Some(b'-') => (-1, &text[1..]),
        _ => (0, text),
    };
    let number: Size = number.parse().map_err(|e| Failure::usage(format!("'{text}' is not a size: {e}")))?;
    let new = match sign {
        0 => Some(number.0),
        1 => old.checked_add(number.0),
        _ => old.checked_sub(number.0),
    };
    new.ok_or_else(|| Failure::usage(format!("the disk has {}, {text} is too much", size::show(old))))
}

pub fn resize(args: &ResizeArgs, global: &Global) -> Result<ExitCode> {
    let (old, new) = interruptible(async {
        let opened = open_image(&args.image, false).await?;
        let image = &opened.image;
        let old = image.size();
        let new = new_size(&args.size, old)?;
        let new = new.checked_next_multiple_of(plinth_image::SECTOR).unwrap_or(u64::MAX);
        if new < old && !args.shrink {
            let what = format!("{} is smaller than the disk's {}", size::show(new), size::show(old));
            return Err(Failure::usage(what)
                .help("what is behind the new end would be lost: add --shrink if that is meant"));
        }
        image.resize(new).await.map_err(failed)?;
        close(&**image).await?;
        Ok((old, new))
    })?;
    let value = json!({ "path": args.image.path, "old_size": old, "size": new });
    let text =
        format!("{}: {} now, {} before\n", args.image.path.display(), size::show(new), size::show(old));
    result(global, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

pub fn amend(args: &AmendArgs, global: &Global) -> Result<ExitCode> {
    let mut options = Options::default();
    for text in &args.options {
        options.add(text).map_err(|e| usage(&e))?;
    }
    for (file, option, state) in
        [(&args.add_secret, "new-secret", "active"), (&args.remove_secret, "old-secret", "inactive")]
    {
        let Some(bytes) = secret(file.as_deref())? else { continue };
        let text = std::str::from_utf8(&bytes).map_err(|_| Failure::usage("the passphrase is not UTF-8"))?;
        options.set(option, text);
        options.set("state", state);
    }
    interruptible(async {
        let opened = open_image(&args.image, false).await?;
        opened.image.amend(&options, &Progress::default()).await.map_err(failed)?;
        close(&*opened.image).await
    })?;
    result(global, &json!({ "path": args.image.path }), "")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_changes() {
        assert_eq!(new_size("2G", 5).unwrap(), 2 << 30);
        assert_eq!(new_size("+1K", 1024).unwrap(), 2048);
        assert_eq!(new_size("-1K", 4096).unwrap(), 3072);
        for bad in ["", "+", "-8K", "5"] {
            assert!(new_size(bad, 4096).is_err(), "{bad}");
        }
    }
}
