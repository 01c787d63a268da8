//! Text for people. Names that stand in images and packages may be hostile, and must not command the terminal.

use std::borrow::Cow;

/// The text with control characters as escapes, but for ends of lines and tabs.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() && c != '\n' && c != '\t')
}

/// The same on one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, char::is_control)
}

fn escaped(text: &str, hostile: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match hostile(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_command_the_terminal() {
        assert_eq!(printable("Größe\t'a\\b'\n"), "Größe\t'a\\b'\n");
        assert_eq!(printable("a\x1b[31m\u{9b}2J\r\0"), "a\\u{1b}[31m\\u{9b}2J\\r\\u{0}");
        assert_eq!(one_line("a\nb"), "a\\nb");
    }
}
