//! What is measured.

/// How a job uses the network.
#[derive(Clone, Copy)]
pub enum Nbd {
    No,
    /// The tools' arguments are those of servers, and this is the peer's client for both.
    Servers(&'static str),
    /// The tools' arguments are those of clients, and this is the peer's server for both.
    Clients(&'static str),
}

/// A job for both tools. In arguments, `{raw}` is the test image, `{qcow2}` and so on one of [`FORMS`], `{out}` a file
/// that is not there, `{pw}` one with a passphrase, `{socket}` and `{uri}` where a server is.
pub struct Job {
    pub name: &'static str,
    pub title: &'static str,
    pub plinth: &'static str,
    pub peer: &'static str,
    /// The peer's arguments with its best tuning.
    pub tuned: Option<&'static str>,
    /// Times as fast as the peer with its defaults, at least; 0: only the memory counts.
    pub wanted: f64,
    /// The comparison that counts is of CPU time.
    pub by_cpu: bool,
    /// The peer's arguments that make `{out}` before each run.
    pub prepare: Option<&'static str>,
    pub nbd: Nbd,
    /// It moves so much that the device may be what takes the time: what that alone needs is measured too.
    pub bulk: bool,
    /// Runs of each tool in one round: short ones say more together.
    pub times: usize,
}

const fn job(
    name: &'static str,
    title: &'static str,
    wanted: f64,
    plinth: &'static str,
    peer: &'static str,
) -> Job {
    let (tuned, prepare) = (None, None);
    Job {
        name,
        title,
        plinth,
        peer,
        tuned,
        wanted,
        by_cpu: false,
        prepare,
        nbd: Nbd::No,
        bulk: false,
        times: 1,
    }
}

impl Job {
    const fn tuned(self, tuned: &'static str) -> Self {
        Self { tuned: Some(tuned), ..self }
    }

    const fn bulk(self) -> Self {
        Self { bulk: true, ..self }
    }

    const fn by_cpu(self) -> Self {
        Self { by_cpu: true, ..self }
    }

    const fn short(self) -> Self {
        Self { times: 5, ..self }
    }

    const fn on_new(self, prepare: &'static str) -> Self {
        Self { prepare: Some(prepare), times: 2, ..self }
    }

    const fn nbd(self, nbd: Nbd) -> Self {
        Self { nbd, times: 2, ..self }
    }
}

pub const JOBS: &[Job] = &[
    job(
        "raw-qcow2",
        "raw to qcow2",
        3.0,
        "disk convert {raw} {out} --to qcow2",
        "convert -f raw -O qcow2 {raw} {out}",
    )
    .tuned("convert -f raw -O qcow2 -t none -m 16 -W {raw} {out}")
    .bulk(),
    job(
        "qcow2-raw",
        "qcow2 to raw",
        3.0,
        "disk convert {qcow2} {out} --to raw",
        "convert -f qcow2 -O raw {qcow2} {out}",
    )
    .tuned("convert -f qcow2 -O raw -t none -m 16 -W {qcow2} {out}")
    .bulk(),
    job(
        "raw-raw",
        "raw to raw",
        3.0,
        "disk convert {raw} {out} --from raw --to raw",
        "convert -f raw -O raw {raw} {out}",
    )
    .tuned("convert -f raw -O raw -t none -m 16 -W {raw} {out}")
    .bulk(),
    job(
        "raw-vmdk",
        "raw to vmdk",
        3.0,
        "disk convert {raw} {out} --to vmdk",
        "convert -f raw -O vmdk {raw} {out}",
    )
    .tuned("convert -f raw -O vmdk -t none -m 16 -W {raw} {out}")
    .bulk(),
    job(
        "raw-vhdx",
        "raw to vhdx",
        3.0,
        "disk convert {raw} {out} --to vhdx",
        "convert -f raw -O vhdx {raw} {out}",
    )
    .tuned("convert -f raw -O vhdx -t none -m 16 -W {raw} {out}")
    .bulk(),
    job(
        "raw-vdi",
        "raw to vdi",
        3.0,
        "disk convert {raw} {out} --to vdi",
        "convert -f raw -O vdi {raw} {out}",
    )
    .tuned("convert -f raw -O vdi -t none -m 16 -W {raw} {out}")
    .bulk(),
    job(
        "zlib",
        "raw to qcow2, zlib",
        2.5,
        "disk convert {raw} {out} --to qcow2 --compress zlib",
        "convert -f raw -O qcow2 -c {raw} {out}",
    )
    .tuned("convert -f raw -O qcow2 -c -m 16 -W {raw} {out}")
    .by_cpu(),
    job(
        "zstd",
        "raw to qcow2, zstd",
        1.2,
        "disk convert {raw} {out} --to qcow2 --compress zstd",
        "convert -f raw -O qcow2 -c -o compression_type=zstd {raw} {out}",
    )
    .tuned("convert -f raw -O qcow2 -c -o compression_type=zstd -m 16 -W {raw} {out}"),
    job(
        "zlib-raw",
        "qcow2, zlib, to raw",
        2.0,
        "disk convert {zlib} {out} --to raw",
        "convert -f qcow2 -O raw {zlib} {out}",
    )
    .tuned("convert -f qcow2 -O raw -t none -m 16 -W {zlib} {out}")
    .bulk(),
    job(
        "zstd-raw",
        "qcow2, zstd, to raw",
        1.2,
        "disk convert {zstd} {out} --to raw",
        "convert -f qcow2 -O raw {zstd} {out}",
    )
    .tuned("convert -f qcow2 -O raw -t none -m 16 -W {zstd} {out}")
    .bulk(),
    job(
        "stream",
        "raw to vmdk, streamOptimized",
        5.0,
        "disk convert {raw} {out} --to vmdk -o subformat=streamOptimized --compress",
        "convert -f raw -O vmdk -o subformat=streamOptimized {raw} {out}",
    ),
    job(
        "luks",
        "raw to luks, AES-256-XTS",
        3.0,
        "disk convert {raw} {out} --to luks --secret-file {pw} -o iter-time=10",
        "convert --object secret,id=s,file={pw} -f raw -O luks -o key-secret=s,iter-time=10 {raw} {out}",
    )
    .bulk(),
    job(
        "luks-raw",
        "luks, AES-256-XTS, to raw",
        3.0,
        "disk convert {luks} {out} --to raw --secret-file {pw}",
        "convert --object secret,id=s,file={pw} --image-opts driver=luks,key-secret=s,file.filename={luks} -O raw {out}",
    )
    .bulk(),
    job(
        "compare",
        "compare raw with qcow2",
        2.0,
        "disk compare {raw} {qcow2} --first-format raw",
        "compare -f raw -F qcow2 {raw} {qcow2}",
    )
    .bulk(),
    job(
        "compare-raw",
        "compare raw with raw",
        2.0,
        "disk compare {raw} {copy} --first-format raw --second-format raw",
        "compare -f raw -F raw {raw} {copy}",
    )
    .bulk(),
    job(
        "big-compare",
        "compare qcow2 with qcow2, 1 TiB, 100 GiB allocated",
        2.0,
        "disk compare {big} {big2}",
        "compare -f qcow2 -F qcow2 {big} {big2}",
    )
    .short(),
    job(
        "big-check",
        "check qcow2, 1 TiB, 100 GiB allocated",
        2.0,
        "disk check {big}",
        "check -f qcow2 {big}",
    )
    .short(),
    job(
        "big-map",
        "map qcow2, 1 TiB, 100 GiB allocated",
        2.0,
        "--output json disk map {big}",
        "map -f qcow2 --output=json {big}",
    )
    .short(),
    job(
        "big-measure",
        "measure qcow2, 1 TiB, 100 GiB allocated",
        2.0,
        "disk measure --to qcow2 {big}",
        "measure -f qcow2 -O qcow2 {big}",
    )
    .short(),
    job(
        "big-info",
        "info of qcow2, 1 TiB, 100 GiB allocated",
        2.0,
        "disk info --format qcow2 {big}",
        "info -f qcow2 {big}",
    )
    .short(),
    job(
        "raw-reads",
        "4 KiB reads, raw, depth 32, page cache",
        1.0,
        "disk bench --cached --format raw --count 65000 --depth 32 --step 68K {fullraw}",
        "bench -f raw -t writeback -c 65000 -d 32 -S 69632 {fullraw}",
    )
    .short(),
    job(
        "raw-reads-direct",
        "4 KiB reads, raw, depth 32, O_DIRECT",
        1.0,
        "disk bench --format raw --count 65000 --depth 32 --step 68K {fullraw}",
        "bench -f raw -t none -i io_uring -c 65000 -d 32 -S 69632 {fullraw}",
    )
    .short(),
    job(
        "device-reads",
        "1 MiB reads, raw, depth 8, O_DIRECT: 1 GiB",
        1.0,
        "disk bench --format raw --count 1024 --depth 8 --size 1M {fullraw}",
        "bench -f raw -t none -i io_uring -c 1024 -d 8 -s 1048576 {fullraw}",
    )
    .short(),
    job(
        "qcow2-reads",
        "4 KiB reads, qcow2, depth 32, page cache",
        1.0,
        "disk bench --cached --format qcow2 --count 65000 --depth 32 --step 68K {full}",
        "bench -f qcow2 -t writeback -c 65000 -d 32 -S 69632 {full}",
    )
    .short(),
    job(
        "qcow2-reads-direct",
        "4 KiB reads, qcow2, depth 32, O_DIRECT",
        1.0,
        "disk bench --format qcow2 --count 65000 --depth 32 --step 68K {full}",
        "bench -f qcow2 -t none -i io_uring -c 65000 -d 32 -S 69632 {full}",
    )
    .short(),
    job(
        "qcow2-writes",
        "4 KiB writes, qcow2, depth 32, page cache",
        1.0,
        "disk bench --cached --format qcow2 --write --count 65000 --depth 32 --step 68K {full}",
        "bench -f qcow2 -w -t writeback -c 65000 -d 32 -S 69632 {full}",
    )
    .short(),
    job(
        "qcow2-writes-direct",
        "4 KiB writes, qcow2, depth 32, O_DIRECT",
        1.0,
        "disk bench --format qcow2 --write --count 65000 --depth 32 --step 68K {full}",
        "bench -f qcow2 -w -t none -i io_uring -c 65000 -d 32 -S 69632 {full}",
    )
    .short(),
    job(
        "stride",
        "4 KiB allocating writes at 64 KiB stride, qcow2, page cache",
        2.0,
        "disk bench --cached --format qcow2 --write --count 16000 --depth 32 --step 64K {out}",
        "bench -f qcow2 -w -t writeback -c 16000 -d 32 -S 65536 {out}",
    )
    .on_new("create -q -f qcow2 {out} 4G"),
    job(
        "stride-direct",
        "4 KiB allocating writes at 64 KiB stride, qcow2, O_DIRECT",
        2.0,
        "disk bench --format qcow2 --write --count 16000 --depth 32 --step 64K {out}",
        "bench -f qcow2 -w -t none -i io_uring -c 16000 -d 32 -S 65536 {out}",
    )
    .on_new("create -q -f qcow2 {out} 4G"),
    job(
        "nbd-reads",
        "NBD server, 4 KiB reads, qcow2, depth 32, page cache",
        1.0,
        "disk serve --cached --format qcow2 --once --socket {socket} {full}",
        "-f qcow2 --cache=writeback -k {socket} {full}",
    )
    .nbd(Nbd::Servers("bench -f raw -c 65000 -d 32 -S 69632 {uri}")),
    job(
        "nbd-reads-direct",
        "NBD server, 4 KiB reads, qcow2, depth 32, O_DIRECT",
        1.0,
        "disk serve --format qcow2 --once --socket {socket} {full}",
        "-f qcow2 --cache=none --aio=io_uring -k {socket} {full}",
    )
    .nbd(Nbd::Servers("bench -f raw -c 65000 -d 32 -S 69632 {uri}")),
    job(
        "nbd-client-reads",
        "NBD client, 4 KiB reads, depth 32",
        1.0,
        "disk bench --count 65000 --depth 32 --step 68K {uri}",
        "bench -f raw -c 65000 -d 32 -S 69632 {uri}",
    )
    .nbd(Nbd::Clients("-f qcow2 --cache=writeback -k {socket} {full}")),
    job(
        "nbd-writes",
        "NBD server, 4 KiB writes, qcow2, depth 32, page cache",
        1.0,
        "disk serve --cached --format qcow2 --once --socket {socket} {full}",
        "-f qcow2 --cache=writeback -k {socket} {full}",
    )
    .nbd(Nbd::Servers("bench -f raw -w -c 65000 -d 32 -S 69632 {uri}")),
    job(
        "nbd-writes-direct",
        "NBD server, 4 KiB writes, qcow2, depth 32, O_DIRECT",
        1.0,
        "disk serve --format qcow2 --once --socket {socket} {full}",
        "-f qcow2 --cache=none --aio=io_uring -k {socket} {full}",
    )
    .nbd(Nbd::Servers("bench -f raw -w -c 65000 -d 32 -S 69632 {uri}")),
    job(
        "nbd-client-writes",
        "NBD client, 4 KiB writes, depth 32",
        1.0,
        "disk bench --write --count 65000 --depth 32 --step 68K {uri}",
        "bench -f raw -w -c 65000 -d 32 -S 69632 {uri}",
    )
    .nbd(Nbd::Clients("-f qcow2 --cache=writeback -k {socket} {full}")),
    job(
        "large-vhdx",
        "vhdx of 2 TiB to qcow2",
        0.0,
        "disk convert {vhdx} {out} --to qcow2",
        "convert -f vhdx -O qcow2 {vhdx} {out}",
    ),
    job(
        "large-vdi",
        "vdi of 8 TiB to qcow2",
        0.0,
        "disk convert {vdi} {out} --to qcow2",
        "convert -f vdi -O qcow2 {vdi} {out}",
    ),
    job(
        "large-vmdk",
        "vmdk of 2 TiB to qcow2",
        0.0,
        "disk convert {vmdk} {out} --to qcow2",
        "convert -f vmdk -O qcow2 {vmdk} {out}",
    ),
    job(
        "large-vhd",
        "vhd of 2 TiB to qcow2",
        0.0,
        "disk convert {vhd} {out} --to qcow2",
        "convert -f vpc -O qcow2 {vhd} {out}",
    ),
    job(
        "large-parallels",
        "parallels of 8 TiB to qcow2",
        0.0,
        "disk convert {parallels} {out} --to qcow2",
        "convert -f parallels -O qcow2 {parallels} {out}",
    ),
];

/// Images that the peer makes: name, and its arguments for the steps.
pub const FORMS: &[(&str, &[&str])] = &[
    ("qcow2", &["convert -f raw -O qcow2 -t none -m 16 -W {raw} {new}"]),
    ("copy", &["convert -f raw -O raw -t none -m 16 -W {raw} {new}"]),
    ("zlib", &["convert -f raw -O qcow2 -c -m 16 -W {raw} {new}"]),
    ("zstd", &["convert -f raw -O qcow2 -c -o compression_type=zstd -m 16 -W {raw} {new}"]),
    (
        "luks",
        &["convert --object secret,id=s,file={pw} -f raw -O luks -o key-secret=s,iter-time=10 {raw} {new}"],
    ),
    ("big", BIG),
    ("big2", BIG),
    ("full", &["create -q -f qcow2 -o preallocation=full {new} 1G"]),
    ("fullraw", &["create -q -f raw -o preallocation=full {new} 1G"]),
    ("vhdx", &["create -q -f vhdx {new} 2T"]),
    ("vdi", &["create -q -f vdi {new} 8T"]),
    ("vmdk", &["create -q -f vmdk {new} 2T"]),
    ("vhd", &["create -q -f vpc {new} 2040G"]),
    ("parallels", &["create -q -f parallels {new} 8T"]),
];

/// Clusters of 100 GiB that nobody has written, in a disk of 1 TiB.
const BIG: &[&str] =
    &["create -q -f qcow2 -o preallocation=metadata {new} 100G", "resize -q -f qcow2 {new} 1T"];
