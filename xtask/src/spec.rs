//! Promises are tests: every row of SPECIFICATION.md names a test or a benchmark that exists.

use std::path::Path;

/// Checks the table rows `| promise | shown by |`. What shows it is `pending`, `` `test name` `` or
/// `` `perf name` `` with a name that stands in the sources as `fn name` or `"name"`.
///
/// # Errors
/// One line for each row whose test does not exist.
pub fn check(root: &Path) -> Result<String, Vec<String>> {
    let file = root.join("SPECIFICATION.md");
    let text = std::fs::read_to_string(&file).map_err(|e| vec![format!("{}: {e}", file.display())])?;
    let mut sources = String::new();
    for dir in ["crates", "xtask", ".ci"] {
        for path in crate::docs::files(&root.join(dir), "rs") {
            sources.push_str(&std::fs::read_to_string(&path).unwrap_or_default());
        }
    }
    let mut problems = Vec::new();
    let (mut shown, mut pending) = (0, 0);
    for (n, line) in text.lines().enumerate() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let is_row = line.trim_start().starts_with('|') && cells.len() >= 2;
        if !is_row || cells[0].starts_with("---") || cells[0] == "promise" {
            continue;
        }
        let by = cells[cells.len() - 1];
        if by == "pending" {
            pending += 1;
            continue;
        }
        let names: Vec<&str> = by.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            problems.push(format!("SPECIFICATION.md:{}: no test named, and not `pending`", n + 1));
        }
        for name in names {
            let bare = name.split_whitespace().last().unwrap_or(name);
            if sources.contains(&format!("fn {bare}(")) || sources.contains(&format!("\"{bare}\"")) {
                shown += 1;
            } else {
                problems.push(format!("SPECIFICATION.md:{}: no test `{bare}` in the sources", n + 1));
            }
        }
    }
    if problems.is_empty() {
        Ok(format!("spec: {shown} tests named and found, {pending} promises pending"))
    } else {
        Err(problems)
    }
}
