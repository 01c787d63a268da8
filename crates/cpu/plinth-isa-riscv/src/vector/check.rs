//! Which vector instructions are legal: reserved encodings raise the illegal-instruction exception (3.4, 5.2,
//! 5.3).

use std::sync::atomic::{AtomicU64, Ordering};

use super::config::Config;
use super::sem::{FloatForm, Form, Memory, Number, Slide, VectorSem};

/// An operand: registers from `reg` on.
#[derive(Clone, Copy)]
struct Group {
    reg: u32,
    /// Binary logarithm of the element's bits; 0 for masks.
    eew: i32,
    /// Binary logarithm of the group's registers.
    emul: i32,
    /// How many groups there are.
    fields: u32,
}

impl Group {
    const fn new(reg: u32, eew: i32, emul: i32) -> Self {
        Self { reg, eew, emul, fields: 1 }
    }

    /// A mask, which is one register.
    const fn mask(reg: u32) -> Self {
        Self::new(reg, 0, 0)
    }

    /// Registers of all fields.
    const fn count(self) -> u32 {
        self.fields << if self.emul > 0 { self.emul } else { 0 }
    }

    fn is_valid(self) -> bool {
        let known = self.eew == 0 || (3..=6).contains(&self.eew);
        if !known || !(-3..=3).contains(&self.emul) {
            return false;
        }
        let aligned = self.reg.is_multiple_of(1 << self.emul.max(0));
        aligned && (self.fields == 1 || (self.count() <= 8 && self.reg + self.count() <= 32))
    }

    const fn overlaps(self, other: Group) -> bool {
        self.reg < other.reg + other.count() && other.reg < self.reg + self.count()
    }

    /// `self` may be written while `source` is read (5.2).
    const fn may_overlap(self, source: Group) -> bool {
        if self.eew == source.eew {
            true
        } else if self.eew < source.eew {
            self.reg == source.reg
        } else {
            source.emul >= 0 && self.reg + self.count() == source.reg + source.count()
        }
    }
}

/// Instructions that were found to be legal: their bits, `vtype`, and whether they start at 0. What is legal
/// is always that, so threads need no order among them.
static LEGAL: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// As [`is_legal`], quicker for what was asked before.
pub(super) fn is_legal_again(sem: VectorSem, bits: u32, config: Config) -> bool {
    const USED: u64 = 1 << 63;
    let started = u64::from(config.vstart() != 0) << 41 | u64::from(config.is_ill()) << 40;
    let key = USED | started | (config.vtype() & 0xff) << 32 | u64::from(bits);
    let entry = &LEGAL[(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize];
    if entry.load(Ordering::Relaxed) == key {
        return true;
    }
    let legal = is_legal(sem, bits, config);
    if legal {
        entry.store(key, Ordering::Relaxed);
    }
    legal
}

/// What an instruction reads and writes.
#[derive(Default)]
struct Shape {
    dst: Option<Group>,
    sources: [Option<Group>; 2],
    /// vd is read too.
    reads_dst: bool,
    /// The destination must not overlap any source at all.
    apart: bool,
    /// The destination may be the mask.
    dst_may_be_mask: bool,
    /// `vstart` must be 0.
    from_zero: bool,
    /// Elements of 8 bits are no floats.
    float: Option<i32>,
}

/// True if instruction `bits`, which is `sem`, is legal in the state `config`, given that the unit is on.
/// What depends on `frm` and `mstatus` is left out.
#[must_use]
pub fn is_legal(sem: VectorSem, bits: u32, config: Config) -> bool {
    let (vd, fields) = (bits >> 7 & 31, (bits >> 29) + 1);
    match sem {
        VectorSem::SetVl => return true,
        VectorSem::Load(Memory::Whole, _) | VectorSem::Store(Memory::Whole, _) => {
            return vd.is_multiple_of(fields);
        }
        _ if config.is_ill() => return false,
        _ => {}
    }
    shape(sem, bits, config).is_some_and(|shape| shape.is_legal(bits, config))
}

impl Shape {
    fn is_legal(&self, bits: u32, config: Config) -> bool {
        let masked = bits >> 25 & 1 == 0;
        let mask = masked.then_some(Group::mask(0));
        let own = if self.reads_dst { self.dst } else { None };
        let sources = [self.sources[0], self.sources[1], own, mask];
        let mut all = sources.into_iter().chain([self.dst]).flatten();
        if !all.all(Group::is_valid) || self.float.is_some_and(|eew| !(4..=6).contains(&eew)) {
            return false;
        }
        if self.from_zero && config.vstart() != 0 {
            return false;
        }
        // No register is read with two widths.
        for (i, a) in sources.into_iter().enumerate() {
            for b in sources.into_iter().skip(i + 1) {
                if let (Some(a), Some(b)) = (a, b)
                    && a.eew != b.eew
                    && a.overlaps(b)
                {
                    return false;
                }
            }
        }
        let Some(dst) = self.dst else { return true };
        if masked && !self.dst_may_be_mask && dst.overlaps(Group::mask(0)) {
            return false;
        }
        let clashes = |s: Group| dst.overlaps(s) && (self.apart || !dst.may_overlap(s));
        !self.sources.into_iter().flatten().any(clashes)
    }
}

/// The operands of an instruction; `None` if it has none that could be legal.
fn shape(sem: VectorSem, bits: u32, config: Config) -> Option<Shape> {
    use VectorSem::*;
    let (vd, vs1, vs2) = (bits >> 7 & 31, bits >> 15 & 31, bits >> 20 & 31);
    let (sew, lmul) = (config.sew(), config.lmul());
    let same = |reg| Group::new(reg, sew, lmul);
    let wide = |reg| Group::new(reg, sew + 1, lmul + 1);
    let one = |reg, eew| Group::new(reg, eew, 0);
    // Only OPIVV, OPFVV and OPMVV have a vector in the place of vs1.
    let has_vs1 = bits >> 12 & 7 < 3;
    let b = |group: Group| has_vs1.then_some(group);
    let is_float = matches!(bits >> 12 & 7, 1 | 5);
    let elements = Shape {
        dst: Some(same(vd)),
        sources: [Some(same(vs2)), b(same(vs1))],
        float: is_float.then_some(sew),
        ..Shape::default()
    };
    let to_mask = Shape { dst: Some(Group::mask(vd)), dst_may_be_mask: true, ..elements };
    Some(match sem {
        SetVl => return None,
        Load(kind, eew) => memory(kind, i32::from(eew) + 3, bits, config, false),
        Store(kind, eew) => memory(kind, i32::from(eew) + 3, bits, config, true),
        Integer(op, form) => {
            let reads_dst = op.reads_vd();
            match form {
                Form::Same => Shape { reads_dst, ..elements },
                Form::Widen(..) => Shape { dst: Some(wide(vd)), reads_dst, ..elements },
                Form::WidenRight(_) => widen_right(elements, wide(vd), wide(vs2)),
                Form::Narrow => narrow(elements, wide(vs2)),
            }
        }
        Float(_, form) => match form {
            FloatForm::Same | FloatForm::Reverse => elements,
            FloatForm::Widen => Shape { dst: Some(wide(vd)), ..elements },
            FloatForm::WidenRight => widen_right(elements, wide(vd), wide(vs2)),
            FloatForm::Narrow => narrow(elements, wide(vs2)),
        },
        MulAdd { wide: is_wide, .. } => {
            let dst = if is_wide { wide(vd) } else { same(vd) };
            Shape { dst: Some(dst), reads_dst: true, ..elements }
        }
        Carry { .. } | SignInject(_) => elements,
        Merge => elements,
        Move => Shape { sources: [None, elements.sources[1]], ..elements },
        CarryOut { .. } | Compare(_) | FloatCompare { .. } => to_mask,
        Reduce(_, sign) => reduction(elements, vs1, sew + i32::from(sign.is_some())),
        FloatReduce(_, is_wide) => reduction(elements, vs1, sew + i32::from(is_wide)),
        Mask(_) | Count | Find | Prefix(_) | Iota => of_masks(sem, bits, elements),
        Index => Shape { sources: [None; 2], ..elements },
        Extend(by, _) => {
            let by = i32::from(by);
            if sew - by < 3 {
                return None;
            }
            Shape { sources: [Some(Group::new(vs2, sew - by, lmul - by)), None], ..elements }
        }
        Slide(slide) => {
            let apart = matches!(slide, self::Slide::Up | self::Slide::OneUp);
            Shape { sources: [Some(same(vs2)), None], apart, ..elements }
        }
        Gather => Shape { apart: true, ..elements },
        Gather16 => {
            let indices = Group::new(vs1, 4, 4 - sew + lmul);
            Shape { sources: [Some(same(vs2)), Some(indices)], apart: true, ..elements }
        }
        Compress => Shape {
            sources: [Some(same(vs2)), Some(Group::mask(vs1))],
            apart: true,
            from_zero: true,
            ..elements
        },
        FirstToX | FirstToF => Shape { dst: None, sources: [Some(one(vs2, sew)), None], ..elements },
        FirstFrom => Shape { dst: Some(one(vd, sew)), sources: [None; 2], ..elements },
        MoveWhole(n) => {
            let emul = u32::from(n).trailing_zeros() as i32;
            Shape {
                dst: Some(Group::new(vd, sew, emul)),
                sources: [Some(Group::new(vs2, sew, emul)), None],
                ..Shape::default()
            }
        }
        Convert(to, from, form, _) => {
            let sources = [Some(same(vs2)), None];
            let (shape, dst, src) = match form {
                FloatForm::Widen => (Shape { dst: Some(wide(vd)), sources, ..elements }, sew + 1, sew),
                FloatForm::Narrow => (Shape { sources: [Some(wide(vs2)), None], ..elements }, sew, sew + 1),
                _ => (Shape { sources, ..elements }, sew, sew),
            };
            // The narrower float counts: the other one is a float then, or an integer.
            let float = match (to, from) {
                (Number::Float, Number::Float) => dst.min(src),
                (Number::Float, _) => dst,
                _ => src,
            };
            Shape { float: Some(float), ..shape }
        }
        SquareRoot | Estimate { .. } | Classify => Shape { sources: [Some(same(vs2)), None], ..elements },
    })
}

/// Instructions that read masks.
fn of_masks(sem: VectorSem, bits: u32, elements: Shape) -> Shape {
    use VectorSem::*;
    let (vd, vs1, vs2) = (bits >> 7 & 31, bits >> 15 & 31, bits >> 20 & 31);
    let source = Some(Group::mask(vs2));
    let one = Shape { sources: [source, None], from_zero: true, ..Shape::default() };
    match sem {
        Mask(_) => Shape {
            dst: Some(Group::mask(vd)),
            sources: [source, Some(Group::mask(vs1))],
            ..Shape::default()
        },
        Prefix(_) => Shape { dst: Some(Group::mask(vd)), apart: true, ..one },
        Iota => Shape { dst: elements.dst, apart: true, ..one },
        // The count and the index go to an integer register.
        _ => one,
    }
}

fn widen_right(elements: Shape, dst: Group, a: Group) -> Shape {
    Shape { dst: Some(dst), sources: [Some(a), elements.sources[1]], ..elements }
}

fn narrow(elements: Shape, a: Group) -> Shape {
    Shape { sources: [Some(a), elements.sources[1]], ..elements }
}

/// Reductions: vs1 and vd are scalars in the first element of one register, and vd may overlap anything (14).
fn reduction(elements: Shape, vs1: u32, eew: i32) -> Shape {
    let scalar = Group::new(vs1, eew, 0);
    Shape { dst: None, sources: [elements.sources[0], Some(scalar)], from_zero: true, ..elements }
}

fn memory(kind: Memory, eew: i32, bits: u32, config: Config, is_store: bool) -> Shape {
    let (vd, vs2, fields) = (bits >> 7 & 31, bits >> 20 & 31, (bits >> 29) + 1);
    let emul = eew - config.sew() + config.lmul();
    let data = match kind {
        Memory::Mask => Group::mask(vd),
        Memory::Indexed => Group { fields, ..Group::new(vd, config.sew(), config.lmul()) },
        _ => Group { fields, ..Group::new(vd, eew, emul) },
    };
    let index = (kind == Memory::Indexed).then_some(Group::new(vs2, eew, emul));
    if is_store {
        return Shape { sources: [Some(data), index], ..Shape::default() };
    }
    // Fields of a segment are written while indices of later ones are read.
    Shape { dst: Some(data), sources: [index, None], apart: fields > 1, ..Shape::default() }
}
