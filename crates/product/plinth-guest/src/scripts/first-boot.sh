#!/bin/sh
# Runs once as the first program of a new Debian guest: the part of the installation that needs the
# guest's own CPU. Then it removes itself and becomes the real init.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
export PATH DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C.UTF-8 HOME=/root
here=/usr/lib/plinth
log=/var/log/plinth-first-boot.log

mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mountpoint -q /run || mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
mount -o remount,rw /

# A guest without a clock would stamp its files with 1970.
read -r built < $here/built
[ "$(date +%s)" -ge "$built" ] || date -s "@$built" > /dev/null

total=$(grep -c '^Status: install ok unpacked' /var/lib/dpkg/status)
echo "plinth: setting up $total packages, once; please wait"

# Packages beyond the known base may count on what their preinst does.
while read -r package arch script; do
	DPKG_MAINTSCRIPT_PACKAGE=$package DPKG_MAINTSCRIPT_ARCH=$arch DPKG_MAINTSCRIPT_NAME=preinst \
		DPKG_RUNNING_VERSION=$(cat $here/dpkg-version) "$script" install < /dev/null >> $log 2>&1 ||
		echo "plinth: the preinst of $package failed, see $log"
done < $here/preinsts

count=0
{
	dpkg --force-confdef,confold,unsafe-io --configure -a < /dev/null 2>&1
	echo "status $?"
} | {
	result=1
	while read -r line; do
		echo "$line" >> $log
		case $line in
		'Setting up '*)
			count=$((count + 1))
			line=${line#Setting up }
			echo "plinth: [$count/$total] ${line%% *}"
			;;
		'status '*) result=${line#status } ;;
		esac
	done
	exit "$result"
}
if [ $? -eq 0 ]; then
	systemctl enable systemd-networkd.service >> $log 2>&1
	rm -f $here/first-boot $here/preinsts $here/built $here/dpkg-version
	sync
else
	tail -n 5 $log
	echo "plinth: not everything could be set up; see $log. The next boot tries again."
fi
exec /sbin/init
