//! Documentation names only paths that exist, and quotes only code that is there.
//!
//! - `` `crates/x/y.rs` ``: the path exists.
//! - `` `crates/x/y.rs#some text` ``: and the file has this text.
//! - A fenced block that opens with ```` ```rust crates/x/y.rs ````: its lines stand in that file in this
//!   order; a line `// ...` stands for what is left out.

use std::path::{Path, PathBuf};

/// Folders of the repository that a checked path starts with.
const OURS: [&str; 5] = ["crates/", "xtask/", "docs/", ".ci/", "fuzz/"];
/// A quotation's line for what is left out.
const ELISION: &str = "// ...";

/// All files below `dir` that end in `.ext`, without build output.
pub fn files(dir: &Path, ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return found };
    for e in entries.flatten() {
        let path = e.path();
        if path.is_dir() {
            if e.file_name() != "target" {
                found.extend(files(&path, ext));
            }
        } else if path.extension().is_some_and(|x| x == ext) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Checks all pages; see the module's text.
///
/// # Errors
/// One line for each path, text or quotation that is not there.
pub fn check(root: &Path) -> Result<String, Vec<String>> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "SPECIFICATION.md"].map(|f| root.join(f)).into();
    pages.extend(files(&root.join("docs"), "md"));
    let mut found = Found::default();
    for page in &pages {
        let text = std::fs::read_to_string(page).map_err(|e| vec![format!("{}: {e}", page.display())])?;
        let name = page.strip_prefix(root).unwrap_or(page).display().to_string();
        check_page(root, &name, &text, &mut found);
    }
    let Found { paths, quotations, problems } = found;
    if problems.is_empty() {
        Ok(format!("docs: {} pages, {paths} paths and {quotations} quotations, all there", pages.len()))
    } else {
        Err(problems)
    }
}

#[derive(Default)]
struct Found {
    paths: usize,
    quotations: usize,
    problems: Vec<String>,
}

/// A fenced block that quotes a file.
struct Quotation<'a> {
    file: &'a str,
    /// The file's text, and where the quotation has got to in it.
    lines: Vec<String>,
    at: usize,
}

fn check_page(root: &Path, page: &str, text: &str, found: &mut Found) {
    let mut fenced = false;
    let mut quotation: Option<Quotation<'_>> = None;
    for (n, line) in text.lines().enumerate() {
        let mut problem = |what: String| found.problems.push(format!("{page}:{}: {what}", n + 1));
        if let Some(info) = line.trim_start().strip_prefix("```") {
            fenced = !fenced;
            quotation = None;
            let file = info.split_whitespace().nth(1).filter(|_| fenced);
            if let Some(file) = file {
                found.quotations += 1;
                match std::fs::read_to_string(root.join(file)) {
                    Ok(t) => {
                        let lines = t.lines().map(|l| l.trim().to_owned()).collect();
                        quotation = Some(Quotation { file, lines, at: 0 });
                    }
                    Err(e) => problem(format!("quotes `{file}`: {e}")),
                }
            }
            continue;
        }
        if let Some(q) = &mut quotation {
            let wanted = line.trim();
            if wanted.is_empty() || wanted == ELISION {
                continue;
            }
            match q.lines[q.at..].iter().position(|l| l == wanted) {
                Some(skipped) => q.at += skipped + 1,
                None => problem(format!("`{}` does not have (any more, or here): {wanted}", q.file)),
            }
        }
        if fenced {
            continue;
        }
        for word in line.split('`').skip(1).step_by(2) {
            let (path, part) = word.split_once('#').map_or((word, None), |(p, t)| (p, Some(t)));
            if !OURS.iter().any(|p| path.starts_with(p)) || path.contains([' ', '*', '{', '<']) {
                continue;
            }
            found.paths += 1;
            if !root.join(path).exists() {
                problem(format!("no such path `{path}`"));
            } else if let Some(part) = part
                && !std::fs::read_to_string(root.join(path)).is_ok_and(|t| t.contains(part))
            {
                problem(format!("`{path}` does not have: {part}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_held_to_the_tree() {
        let root = crate::root();
        let check = |text: &str| {
            let mut found = Found::default();
            check_page(&root, "page", text, &mut found);
            found.problems
        };
        assert!(check("see `xtask/src/docs.rs` and `xtask/src/docs.rs#pub fn check(`").is_empty());
        assert_eq!(check("see `xtask/src/nothing.rs`").len(), 1);
        assert_eq!(
            check(concat!("\nsee `xtask/src/docs.rs#fn ", "absent(`")),
            [concat!("page:2: `xtask/src/docs.rs` does not have: fn ", "absent(")]
        );
        let quote = |body: &str| check(&format!("```rust xtask/src/docs.rs\n{body}\n```\n"));
        assert!(quote("#[derive(Default)]\n// ...\n    paths: usize,").is_empty());
        assert_eq!(quote("paths: usize,\nconst ELISION: &str = \"// ...\";").len(), 1, "order counts");
        assert_eq!(check("```rust xtask/src/nothing.rs\n```\n").len(), 1);
        assert!(check("```\nanything `crates/nothing`\n```\n").is_empty());
    }
}
