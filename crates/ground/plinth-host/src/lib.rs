//! The host's system calls that the engine needs: memory maps, event counters, futexes.
