# The three seeds of CoreMark's performance run, and the number of iterations.
measure coremark /perf/coremark 0x0 0x0 0x66 "$arg"
