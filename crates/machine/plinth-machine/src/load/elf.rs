//! ELF programs: kernels, firmware, bare test programs (System V ABI, chapters 4 and 5).

use object::elf::{ET_DYN, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader, Sym};
use object::{Endianness, ReadCache, ReadRef};
use plinth_memory::{Bytes, GuestAddress, GuestRam};

use super::{Content, Placed};

/// Loads the segments at their physical addresses, or those of a position-independent program, whose
/// addresses count from 0, at `base` on.
///
/// # Errors
/// What is wrong with the file, as the rest of a sentence that starts with its name.
pub fn load_elf(content: &Content<'_>, ram: &GuestRam, base: u64) -> Result<Placed, String> {
    match content {
        Content::File { file, .. } => load(&ReadCache::new(*file), content, ram, base),
        Content::Memory(bytes) => load(bytes.as_slice(), content, ram, base),
    }
}

fn broken(e: object::read::Error) -> String {
    format!("is a damaged ELF file: {e}")
}

fn load<'d, R: ReadRef<'d>>(
    data: R,
    content: &Content<'_>,
    ram: &GuestRam,
    base: u64,
) -> Result<Placed, String> {
    let header = FileHeader64::<Endianness>::parse(data).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let mut end = 0;
    let virtual_entry = header.e_entry(endian);
    let segments = header.program_headers(endian, data).map_err(broken)?;
    let loaded = || segments.iter().filter(|s| s.p_type(endian) == PT_LOAD && s.p_memsz(endian) != 0);
    let from_zero = loaded().any(|s| s.p_paddr(endian) == 0);
    let moved = if header.e_type(endian) == ET_DYN && from_zero { base } else { 0 };
    let mut entry = virtual_entry;
    for s in loaded() {
        // An address that wraps is below RAM, and is refused as that.
        let (at, offset) = (s.p_paddr(endian).wrapping_add(moved), s.p_offset(endian));
        let (in_file, in_memory) = (s.p_filesz(endian), s.p_memsz(endian));
        if ram.region(at, in_memory).is_none() {
            return Err(format!(
                "has a segment of {in_memory:#x} bytes for address {at:#x}, which is not within the guest's memory"
            ));
        }
        if in_file > in_memory || offset.checked_add(in_file).is_none_or(|e| e > content.len()) {
            return Err("is a damaged or truncated ELF file".to_owned());
        }
        content.copy_to(ram, at, offset, in_file).map_err(|e| format!("cannot be read: {e}"))?;
        zero(ram, at + in_file, in_memory - in_file)?;
        end = end.max(at + in_memory);
        let from = s.p_vaddr(endian);
        if (from..from.saturating_add(in_memory)).contains(&virtual_entry) {
            entry = at + (virtual_entry - from);
        }
    }
    if end == 0 {
        return Err("is an ELF file with nothing to load".to_owned());
    }
    let tohost = symbol(header, endian, data, b"tohost").map(|at| at.wrapping_add(moved));
    Ok(Placed { entry, end, tohost })
}

fn symbol<'d, R: ReadRef<'d>>(
    header: &FileHeader64<Endianness>,
    endian: Endianness,
    data: R,
    name: &[u8],
) -> Option<u64> {
    // Symbols are a help, not a need: a file with a damaged table still runs.
    let sections = header.sections(endian, data).ok()?;
    let symbols = sections.symbols(endian, data, object::elf::SHT_SYMTAB).ok()?;
    let strings = symbols.strings();
    symbols.iter().find(|s| s.name(endian, strings) == Ok(name)).map(|s| s.st_value(endian))
}

fn zero(ram: &GuestRam, gpa: u64, len: u64) -> Result<(), String> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(ZEROS.len() as u64);
        let at = GuestAddress(gpa + done);
        ram.memory().write_slice(&ZEROS[..n as usize], at).map_err(|e| e.to_string())?;
        done += n;
    }
    Ok(())
}
