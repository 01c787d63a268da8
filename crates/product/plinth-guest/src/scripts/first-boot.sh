#!/bin/sh
# Runs once as the first program of a new Debian guest: the part of the installation that needs the
# guest's own CPU. Then it removes itself and becomes the real init.
here=/usr/lib/plinth
log=/var/log/plinth-first-boot.log
PATH=$here/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
export PATH DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C.UTF-8 HOME=/root

mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mountpoint -q /run || mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
# dpkg syncs after every step. Until the end, the order of writes is enough: a setup that is cut short
# goes on at the next boot.
mount -o remount,rw,barrier=0 /

# A guest without a clock would stamp its files with 1970.
read -r built < $here/built
[ "$(date +%s)" -ge "$built" ] || date -s "@$built" > /dev/null

total=$(grep -c '^Status: install ok unpacked' /var/lib/dpkg/status)
echo "plinth: setting up $total packages, once; please wait"
count=0

# Configures packages, shows which, and keeps what the scripts say in the log.
configure() {
	{
		dpkg --force-confdef,confold --configure "$@" < /dev/null 2>&1
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
		return "$result"
	}
}

# The base packages ask debconf only for what has a default.
mount --bind $here/confmodule /usr/share/debconf/confmodule
base=$(cat $here/base)
# shellcheck disable=SC2086
[ -z "$base" ] || configure $base
umount /usr/share/debconf/confmodule
count=$((total - $(grep -c '^Status: install ok unpacked' /var/lib/dpkg/status)))

# Packages beyond the base may count on what their preinst does.
while read -r package arch script; do
	DPKG_MAINTSCRIPT_PACKAGE=$package DPKG_MAINTSCRIPT_ARCH=$arch DPKG_MAINTSCRIPT_NAME=preinst \
		DPKG_RUNNING_VERSION=$(cat $here/dpkg-version) "$script" install < /dev/null >> $log 2>&1 ||
		echo "plinth: the preinst of $package failed, see $log"
done < $here/preinsts

if configure -a; then
	rm -rf $here
	# The scripts have done what the services for a changed /usr would do again.
	touch -r /usr /etc/.updated /var/.updated
	sync
else
	tail -n 5 $log
	echo "plinth: not everything could be set up; see $log. The next boot tries again."
fi
mount -o remount,barrier=1 /
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
unset DEBIAN_FRONTEND DEBCONF_NONINTERACTIVE_SEEN LC_ALL HOME
exec /sbin/init
