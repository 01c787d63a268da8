measure sequential /perf/reads sequential /dev/vda "$arg"
measure random /perf/reads random /dev/vda "$arg"
