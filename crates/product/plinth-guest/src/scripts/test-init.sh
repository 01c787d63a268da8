#!/bin/busybox sh
# The first program of the test guest. The marker comes before anything else: benchmarks measure up to it.
echo PLINTH-INIT-OK
export PATH=/bin HOME=/root PS1='plinth-test# '
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

while read -r module; do
	insmod "/modules/$module.ko" 2>/dev/null
done < /modules/order

read -r line < /proc/cmdline
case $line in
*plinth.run=\"*)
	run=${line#*plinth.run=\"}
	run=${run%%\"*}
	;;
*plinth.run=*)
	run=${line#*plinth.run=}
	run=${run%% *}
	;;
*)
	echo 'This is the Plinth test guest; "poweroff -f" ends it.'
	setsid cttyhack sh
	poweroff -f
	;;
esac
sh -c "$run"
echo "PLINTH-RUN-EXIT $?"
poweroff -f
