//! Promises are tests: every row of SPECIFICATION.md names a test or a benchmark that exists.

use std::collections::HashSet;
use std::path::Path;

/// What can show a promise.
struct Shown {
    /// Functions with `#[test]`.
    tests: HashSet<String>,
    /// All string literals' lines of `xtask`, where benchmarks are named.
    automation: String,
    fuzz_targets: Vec<String>,
}

impl Shown {
    fn gather(root: &Path) -> Self {
        let mut tests = HashSet::new();
        for path in crate::docs::files(&root.join("crates"), "rs") {
            tests.extend(tests_in(&std::fs::read_to_string(&path).unwrap_or_default()));
        }
        let mut automation = String::new();
        for path in crate::docs::files(&root.join("xtask"), "rs") {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            tests.extend(tests_in(&text));
            automation.push_str(&text);
        }
        Self { tests, automation, fuzz_targets: crate::fuzz::targets(root) }
    }

    fn has(&self, name: &str) -> bool {
        match name.split_once(' ') {
            None => self.tests.contains(name),
            Some(("fuzz", target)) => self.fuzz_targets.iter().any(|t| t == target),
            Some(("perf", figure)) => self.automation.contains(&format!("\"{figure}\"")),
            Some(("xtask", command)) => self.automation.contains(&format!("Some(\"{command}\")")),
            Some(_) => false,
        }
    }
}

/// Names of the functions that follow a `#[test]`.
fn tests_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| marked) {
            names.extend(rest.split('(').next().map(str::to_owned));
            marked = false;
        }
    }
    names
}

/// Checks the table rows `| promise | shown by |`. What shows it is `pending`, or in backticks the names of
/// tests (`a_test_function`), benchmarks (`perf boot`), fuzz targets (`fuzz virtqueue`) or checks
/// (`xtask layers`).
///
/// # Errors
/// One line for each row whose test does not exist.
pub fn check(root: &Path) -> Result<String, Vec<String>> {
    let file = root.join("SPECIFICATION.md");
    let text = std::fs::read_to_string(&file).map_err(|e| vec![format!("{}: {e}", file.display())])?;
    let shown = Shown::gather(root);
    let (found, pending) = check_text(&text, &shown)?;
    Ok(format!("spec: {found} tests named and found, {pending} promises pending"))
}

fn check_text(text: &str, all: &Shown) -> Result<(usize, usize), Vec<String>> {
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
            if all.has(name) {
                shown += 1;
            } else {
                problems.push(format!("SPECIFICATION.md:{}: no test `{name}` in the sources", n + 1));
            }
        }
    }
    if problems.is_empty() { Ok((shown, pending)) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_need_tests_that_exist() {
        let all = Shown {
            tests: tests_in("#[test]\n#[ignore]\nfn real() {\nfn other() {").into_iter().collect(),
            automation: String::new(),
            fuzz_targets: vec!["ring".into()],
        };
        let row =
            |by: &str| check_text(&format!("| promise | shown by |\n|---|---|\n| it works | {by} |"), &all);
        assert_eq!(row("`real`, `fuzz ring`"), Ok((2, 0)));
        assert_eq!(row("pending"), Ok((0, 1)));
        for wrong in ["", "real", "`other`", "`fuzz square`", "`perf boot`", "`xtask nothing`"] {
            assert!(row(wrong).is_err(), "{wrong}");
        }
    }
}
