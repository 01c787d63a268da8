//! What breaks the IR's rules is refused, and never panics.

use plinth_ir::interp::{PrepareError, Program};
use plinth_ir::{Block, Code, Label, Op, Ty, Val, VerifyError, filetest::LAYOUT, text, verify};

fn parsed(text: &str) -> Block {
    text::parse(text, &LAYOUT).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn verifier_refuses() {
    type Matches = fn(&VerifyError) -> bool;
    let cases: &[(&str, Matches)] = &[
        ("insn 0x0 len 4\nx1 = add.i64 x2, x3", |e| *e == VerifyError::End),
        ("", |e| *e == VerifyError::End),
        ("x1 = load.i64 x2, 0\nexit 0x4", |e| matches!(e, VerifyError::NoInsn { at: 0 })),
        ("insn 0x0 len 4\n%0 = mov.i64 x1\ninsn 0x4 len 4\nx2 = mov.i64 %0\nexit 0x8", |e| {
            matches!(e, VerifyError::Undefined { at: 3, .. })
        }),
        ("insn 0x0 len 4\n%0 = mov.i64 x1\nL0: @0x004\nx2 = mov.i64 %0\nexit 0x8", |e| {
            matches!(e, VerifyError::Undefined { at: 3, .. })
        }),
        ("insn 0x0 len 4\nx2 = mov.i64 %0\nexit 0x8", |e| matches!(e, VerifyError::Undefined { at: 1, .. })),
        ("insn 0x0 len 4\n%0 = mov.i64 1\n%0 = mov.i64 2\nexit 0x8", |e| {
            matches!(e, VerifyError::Redefined { at: 2, .. })
        }),
        ("insn 0x0 len 4\n%0 = vsplat.i8 1\nx1 = mov.i64 %0\nexit 0x8", |e| {
            matches!(e, VerifyError::Class { at: 2, .. })
        }),
        ("insn 0x0 len 4\nx1 = vsplat.i8 1\nexit 0x8", |e| matches!(e, VerifyError::Class { at: 1, .. })),
        ("insn 0x0 len 4\nv0 = vbin.add.i8 v0, 5\nexit 0x8", |e| {
            matches!(e, VerifyError::Class { at: 1, .. })
        }),
        ("insn 0x0 len 4\nx1 = vextract.i8 v0, 16\nexit 0x8", |e| {
            matches!(e, VerifyError::Fields { at: 1, .. })
        }),
        ("insn 0x0 len 4\nx1 = shladd.i64 x1, 4, x2\nexit 0x8", |e| matches!(e, VerifyError::Fields { .. })),
        ("insn 0x1000 len 4\nexit 0x8", |e| matches!(e, VerifyError::Fields { at: 0, .. })),
        ("insn 0x0 len 0\nexit 0x8", |e| matches!(e, VerifyError::Fields { at: 0, .. })),
        ("insn 0x0 len 4\nL0: @local\njmp L0", |e| matches!(e, VerifyError::Label { at: 2, .. })),
        ("label L0 @local\ninsn 0x0 len 4\njmp L0", |e| *e == VerifyError::Unbound { label: 0 }),
        ("insn 0x0 len 4\nx1 = add.i64 -, x2\nexit 0x8", |e| matches!(e, VerifyError::Operand { at: 1, .. })),
    ];
    for (text, matches) in cases {
        let error = verify(&parsed(text), &LAYOUT).expect_err(text);
        assert!(matches(&error), "{text}\n{error:?}");
    }
}

#[test]
fn verifier_refuses_what_text_cannot_say() {
    let good = parsed("insn 0x0 len 4\nx1 = add.i64 x2, 5\njmp L0\nL0: @0x004\nexit 0x8");
    verify(&good, &LAYOUT).unwrap();
    let broken = |change: &dyn Fn(&mut Block)| {
        let mut block = good.clone();
        change(&mut block);
        verify(&block, &LAYOUT).unwrap_err()
    };
    assert!(matches!(broken(&|b| b.ops[1].ty = Ty::F32), VerifyError::Type { at: 1, .. }));
    assert!(matches!(broken(&|b| b.ops[1].sub = 1), VerifyError::Fields { at: 1, .. }));
    assert!(matches!(broken(&|b| b.ops[1].flags = 1), VerifyError::Fields { at: 1, .. }));
    assert!(matches!(broken(&|b| b.ops[1].c = Val::slot(0)), VerifyError::Operand { at: 1, .. }));
    assert!(matches!(broken(&|b| b.ops[1].dst = Val::NONE), VerifyError::Operand { at: 1, .. }));
    assert!(matches!(broken(&|b| b.ops[1].a = Val::slot(9999)), VerifyError::Operand { at: 1, .. }));
    assert!(matches!(broken(&|b| b.consts.clear()), VerifyError::Operand { at: 1, .. }));
    assert!(matches!(broken(&|b| b.ops[2].aux = 1), VerifyError::Label { at: 2, label: 1 }));
    assert!(matches!(broken(&|b| b.labels[0].op = None), VerifyError::Label { at: 3, .. }));
    let unbound = |b: &mut Block| b.labels.push(Label { pc: 8, op: Some(0) });
    assert!(matches!(broken(&unbound), VerifyError::Unbound { label: 1 }));
    assert!(matches!(broken(&|b| b.insns = 2), VerifyError::Insns { says: 2, are: 1 }));
}

#[test]
fn text_errors_name_the_line() {
    for (text, line, part) in [
        ("block 0 len 4\nx1 = nothing.i64 x2", 2, "nothing"),
        ("x1 = add.i64 x2, x99", 1, "x99"),
        ("x1 = add.i64 x2", 1, "too few"),
        ("x1 = add.i64 x2, x3, x4", 1, "at most"),
        ("x1 = add x2, x3", 1, "lacks its type"),
        ("x1 = add.f32 x2, x3", 1, "not defined for this type"),
        ("x1 = load.i32.xs x2, 0", 1, "xs"),
        ("add.i64 x2, x3", 1, "destination"),
        ("5 = add.i64 x2, x3", 1, "destination"),
        ("jmp 5", 1, "not a label"),
        ("jmp L0\n", 1, "L0 is not defined"),
        ("L0: @0\nL0: @4", 2, "twice"),
        ("x1 = mov.i64 0x1_0000_0000_0000_0000", 1, "neither"),
        ("x1 = mov.i64 %70000", 1, "neither"),
    ] {
        let error = text::parse(text, &LAYOUT).expect_err(text);
        assert_eq!(error.line, line, "{error}");
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn too_many_temporaries_are_refused() {
    let mut text = "insn 0x0 len 4\n".to_owned();
    for i in 0..1100 {
        text.push_str(&format!("%{i} = mov.i64 {i}\n"));
    }
    text.push_str("exit 0x4");
    let error = Program::new(&parsed(&text), &LAYOUT).unwrap_err();
    assert!(matches!(error, PrepareError::Temps(_)), "{error}");
}

/// Blocks of random bytes: what the verifier accepts can be prepared; nothing panics.
#[test]
fn random_blocks_do_not_panic() {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut accepted = 0;
    for _ in 0..200_000 {
        let mut block = Block { consts: vec![0, 1, 2], temps: 4, ..Block::default() };
        block.labels = vec![Label { pc: 8, op: None }, Label { pc: 9, op: None }];
        for at in 0..1 + u32::from(next() % 4 == 0) {
            let mut val = || match next() % 8 {
                0 => Val(next() as u16),
                1 => Val::temp(next() as u16 % 5),
                2 | 3 => Val::constant(next() as u16 % 4),
                4 => Val::slot(next() as u16 % 40),
                _ => Val::NONE,
            };
            let (dst, a, b, c) = (val(), val(), val(), val());
            let code = Code::ALL[next() as usize % Code::ALL.len()];
            let ty = Ty::ALL[next() as usize % Ty::ALL.len()];
            let small = (next() % 8).saturating_sub(4) as u8;
            let aux = (next() % 12) as i32 - 6;
            let op =
                Op { code, ty, sub: small, flags: 0, dst, a, b, c, aux: aux.max(-1) + i32::from(aux < 0) };
            block.insns += u32::from(code == Code::Insn);
            if code == Code::Label && next() % 4 != 0 {
                block.labels[0].op = Some(at);
            }
            block.ops.push(op);
        }
        let exit = Op {
            code: Code::Exit,
            ty: Ty::I64,
            sub: 0,
            flags: 0,
            aux: 0,
            dst: Val::NONE,
            a: Val::NONE,
            b: Val::NONE,
            c: Val::NONE,
        };
        block.ops.push(exit);
        let verified = verify(&block, &LAYOUT);
        let prepared = Program::new(&block, &LAYOUT);
        let shown = block.display(&LAYOUT).to_string();
        if verified.is_ok() {
            accepted += 1;
            assert!(prepared.is_ok(), "{shown}");
            assert_eq!(text::parse(&shown, &LAYOUT).unwrap().ops.len(), block.ops.len(), "{shown}");
        }
    }
    assert!(accepted > 100, "only {accepted} random blocks are well-formed");
}
