//! Accesses to PCI configuration space and BARs.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_pci::fuzz_pci_config(data));
