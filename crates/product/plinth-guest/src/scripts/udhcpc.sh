#!/bin/busybox sh
# Sets an interface up as udhcpc has been told.
export PATH=/bin
case $1 in
deconfig)
	ip addr flush dev "$interface"
	ip link set "$interface" up
	;;
bound|renew)
	ip addr flush dev "$interface"
	ip addr add "$ip/${mask:-24}" dev "$interface"
	for router in $router; do
		ip route add default via "$router" dev "$interface" && break
	done
	: > /etc/resolv.conf
	for server in $dns; do
		echo "nameserver $server" >> /etc/resolv.conf
	done
	;;
esac
