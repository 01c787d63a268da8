//! The text form: one operation a line.
//!
//! ```text
//! block 0x010 len 8          ; first byte and bytes of guest code
//! label L1 @0x1040           ; a label outside the block; inside, it stands where it is bound:
//! L0: @0x010
//! insn 0x010 len 4
//! %0 = load.i32.sx x2, 16    ; mnemonic.sub.type.flags operands
//! x10 = add.i64 %0, 5
//! insn 0x014 len 4
//! br.ltu.i64 x10, x11, L1
//! jmp L0
//! ```
//! A label inside an instruction is at `@local`.
//!
//! Slots have the names of the layout, `%0` is a temporary, a number is a constant, `-` is an operand that
//! is absent. The type is left out where there is only one. A block that was printed and parsed again has the
//! same operations and labels; its constants may be numbered differently.

use std::collections::HashMap;
use std::fmt::{self, Write};

use crate::block::{Block, BlockBuilder, Label};
use crate::isa::Layout;
use crate::op::{Code, Op, Ty, Val};
use crate::spec::{Arg, Dst, LANES, Spec, TYPES, spec};

/// Shows a block in its text form.
pub struct Display<'a> {
    block: &'a Block,
    layout: &'a Layout,
}

impl Block {
    /// The text form, with the slot names of `layout`.
    #[must_use]
    pub fn display<'a>(&'a self, layout: &'a Layout) -> Display<'a> {
        Display { block: self, layout }
    }
}

impl fmt::Display for Display<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "block {:#05x} len {}", self.block.start, self.block.len)?;
        for (i, label) in self.block.labels.iter().enumerate() {
            if label.op.is_none() {
                writeln!(f, "label L{i} @{}", Offset(label.pc))?;
            }
        }
        for op in &self.block.ops {
            self.op(f, op)?;
            f.write_char('\n')?;
        }
        Ok(())
    }
}

/// An offset from the page base.
struct Offset(i32);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{:#05x}", self.0.unsigned_abs())
    }
}

impl Display<'_> {
    fn op(&self, f: &mut fmt::Formatter<'_>, op: &Op) -> fmt::Result {
        match op.code {
            Code::Insn => return write!(f, "insn {} len {}", Offset(op.aux), op.sub),
            Code::Label => {
                let pc = self.block.labels.get(op.aux as usize).map_or(0, |l| l.pc);
                return match pc {
                    Label::LOCAL => write!(f, "L{}: @local", op.aux),
                    pc => write!(f, "L{}: @{}", op.aux, Offset(pc)),
                };
            }
            _ => {}
        }
        let spec = spec(op.code);
        if !op.dst.is_none() {
            self.val(f, op.dst)?;
            f.write_str(" = ")?;
        }
        f.write_str(spec.name)?;
        Self::suffixes(f, op, &spec)?;
        let mut fields = *op;
        // Absent operands at the end need not be shown.
        let shown = |a: &Arg| !(a.optional() && a.operand(&mut { *op }).is_some_and(|v| v.is_none()));
        let count = spec.args.iter().rposition(shown).map_or(0, |i| i + 1);
        for (i, arg) in spec.args[..count].iter().enumerate() {
            f.write_str(if i == 0 { " " } else { ", " })?;
            match arg {
                Arg::Aux => write!(f, "{}", op.aux)?,
                Arg::Offset => write!(f, "{}", Offset(op.aux))?,
                Arg::Label => write!(f, "L{}", op.aux)?,
                _ => self.val(f, arg.operand(&mut fields).map_or(Val::NONE, |v| *v))?,
            }
        }
        Ok(())
    }

    fn suffixes(f: &mut fmt::Formatter<'_>, op: &Op, spec: &Spec) -> fmt::Result {
        let mut suffix = |names: &[&str], index: usize| match names.get(index) {
            Some(name) => write!(f, ".{name}"),
            None => write!(f, ".?{index}"),
        };
        if !spec.sub.names().is_empty() {
            suffix(spec.sub.names(), usize::from(op.sub))?;
        }
        if spec.types.only() != Some(op.ty) {
            suffix(TYPES, op.ty as usize)?;
        }
        if spec.other.is_some() {
            suffix(TYPES, op.aux as usize)?;
        }
        if spec.lane {
            return suffix(LANES, usize::from(op.flags));
        }
        for bit in (0..8).filter(|bit| op.flags & (1 << bit) != 0) {
            suffix(spec.flags, bit)?;
        }
        Ok(())
    }

    fn val(&self, f: &mut fmt::Formatter<'_>, v: Val) -> fmt::Result {
        if v.is_none() {
            return f.write_char('-');
        }
        if let Some(i) = v.as_temp() {
            return write!(f, "%{i}");
        }
        if let Some(i) = v.as_const() {
            return match self.block.const_of(v) {
                Some(c) if (c as i64).unsigned_abs() < 0x10000 => write!(f, "{}", c as i64),
                Some(c) => write!(f, "{c:#x}"),
                None => write!(f, "?const{i}"),
            };
        }
        match v.as_slot().and_then(|i| self.layout.slots.get(usize::from(i))) {
            Some(slot) => f.write_str(slot.name),
            None => write!(f, "?{v:?}"),
        }
    }
}

/// What is wrong with a text, and on which line of it (from 1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Line.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Parses a block; what follows `;` on a line is a comment. The result is not verified.
///
/// # Errors
/// [`ParseError`].
pub fn parse(text: &str, layout: &Layout) -> Result<Block, ParseError> {
    let slots = layout.slots.iter().enumerate().map(|(i, s)| (s.name, Val::slot(i as u16))).collect();
    let mut block = Block::default();
    let mut parser = Parser { builder: BlockBuilder::new(&mut block), slots, labels: HashMap::new() };
    let mut last = 0;
    for (i, line) in text.lines().enumerate() {
        last = i + 1;
        let line = line.split(';').next().unwrap_or_default().trim();
        if !line.is_empty() {
            parser.line(line).map_err(|message| ParseError { line: last, message })?;
        }
    }
    let labels = std::mem::take(&mut parser.labels);
    let uses = block.ops.iter().filter(|op| matches!(op.code, Code::Br | Code::Jmp)).map(|op| op.aux as u32);
    let count = uses.chain(labels.keys().copied()).max().map_or(0, |m| m + 1);
    for i in 0..count {
        let missing = || ParseError { line: last, message: format!("label L{i} is not defined") };
        block.labels.push(labels.get(&i).copied().ok_or_else(missing)?);
    }
    Ok(block)
}

struct Parser<'a> {
    builder: BlockBuilder<'a>,
    slots: HashMap<&'a str, Val>,
    labels: HashMap<u32, Label>,
}

type Parsed<T> = Result<T, String>;

impl Parser<'_> {
    fn line(&mut self, line: &str) -> Parsed<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["block", start, "len", len] => {
                self.builder.block.start = number(start)?;
                self.builder.block.len = number(len)?;
                Ok(())
            }
            ["insn", offset, "len", len] => {
                self.builder.insn(number(offset)?, number(len)?);
                Ok(())
            }
            ["label", name, at] => self.define_label(name, at, None),
            [name, at] if name.ends_with(':') => {
                let name = name.trim_end_matches(':');
                let op = self.builder.block.ops.len() as u32;
                self.define_label(name, at, Some(op))?;
                let aux = label_index(name)? as i32;
                self.builder.push(Op { aux, ..BlockBuilder::op(Code::Label, Ty::I64) });
                Ok(())
            }
            _ => {
                let op = self.op(line)?;
                self.builder.push(op);
                Ok(())
            }
        }
    }

    fn define_label(&mut self, name: &str, at: &str, op: Option<u32>) -> Parsed<()> {
        let at = at.strip_prefix('@').ok_or("a label's offset begins with @")?;
        let pc = if at == "local" { Label::LOCAL } else { number(at)? };
        match self.labels.insert(label_index(name)?, Label { pc, op }) {
            None => Ok(()),
            Some(_) => Err(format!("label {name} is defined twice")),
        }
    }

    fn op(&mut self, line: &str) -> Parsed<Op> {
        let (dst, rest) = match line.split_once('=') {
            Some((dst, rest)) => (dst.trim(), rest.trim()),
            None => ("-", line),
        };
        let (head, args) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let (mut op, spec) = mnemonic(head)?;
        op.dst = self.val(dst)?;
        if op.dst.as_const().is_some() || (op.dst.is_none() && spec.dst == Dst::Needed) {
            return Err(format!("{} needs a destination", spec.name));
        }
        let args: Vec<&str> = args.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
        if args.len() > spec.args.len() {
            return Err(format!("{} has at most {} operands", spec.name, spec.args.len()));
        }
        for (i, arg) in spec.args.iter().enumerate() {
            match (args.get(i), arg) {
                (None, arg) if arg.optional() => {}
                (None, _) => return Err(format!("{} has too few operands", spec.name)),
                (Some(text), Arg::Aux | Arg::Offset) => op.aux = number(text)?,
                (Some(text), Arg::Label) => op.aux = label_index(text)? as i32,
                (Some(text), arg) => {
                    let val = self.val(text)?;
                    if let Some(operand) = arg.operand(&mut op) {
                        *operand = val;
                    }
                }
            }
        }
        Ok(op)
    }

    fn val(&mut self, text: &str) -> Parsed<Val> {
        if text == "-" {
            return Ok(Val::NONE);
        }
        if let Some(&slot) = self.slots.get(text) {
            return Ok(slot);
        }
        if let Some(index) = text.strip_prefix('%').and_then(|t| t.parse::<u16>().ok()) {
            if index >= 0x3fff {
                return Err(format!("temporary {text} is out of range"));
            }
            let temps = &mut self.builder.block.temps;
            *temps = (*temps).max(index + 1);
            return Ok(Val::temp(index));
        }
        let value = integer(text)
            .ok_or_else(|| format!("`{text}` is neither a slot, nor a temporary, nor a number"))?;
        if self.builder.block.consts.len() >= 0x3fff {
            return Err("too many constants".to_owned());
        }
        Ok(self.builder.constant(value as u64))
    }
}

/// An operation without operands from `name.sub.type.flags`.
fn mnemonic(head: &str) -> Parsed<(Op, Spec)> {
    let mut parts = head.split('.').peekable();
    let name = parts.next().unwrap_or_default();
    let named = |c: &&Code| spec(**c).name == name && !matches!(c, Code::Insn | Code::Label);
    let code = *Code::ALL.iter().find(named).ok_or_else(|| format!("there is no operation `{name}`"))?;
    let spec = spec(code);
    let mut op = BlockBuilder::op(code, Ty::I64);
    let mut choose = |names: &[&str], what: &str| {
        let part = parts.next().ok_or_else(|| format!("{name} lacks its {what}"))?;
        let found = names.iter().position(|n| *n == part);
        found.map(|i| i as u8).ok_or_else(|| format!("`{part}` is no {what} of {name}"))
    };
    let ty = |i: u8| Ty::from_u8(i).unwrap_or(Ty::I64);
    if !spec.sub.names().is_empty() {
        op.sub = choose(spec.sub.names(), "sub-operation")?;
    }
    op.ty = match spec.types.only() {
        Some(only) => only,
        None => ty(choose(TYPES, "type")?),
    };
    if !spec.types.contains(op.ty) {
        return Err(format!("{name} is not defined for this type"));
    }
    if let Some(types) = spec.other {
        let other = choose(TYPES, "second type")?;
        if !types.contains(ty(other)) {
            return Err(format!("{name} is not defined for this second type"));
        }
        op.aux = i32::from(other);
    }
    if spec.lane {
        op.flags = choose(LANES, "lane")?;
    }
    for part in parts {
        let bit = spec.flags.iter().position(|f| *f == part && !f.is_empty());
        op.flags |= 1 << bit.ok_or_else(|| format!("`{part}` is no flag of {name}"))?;
    }
    Ok((op, spec))
}

fn label_index(name: &str) -> Parsed<u32> {
    let index = name.strip_prefix('L').and_then(|n| n.parse().ok()).filter(|&n| n < 0x10000);
    index.ok_or_else(|| format!("`{name}` is not a label"))
}

/// A decimal or hexadecimal number of at most 64 bits, perhaps negative.
pub(crate) fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let magnitude = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(&hex.replace('_', ""), 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { -i128::from(magnitude) } else { i128::from(magnitude) })
}

fn number<T: TryFrom<i128>>(text: &str) -> Parsed<T> {
    let value = integer(text).and_then(|v| T::try_from(v).ok());
    value.ok_or_else(|| format!("`{text}` is not a number, or out of range"))
}
