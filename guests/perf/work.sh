# Debian's own programs at work. The input stays in memory, and every program has run once before it is
# measured, so that the disk is out of it.
debian
cp -r /perf /mnt/tmp/perf
cat > /mnt/tmp/data.sh <<'END'
cd /tmp
export PATH=/usr/bin:/bin
cat /usr/lib/python3*/*.py > text
head -c 1500000 text > part
echo 'int x;' > warm.c
for program in "lua5.4 -v" "sqlite3 :memory: .quit" "openssl version" "python3 -c 'import hashlib,json,re'" \
	"xz --version" "zstd --version" "7z i" "gcc-14 -O2 -c warm.c"; do
	sh -c "$program" > /dev/null 2>&1 || echo "PERF-MISSING $program"
done
END
chroot /mnt /usr/bin/dash /tmp/data.sh
in_debian() {
	chroot /mnt /usr/bin/dash -c "cd /tmp; export PATH=/usr/bin:/bin; $1"
}
measure lua in_debian 'lua5.4 perf/work.lua'
measure sqlite in_debian 'sqlite3 :memory: < perf/work.sql'
measure openssl in_debian 'cat text text text text | openssl dgst -sha256'
measure python3 in_debian 'python3 perf/work.py'
measure xz in_debian 'xz -T1 -2 -c part | cksum'
measure zstd in_debian 'zstd -q --single-thread -9 -c text | cksum'
measure gcc in_debian 'gcc-14 -O2 -S -o - perf/unit.c'
measure 7z in_debian '7z a -mmt1 -mx3 -bd -mtm=off part.7z part > /dev/null && cksum < part.7z'
