#!/bin/busybox sh
# The first program of a Debian guest: loads the disk and file system modules, mounts the root file
# system and hands over to its init, or to the setup of the first boot.
export PATH=/bin
/bin/busybox --install -s /bin

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs -o mode=0755,nosuid dev /dev

root= init= flags=rw type=ext4 wait=30
for word in $(cat /proc/cmdline); do
	case $word in
	root=*) root=${word#root=} ;;
	init=*) init=${word#init=} ;;
	rootfstype=*) type=${word#rootfstype=} ;;
	rootflags=*) flags=$flags,${word#rootflags=} ;;
	ro) flags=ro${flags#rw} ;;
	rootdelay=*) wait=${word#rootdelay=} ;;
	esac
done

while read -r module; do
	insmod "/modules/$module.ko" 2>/dev/null
done < /modules/order

give_up() {
	echo "plinth: $*" >&2
	echo "plinth: this is a shell in the initial file system; \"poweroff -f\" ends the guest" >&2
	exec setsid cttyhack sh
}

case $root in
'') root=/dev/vda ;;
UUID=*|LABEL=*|PARTUUID=*) name=$root ;;
esac
tries=$((wait * 20))
while :; do
	[ -z "$name" ] || root=$(findfs "$name" 2>/dev/null)
	[ -n "$root" ] && [ -b "$root" ] && break
	[ $tries -gt 0 ] || give_up "there is no root device ${name:-$root}"
	tries=$((tries - 1))
	usleep 50000
done

mount -t "$type" -o "$flags" "$root" /root || give_up "the root file system on $root cannot be mounted"
if [ -z "$init" ]; then
	init=/sbin/init
	[ ! -x /root/usr/lib/plinth/first-boot ] || init=/usr/lib/plinth/first-boot
fi
for folder in dev proc sys; do
	mount -o move /$folder /root/$folder
done
exec switch_root /root "$init"
