//! Documentation names only paths that exist.

use std::path::{Path, PathBuf};

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

/// Checks every `` `path/like/this` `` of the documentation that starts with a folder of the repository.
///
/// # Errors
/// One line for each path that does not exist.
pub fn check(root: &Path) -> Result<String, Vec<String>> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "SPECIFICATION.md"].map(|f| root.join(f)).into();
    pages.extend(files(&root.join("docs"), "md"));
    let mut problems = Vec::new();
    let mut paths = 0;
    for page in &pages {
        let text = std::fs::read_to_string(page).map_err(|e| vec![format!("{}: {e}", page.display())])?;
        let mut fenced = false;
        for (n, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            }
            if fenced {
                continue;
            }
            for word in line.split('`').skip(1).step_by(2) {
                let ours = ["crates/", "xtask/", "docs/", ".ci/", "fuzz/", "guests/"]
                    .iter()
                    .any(|p| word.starts_with(p));
                if !ours || word.contains([' ', '*', '{', '<']) {
                    continue;
                }
                paths += 1;
                if !root.join(word).exists() {
                    problems.push(format!("{}:{}: no such path `{word}`", page.display(), n + 1));
                }
            }
        }
    }
    if problems.is_empty() {
        Ok(format!("docs: {} pages, {paths} paths, all there", pages.len()))
    } else {
        Err(problems)
    }
}
