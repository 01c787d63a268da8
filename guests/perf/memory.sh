# The host reads the memory of the process while the guest sleeps.
echo PERF-IDLE
sleep 20
