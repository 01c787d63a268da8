//! Test files.

use super::{Case, END, End, Fault, INSN, LAYOUT, Memory, State, Test};
use crate::isa::SlotClass;
use crate::op::Ty;
use crate::text::{self, integer};

/// What a line of a test belongs to.
enum Part {
    Outside,
    Ir,
    Cases,
}

/// Parses a test file; `;` begins a comment.
///
/// # Errors
/// Says what is wrong, on which line.
pub fn parse_file(text: &str) -> Result<Vec<Test>, String> {
    let mut tests: Vec<Test> = Vec::new();
    let (mut name, mut ir, mut part) = (String::new(), String::new(), Part::Outside);
    for (i, line) in text.lines().enumerate() {
        let line = line.split(';').next().unwrap_or_default().trim();
        let at = |e: String| format!("line {}: {e}", i + 1);
        match (line, &part) {
            ("", _) => {}
            ("ir", Part::Outside) => part = Part::Ir,
            ("cases", Part::Ir) => {
                let block = text::parse(&wrapped(&ir), &LAYOUT).map_err(|e| at(format!("{name}: {e}")))?;
                tests.push(Test { block, cases: Vec::new() });
                part = Part::Cases;
            }
            (line, _) if line.starts_with("test ") => {
                line.clone_into(&mut name);
                ir.clear();
                part = Part::Outside;
            }
            (line, Part::Ir) => {
                ir.push_str(line);
                ir.push('\n');
            }
            (line, Part::Cases) => {
                let test = tests.last_mut().ok_or_else(|| at("a case without a test".to_owned()))?;
                let name = format!("{name}, line {}", i + 1);
                test.cases.push(case(name, line).map_err(at)?);
            }
            (line, Part::Outside) => return Err(at(format!("`{line}` is not understood"))),
        }
    }
    if tests.iter().any(|t| t.cases.is_empty()) {
        return Err("a test has no case".to_owned());
    }
    Ok(tests)
}

fn wrapped(ir: &str) -> String {
    if ir.starts_with("block") {
        return ir.to_owned();
    }
    format!("block {INSN:#x} len 4\ninsn {INSN:#x} len 4\n{ir}exit {END:#x}\n")
}

fn case(name: String, line: &str) -> Result<Case, String> {
    let (before, after) = line.split_once("=>").ok_or("a case needs =>")?;
    let mut state = State { slots: initial_slots(), memory: Memory::default(), fp_flags: 0 };
    let mut attention = false;
    for (key, value) in pairs(before)? {
        match key {
            "attention" => attention = value != "0",
            _ => set(&mut state, key, value)?,
        }
    }
    let mut expected = state.clone();
    let (mut end, mut at, mut with) = (End::Dispatch(END), INSN, 0);
    for (key, value) in pairs(after)? {
        match key {
            "jump" => end = End::Jump(number(value)? as u64),
            "dispatch" => end = End::Dispatch(number(value)? as i32),
            "attention" => end = End::Attention(number(value)? as i32),
            "trap" => end = End::Trap((number(value)? as i32, 0), 0),
            "raise" => end = End::Raise((number(value)? as i32, 0), 0),
            "fault" => end = End::Fault(Fault::Unmapped(number(value)? as u64), 0),
            "misaligned" => end = End::Fault(Fault::Misaligned(number(value)? as u64), 0),
            "at" => at = number(value)? as u32,
            "value" => with = number(value)? as u64,
            _ => set(&mut expected, key, value)?,
        }
    }
    match &mut end {
        End::Trap(raised, offset) | End::Raise(raised, offset) => {
            raised.1 = with;
            *offset = at;
        }
        End::Fault(_, offset) => *offset = at,
        End::Jump(_) | End::Dispatch(_) | End::Attention(_) => {}
    }
    Ok(Case { name, before: state, attention, after: expected, end })
}

/// Slots that a case does not set hold something, so that what should not be read shows.
fn initial_slots() -> Vec<u64> {
    (0..LAYOUT.slots.len() as u64).map(|i| 0x5a5a_0000_c3c3_0000 | i).collect()
}

fn pairs(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let pair = |p| str::split_once(p, '=').ok_or_else(|| format!("`{p}` is not of the form a=b"));
    text.split_whitespace().map(pair).collect()
}

fn set(state: &mut State, key: &str, value: &str) -> Result<(), String> {
    if key == "fpflags" {
        state.fp_flags = number(value)? as u8;
        return Ok(());
    }
    if let Some(va) = key.strip_prefix('[').and_then(|k| k.strip_suffix(']')) {
        let (va, value) = (number(va)? as u64, number(value)? as u64);
        return state.memory.store(va, Ty::I64, 0, u128::from(value)).map_err(|e| format!("{e:?}"));
    }
    let slot = LAYOUT.slots.iter().position(|s| s.name == key).ok_or_else(|| format!("no slot {key}"))?;
    let value = number(value)?;
    state.slots[slot] = value as u64;
    if LAYOUT.slots[slot].class == SlotClass::Vector {
        state.slots[slot + 1] = (value >> 64) as u64;
    }
    Ok(())
}

/// A number of the case form, as 128 bits.
fn number(text: &str) -> Result<u128, String> {
    let bad = || format!("`{text}` is not a number");
    let float =
        |name| text.strip_prefix(name).and_then(|t| t.strip_prefix('(')).and_then(|t| t.strip_suffix(')'));
    if let Some(v) = float("f32") {
        return v.parse::<f32>().map(|v| u128::from(v.to_bits())).map_err(|_| bad());
    }
    if let Some(v) = float("f64") {
        return v.parse::<f64>().map(|v| u128::from(v.to_bits())).map_err(|_| bad());
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u128::from_str_radix(&hex.replace('_', ""), 16).map_err(|_| bad());
    }
    // Negative numbers are of 64 bits.
    integer(text).map(|v| u128::from(v as u64)).ok_or_else(bad)
}
