//! Putting a guest into RAM: firmware, kernel, initrd, device tree.

use std::fs::File;
use std::path::{Path, PathBuf};

use plinth_memory::{Bytes, GuestAddress};
use plinth_vcpu::StartState;

use crate::board::Board;
use crate::load::{Compression, Content, HEAD, Kind, Placed, identify, load_elf};
use crate::{Error, Machine};

/// Alignment of kernels, initrds and the device tree's area.
const ALIGN: u64 = 0x20_0000;
/// Bytes at the end of RAM for the device tree and what firmware is told.
const TREE_AREA: u64 = ALIGN;
/// Bytes of that area's end for what firmware is told of the next stage.
const NEXT_STAGE_AREA: u64 = 0x1000;
/// Guests that know 32-bit pointers find the device tree below this.
const LOW_END: u64 = 1 << 32;

/// A file that a guest boots from. It stays open, so that a guest's reboot finds the same contents.
#[derive(Debug)]
pub struct BootFile {
    path: PathBuf,
    file: File,
    what: &'static str,
}

impl BootFile {
    /// Opens a file; `what` is `kernel`, `initrd` or `firmware`, for messages.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Read { what, path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, what })
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Read { what: self.what, path: self.path.clone(), source }
    }

    fn format(&self, why: impl Into<String>) -> Error {
        Error::Format { what: self.what, path: self.path.clone(), why: why.into() }
    }

    fn wrong_isa(&self, found: impl Into<String>, board: &Board) -> Error {
        let (what, path) = (self.what, self.path.clone());
        Error::WrongIsa { what, path, found: found.into(), wanted: board.isa.name }
    }

    fn content(&self) -> Result<Content<'_>, Error> {
        Content::of_file(&self.file).map_err(|e| self.failed(e))
    }
}

/// What a guest boots from.
#[derive(Debug, Default)]
pub struct BootSources {
    /// Firmware, at the start of RAM. Without it the vCPUs' built-in firmware serves.
    pub firmware: Option<BootFile>,
    /// Kernel, or with firmware any next stage.
    pub kernel: Option<BootFile>,
    /// Initial RAM disk.
    pub initrd: Option<BootFile>,
    /// Kernel command line.
    pub append: String,
}

impl BootSources {
    /// Looks at the files' first bytes: whether `board` can boot from them at all. Cheap, and early.
    ///
    /// # Errors
    /// A file cannot be read or is for another instruction set.
    pub fn check(&self, board: &Board) -> Result<(), Error> {
        if self.firmware.is_some() && !board.takes_firmware {
            return Err(Error::NoFirmware(board.name));
        }
        for file in [&self.firmware, &self.kernel].into_iter().flatten() {
            let head = file.content()?.head(HEAD).map_err(|e| file.failed(e))?;
            match identify(&head) {
                Kind::Elf { isa: Some(isa), .. } | Kind::Image(isa, _) if isa == board.isa => {}
                Kind::Elf { isa: Some(isa), .. } | Kind::Image(isa, _) => {
                    return Err(file.wrong_isa(isa.name, board));
                }
                Kind::Elf { isa: None, machine } => {
                    return Err(file.wrong_isa(unknown_machine(machine), board));
                }
                Kind::OtherKernel(name) => return Err(file.wrong_isa(name, board)),
                Kind::Compressed(_) | Kind::Zboot { .. } | Kind::Unknown => {}
            }
        }
        if let Some(initrd) = &self.initrd {
            initrd.content()?;
        }
        Ok(())
    }
}

fn unknown_machine(machine: u16) -> String {
    format!("another machine (ELF number {machine})")
}

/// What the board's start function is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// Address of the first instruction.
    pub pc: u64,
    /// Address of the device tree.
    pub fdt: u64,
    /// Firmware was given, and starts first.
    pub firmware: bool,
    /// Address of what the firmware is told of the next stage.
    pub next_stage: Option<u64>,
}

/// A guest in RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// By vCPU index, what each starts with; `None` waits for the guest to start it.
    pub starts: Vec<Option<StartState>>,
    /// Address of the `tohost` word of a bare test program.
    pub tohost: Option<u64>,
}

/// Free stretch of RAM that files are placed in.
struct Room {
    start: u64,
    end: u64,
}

impl Room {
    fn check(&self, what: &'static str, at: u64, needed: u64) -> Result<u64, Error> {
        match at.checked_add(needed) {
            Some(end) if at >= self.start && end <= self.end => Ok(end),
            _ => Err(Error::NoRoom { what, at, needed, end: self.end }),
        }
    }
}

fn align_up(v: u64) -> u64 {
    v.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
}

impl Machine {
    /// Loads a guest. Can be called again after [`Machine::reset`].
    ///
    /// # Errors
    /// A file cannot be read, is for another instruction set, is damaged, or does not fit.
    pub fn load(&self, sources: &BootSources, vcpus: u32) -> Result<Loaded, Error> {
        let board = self.board();
        sources.check(board)?;
        let ram_end = board.ram_start + self.ram().size();
        let tree_at = (ram_end.min(LOW_END).saturating_sub(TREE_AREA)) & !(ALIGN - 1);
        let mut room = Room { start: board.ram_start, end: tree_at.max(board.ram_start) };
        let firmware = sources.firmware.as_ref().map(|f| self.load_firmware(f, &room)).transpose()?;
        if let Some(f) = &firmware {
            room.start = align_up(f.end);
        }
        let kernel = match &sources.kernel {
            Some(k) => Some(self.load_kernel(k, &room, firmware.is_some())?),
            None => None,
        };
        // The tree area is at the end of low memory; above it, and with memory above 4 GiB, nothing is placed.
        let after = kernel.map_or(room.start, |k| k.end);
        let initrd = match &sources.initrd {
            Some(i) => Some(self.load_initrd(i, &Room { start: after, ..room })?),
            None => None,
        };
        let pc = firmware.or(kernel).map_or(board.ram_start, |p| p.entry);
        let next_stage = match (&firmware, kernel) {
            (Some(_), Some(k)) => Some(self.write_next_stage(tree_at, k.entry)?),
            _ => None,
        };
        self.write_tree(tree_at, sources, initrd)?;
        let entry = BootEntry { pc, fdt: tree_at, firmware: firmware.is_some(), next_stage };
        let starts = (0..vcpus).map(|index| (board.start)(&entry, index)).collect();
        Ok(Loaded { starts, tohost: firmware.or(kernel).and_then(|p| p.tohost) })
    }

    fn load_firmware(&self, file: &BootFile, room: &Room) -> Result<Placed, Error> {
        let board = self.board();
        let content = file.content()?;
        match identify(&content.head(HEAD).map_err(|e| file.failed(e))?) {
            Kind::Elf { isa, machine } => self.load_elf(file, &content, isa, machine, room),
            Kind::Image(isa, _) if isa != board.isa => Err(file.wrong_isa(isa.name, board)),
            Kind::Image(..) | Kind::Zboot { .. } | Kind::Compressed(_) => {
                Err(file.format("is a kernel or a compressed file, not firmware"))
            }
            Kind::OtherKernel(name) => Err(file.wrong_isa(name, board)),
            Kind::Unknown => self.load_raw(file, &content, board.ram_start, room),
        }
    }

    fn load_kernel(&self, file: &BootFile, room: &Room, firmware: bool) -> Result<Placed, Error> {
        let content = file.content()?;
        let kind = identify(&content.head(HEAD).map_err(|e| file.failed(e))?);
        let limit = self.ram().size();
        let unpack = |how: Compression, offset, len| {
            let unpacked = content.unpack(how, offset, len, limit);
            unpacked.map(Content::Memory).map_err(|e| file.format(format!("cannot be unpacked: {e}")))
        };
        let unpacked = match kind {
            Kind::Compressed(how) => unpack(how, 0, content.len())?,
            Kind::Zboot { offset, len, compression: Some(how) } => unpack(how, offset, len)?,
            Kind::Zboot { compression: None, .. } => {
                return Err(file.format("is compressed with a method other than gzip and zstd"));
            }
            kind => return self.load_plain_kernel(file, &content, kind, room, firmware),
        };
        let kind = identify(&unpacked.head(HEAD).map_err(|e| file.failed(e))?);
        self.load_plain_kernel(file, &unpacked, kind, room, firmware)
    }

    fn load_plain_kernel(
        &self,
        file: &BootFile,
        content: &Content<'_>,
        kind: Kind,
        room: &Room,
        firmware: bool,
    ) -> Result<Placed, Error> {
        let board = self.board();
        match kind {
            Kind::Elf { isa, machine } => self.load_elf(file, content, isa, machine, room),
            Kind::Image(isa, _) if isa != board.isa => Err(file.wrong_isa(isa.name, board)),
            Kind::Image(_, header) if header.big_endian => Err(file.format("is a big-endian kernel")),
            Kind::Image(_, header) => {
                let wanted = board.ram_start.saturating_add(header.text_offset);
                let at = align_up(wanted.max(room.start));
                let len = content.len();
                let end = room.check("the kernel", at, header.image_size.max(len))?;
                content.copy_to(self.ram(), at, 0, len).map_err(|e| file.failed(e))?;
                Ok(Placed { entry: at, end, tohost: None })
            }
            Kind::OtherKernel(name) => Err(file.wrong_isa(name, board)),
            Kind::Unknown if firmware => self.load_raw(file, content, room.start, room),
            Kind::Unknown | Kind::Compressed(_) | Kind::Zboot { .. } => {
                Err(file.format("is not a Linux kernel image or an ELF program"))
            }
        }
    }

    fn load_elf(
        &self,
        file: &BootFile,
        content: &Content<'_>,
        isa: Option<&'static crate::isa::Isa>,
        machine: u16,
        room: &Room,
    ) -> Result<Placed, Error> {
        let board = self.board();
        match isa {
            Some(isa) if isa == board.isa => {
                let placed = load_elf(content, self.ram(), room.start).map_err(|why| file.format(why))?;
                // Its addresses are its own choice; only the device tree's area must stay free.
                room.check(file.what, room.start, placed.end.saturating_sub(room.start))?;
                Ok(placed)
            }
            Some(isa) => Err(file.wrong_isa(isa.name, board)),
            None => Err(file.wrong_isa(unknown_machine(machine), board)),
        }
    }

    fn load_raw(
        &self,
        file: &BootFile,
        content: &Content<'_>,
        at: u64,
        room: &Room,
    ) -> Result<Placed, Error> {
        if content.len() == 0 {
            return Err(file.format("is empty"));
        }
        let end = room.check(file.what, at, content.len())?;
        content.copy_to(self.ram(), at, 0, content.len()).map_err(|e| file.failed(e))?;
        Ok(Placed { entry: at, end, tohost: None })
    }

    /// Halfway into memory, at most 512 MiB in, clear of what firmware and kernel do behind themselves;
    /// right behind the kernel where memory is short. Returns start and end.
    fn load_initrd(&self, file: &BootFile, room: &Room) -> Result<(u64, u64), Error> {
        let content = file.content()?;
        let len = content.len();
        let middle = self.board().ram_start + (self.ram().size() / 2).min(512 << 20);
        let behind = align_up(room.start);
        let at = [middle.max(behind), behind]
            .into_iter()
            .find(|&at| room.check("the initrd", at, len).is_ok())
            .unwrap_or(behind);
        let end = room.check("the initrd", at, len)?;
        content.copy_to(self.ram(), at, 0, len).map_err(|e| file.failed(e))?;
        Ok((at, end))
    }

    fn write_next_stage(&self, tree_at: u64, next: u64) -> Result<u64, Error> {
        let at = tree_at + TREE_AREA - NEXT_STAGE_AREA;
        self.write_area("what firmware is told", at, NEXT_STAGE_AREA, &(self.board().next_stage)(next))?;
        Ok(at)
    }

    fn write_tree(&self, at: u64, sources: &BootSources, initrd: Option<(u64, u64)>) -> Result<(), Error> {
        let mut seed = [0; 40];
        getrandom::fill(&mut seed).map_err(Error::Random)?;
        let blob = self.device_tree(|t| {
            t.text("bootargs", &sources.append)?;
            if let Some((start, end)) = initrd {
                t.wide("linux,initrd-start", &[start])?;
                t.wide("linux,initrd-end", &[end])?;
            }
            t.bytes("kaslr-seed", &seed[..8])?;
            t.bytes("rng-seed", &seed[8..])
        })?;
        self.write_area("the device tree", at, TREE_AREA - NEXT_STAGE_AREA, &blob)
    }

    fn write_area(&self, what: &'static str, at: u64, room: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = self.board().ram_start + self.ram().size();
        let needed = bytes.len() as u64;
        if needed > room {
            return Err(Error::NoRoom { what, at, needed, end });
        }
        self.ram().memory().write_slice(bytes, GuestAddress(at)).map_err(|_| Error::NoRoom {
            what,
            at,
            needed,
            end,
        })
    }
}
