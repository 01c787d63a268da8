# 7-Zip's benchmark rates itself, compression and decompression together: the last number of "Tot:".
debian
measure 7z-b chroot /mnt /usr/bin/7z b 1 -mmt1 "-md$arg"
value 7z-b "$(awk '$1 == "Tot:" { print $NF }' /tmp/out)"
