//! The translating CPU engine.
#![allow(unsafe_code)]
#![allow(dead_code)]
mod control;
mod frame;
mod tlb;
