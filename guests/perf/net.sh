debian
chroot /mnt /usr/sbin/modprobe virtio_net
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
measure download wget -q -O /dev/null "http://10.0.2.2:$arg/"
