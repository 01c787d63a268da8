//! From IR to host machine code.
