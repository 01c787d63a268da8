//! The boards there are.

mod riscv_virt;

use crate::board::Board;
use crate::isa::Isa;
use crate::tree::Tree;

/// All boards; the first of an instruction set is its default.
pub static ALL: [&Board; 2] = [&riscv_virt::BOARD, &riscv_virt::BOARD_AIA];

/// The default board for guests of an instruction set.
#[must_use]
pub fn for_isa(isa: &Isa) -> Option<&'static Board> {
    ALL.iter().copied().find(|b| b.isa == isa)
}

/// The board of this name for guests of an instruction set.
#[must_use]
pub fn named(isa: &Isa, name: &str) -> Option<&'static Board> {
    ALL.iter().copied().find(|b| b.isa == isa && b.name == name)
}

/// Label of the interrupt controller inside CPU `index`.
#[must_use]
pub(crate) fn cpu_controller(index: usize) -> String {
    format!("cpu{index}-intc")
}

/// Cells of an `interrupts-extended` that drives `lines` of each CPU.
pub(crate) fn cpu_interrupts(tree: &mut Tree, cpus: usize, lines: &[u32]) -> Vec<u32> {
    let mut cells = Vec::with_capacity(cpus * lines.len() * 2);
    for cpu in 0..cpus {
        let handle = tree.handle(&cpu_controller(cpu));
        cells.extend(lines.iter().flat_map(|&line| [handle, line]));
    }
    cells
}
