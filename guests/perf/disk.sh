# fio tells its own figures: in its terse form, field 7 is the KiB and field 8 the operations read in a second.
debian
job() {
	chroot /mnt /usr/bin/fio --name="$1" --filename=/dev/vda --readonly --direct=1 --ioengine=psync --size="${arg}m" \
		--time_based --runtime=5 --minimal --rw="$2" --bs="$3"
}
measure sequential job sequential read 1m
value sequential "$(cut -d ';' -f 7 /tmp/out | awk '{ printf "%.1f", $1 / 1024 }')"
measure random job random randread 4k
value random "$(cut -d ';' -f 8 /tmp/out)"
