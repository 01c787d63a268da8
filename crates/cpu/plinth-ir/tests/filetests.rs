//! The text tests on the reference interpreter, and the text form itself on their blocks.

use std::collections::HashSet;
use std::path::Path;

use plinth_ir::{Block, Code, filetest, text, verify};

fn dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/filetests"))
}

#[test]
fn interpreter_passes_all_files() {
    let count = filetest::run_dir(dir(), &mut filetest::interpret).unwrap_or_else(|e| panic!("{e}"));
    assert!(count > 500, "only {count} cases");
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for entry in std::fs::read_dir(dir()).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        blocks.extend(filetest::parse_file(&text).unwrap().into_iter().map(|t| t.block));
    }
    blocks
}

#[test]
fn files_cover_every_opcode() {
    let used: HashSet<Code> = blocks().iter().flat_map(|b| b.ops.iter().map(|op| op.code)).collect();
    let missing: Vec<_> = Code::ALL.iter().filter(|c| !used.contains(c)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn text_form_round_trips() {
    for block in blocks() {
        verify(&block, &filetest::LAYOUT).unwrap();
        let shown = block.display(&filetest::LAYOUT).to_string();
        let parsed = text::parse(&shown, &filetest::LAYOUT).unwrap_or_else(|e| panic!("{e}\n{shown}"));
        assert_eq!(parsed, block, "{shown}");
    }
}
