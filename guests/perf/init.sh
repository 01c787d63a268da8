#!/bin/busybox sh
# The first program of the guest that `cargo xtask perf` measures: runs the job that the kernel's command
# line names and powers off. The marker comes before anything else: the boot figure ends there.
echo PLINTH-INIT-OK
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
	insmod "/modules/$module.ko" 2>/dev/null
done < /modules/order

for word in $(cat /proc/cmdline); do
	case $word in
	perf.job=*) job=${word#perf.job=} ;;
	perf.arg=*) arg=${word#perf.arg=} ;;
	esac
done

# Runs a command between two markers; what it printed goes to the console only if it failed. The
# checksum lets the host compare the results of the emulators.
measure() {
	name=$1
	shift
	echo "PERF-BEGIN $name"
	"$@" > /tmp/out 2>&1
	status=$?
	echo "PERF-END $name $status"
	echo "PERF-SUM $name $(cksum < /tmp/out)"
	[ $status = 0 ] || tail -n 20 /tmp/out
}

# Tells the number that a measured program gave.
value() {
	echo "PERF-VALUE $1 $2"
}

# Makes the Debian file system on the first disk usable as /mnt.
debian() {
	mount -t ext4 -o ro,noload /dev/vda /mnt || return
	mount -t proc proc /mnt/proc
	mount -t devtmpfs dev /mnt/dev
	mount -t tmpfs tmp /mnt/tmp
}

. "/perf/$job.sh"
echo PERF-DONE
poweroff -f
