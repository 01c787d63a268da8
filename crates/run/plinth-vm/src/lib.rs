//! The life of one virtual machine.
