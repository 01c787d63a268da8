//! The debug console (12).

use plinth_ir::Cpu;

use super::{Call, Error, Result};

/// Bytes that one call moves at most; the caller asks again for the rest.
const MAX_BYTES: u64 = 1024;

pub(super) fn call(cpu: &mut Cpu<'_>, call: &Call) -> Result {
    let [first, low, high, ..] = call.args;
    match call.function {
        0 => write(cpu, first.min(MAX_BYTES), address(low, high)?),
        1 => read(cpu, first.min(MAX_BYTES), address(low, high)?),
        2 => {
            let taken = cpu.env.platform().console_write(&[first as u8]);
            if taken == 1 { Ok(0) } else { Err(Error::Failed) }
        }
        _ => Err(Error::NotSupported),
    }
}

/// A physical address in two registers' worth of bits.
fn address(low: u64, high: u64) -> std::result::Result<u64, Error> {
    if high == 0 { Ok(low) } else { Err(Error::InvalidParam) }
}

/// `sbi_debug_console_write`.
fn write(cpu: &mut Cpu<'_>, count: u64, at: u64) -> Result {
    let mut data = Vec::with_capacity(count as usize);
    for i in 0..count {
        let byte = at.checked_add(i).and_then(|a| cpu.env.read_phys(a, 1).ok());
        data.push(byte.ok_or(Error::InvalidParam)? as u8);
    }
    Ok(cpu.env.platform().console_write(&data).min(data.len()) as u64)
}

/// `sbi_debug_console_read`.
fn read(cpu: &mut Cpu<'_>, count: u64, at: u64) -> Result {
    // Bytes that cannot be stored would be lost: see first that they can.
    for i in [0, count.saturating_sub(1)] {
        let is_there = at.checked_add(i).is_some_and(|a| cpu.env.read_phys(a, 1).is_ok());
        if !is_there {
            return Err(Error::InvalidParam);
        }
    }
    let mut data = vec![0; count as usize];
    let got = cpu.env.platform().console_read(&mut data).min(data.len());
    for (byte, a) in data[..got].iter().zip(at..) {
        cpu.env.write_phys(a, 1, u64::from(*byte)).map_err(|_| Error::InvalidParam)?;
    }
    Ok(got as u64)
}
