//! From IR to x86-64 host code.

#![allow(unsafe_code)] // Runs code that it has written.

pub mod frame;
