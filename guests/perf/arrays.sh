/perf/arrays padded 1 > /dev/null
measure padded /perf/arrays padded "$arg"
measure conflict /perf/arrays conflict "$arg"
