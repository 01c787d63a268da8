//! Images that Plinth does not make itself, built byte by byte, for tests and fuzzing.

use std::io::Write;

use base64::Engine;

/// Bytes of a chunk of compressed images.
pub const CHUNK: usize = 8192;

/// Bytes that compress, but not to nothing.
#[must_use]
pub fn data(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> (20 + i / 4096 % 9)) as u8).collect()
}

/// A stream of zlib.
#[must_use]
pub fn zlib(data: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    e.write_all(data).unwrap();
    e.finish().unwrap()
}

/// A cloop image.
#[must_use]
pub fn cloop(data: &[u8]) -> Vec<u8> {
    let blocks: Vec<_> = data.chunks(CHUNK).map(zlib).collect();
    let mut out =
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n".to_vec();
    out.resize(128, 0);
    out.extend((CHUNK as u32).to_be_bytes());
    out.extend((blocks.len() as u32).to_be_bytes());
    let mut at = 136 + 8 * (blocks.len() as u64 + 1);
    for len in blocks.iter().map(|b| b.len() as u64).chain([0]) {
        out.extend(at.to_be_bytes());
        at += len;
    }
    out.extend(blocks.concat());
    out
}

/// ADC without any copies.
#[must_use]
pub fn adc(data: &[u8]) -> Vec<u8> {
    data.chunks(128).flat_map(|c| std::iter::once(0x7f + c.len() as u8).chain(c.iter().copied())).collect()
}

/// An image of one chunk of each kind, the last one cut off at `end`.
#[must_use]
pub fn dmg(chunks: &[(u32, Vec<u8>)], old: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut mish = b"mish\0\0\0\x01".to_vec();
    mish.resize(204, 0);
    mish[16..24].copy_from_slice(&(chunks.len() as u64 * (CHUNK as u64 / 512)).to_be_bytes());
    mish[200..204].copy_from_slice(&(chunks.len() as u32 + 1).to_be_bytes());
    for (n, (kind, bytes)) in chunks.iter().enumerate() {
        let sectors = CHUNK as u64 / 512;
        mish.extend([kind.to_be_bytes(), [0; 4]].concat());
        for v in [n as u64 * sectors, sectors, out.len() as u64, bytes.len() as u64] {
            mish.extend(v.to_be_bytes());
        }
        out.extend(bytes);
    }
    mish.extend([0xff; 4]);
    mish.extend([0; 36]);
    let at = out.len() as u64;
    let list = if old {
        let mut fork = vec![0; 256];
        fork[2] = 1;
        fork[8..12].copy_from_slice(&(mish.len() as u32 + 4).to_be_bytes());
        fork.extend((mish.len() as u32).to_be_bytes());
        fork.extend(&mish);
        fork
    } else {
        let data = base64::engine::general_purpose::STANDARD.encode(&mish);
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
             \"x.dtd\">\n<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>ID</key>\
             <string>0</string><key>Data</key><data>\n{data}\n</data></dict></array></dict></dict></plist>"
        )
        .into_bytes()
    };
    out.extend(&list);
    let mut koly = b"koly\0\0\0\x04\0\0\x02\0".to_vec();
    koly.resize(512, 0);
    let place = if old { 40 } else { 216 };
    koly[place..place + 8].copy_from_slice(&at.to_be_bytes());
    koly[place + 8..place + 16].copy_from_slice(&(list.len() as u64).to_be_bytes());
    koly[492..500].copy_from_slice(&(chunks.len() as u64 * (CHUNK as u64 / 512)).to_be_bytes());
    out.extend(koly);
    out
}

/// A disk of 64 clusters of 4096 bytes: the first two are there, the third is zeros.
#[must_use]
pub fn qed() -> Vec<u8> {
    let mut b = vec![0; 4096 * 5];
    let mut put = |at: usize, v: u64| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
    put(0, 4096 << 32 | u64::from(u32::from_le_bytes(*b"QED\0")));
    put(8, 1 << 32 | 1);
    put(40, 4096);
    put(48, 64 * 4096);
    put(4096, 8192);
    put(8192, 12288);
    put(8200, 16384);
    put(8208, 1);
    b[12288..16384].fill(1);
    b[16384..].fill(2);
    b
}

/// A COWD extent as the specification describes it.
#[must_use]
pub fn cowd(data: &[u8]) -> Vec<u8> {
    let grains = data.chunks(512);
    let mut b = vec![0; 2048];
    b[..4].copy_from_slice(b"COWD");
    let sectors = (data.len() / 512) as u32;
    for (at, word) in [(4, 1), (8, 3), (12, sectors), (16, 1), (20, 4), (24, 1), (28, 0)] {
        b[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
    }
    let mut directory = vec![0; 512];
    directory[..4].copy_from_slice(&5u32.to_le_bytes());
    let (mut table, mut tail) = (vec![0; 4096 * 4], Vec::new());
    for (n, grain) in grains.enumerate() {
        if grain.iter().any(|&x| x != 0) {
            let sector = 5 + 32 + (tail.len() / 512) as u32;
            table[n * 4..n * 4 + 4].copy_from_slice(&sector.to_le_bytes());
            tail.extend_from_slice(grain);
        }
    }
    [b, directory, table, tail].concat()
}

/// A seSparse extent, its fields where QEMU's source has them.
#[must_use]
pub fn sesparse(data: &[u8], replay: u64) -> Vec<u8> {
    let mut b = vec![0; 512];
    let put = |b: &mut [u8], at: usize, word: u64| b[at..at + 8].copy_from_slice(&word.to_le_bytes());
    let fields = [(0, 0xcafe_babe), (8, 0x2_0000_0001), (16, data.len() as u64 / 512), (24, 8), (32, 64)];
    // Volatile header, directory, tables, grains.
    let places = [(80, 1), (88, 1), (128, 2), (136, 1), (144, 3), (152, 64), (192, 128), (200, 1 << 20)];
    for (at, word) in fields.into_iter().chain(places) {
        put(&mut b, at, word);
    }
    b.resize(128 * 512, 0);
    put(&mut b, 512, 0xcafe_cafe);
    put(&mut b, 512 + 24, replay);
    put(&mut b, 1024, 0x1000_0000 << 32);
    for (n, grain) in data.chunks(4096).enumerate() {
        let number = ((b.len() - 128 * 512) / 4096) as u64;
        let entry = if grain.iter().all(|&x| x == 0) {
            [0, 1 << 60, 2 << 60][n % 3]
        } else {
            b.extend_from_slice(grain);
            3 << 60 | (number & 0xfff) << 48 | number >> 12
        };
        put(&mut b, 3 * 512 + n * 8, entry);
    }
    b
}

/// A descriptor of two parts, of which the first has a snapshot.
pub const PARALLELS_BUNDLE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Parallels_disk_image Version="1.0">
  <Disk_Parameters><Disk_size>4096</Disk_size></Disk_Parameters>
  <StorageData>
    <Storage><Start>0</Start><End>2048</End><Blocksize>128</Blocksize>
      <Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type><File>top.hds</File></Image>
      <Image><GUID>{11111111-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type><File>base.hds</File></Image>
    </Storage>
    <Storage><Start>2048</Start><End>4096</End><Blocksize>128</Blocksize>
      <Image><GUID>{11111111-6958-40ff-92a7-860e329aab41}</GUID><Type>Plain</Type><File>plain.hds</File></Image>
    </Storage>
  </StorageData>
  <Snapshots>
    <Shot><GUID>{11111111-6958-40ff-92a7-860e329aab41}</GUID>
      <ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot>
    <Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
      <ParentGUID>{11111111-6958-40ff-92a7-860e329aab41}</ParentGUID></Shot>
  </Snapshots>
</Parallels_disk_image>"#;

/// The envelope of a package with one machine.
pub const OVF: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References><File ovf:href="d%20e.vmdk" ovf:id="file1" ovf:size="4096" ovf:chunkSize="1024" ovf:compression="gzip"/></References>
<DiskSection><Disk ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1"
 ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized" ovf:parentRef="x"/></DiskSection>
<NetworkSection><Network ovf:name="VM Network"><Description>a &amp; b</Description></Network></NetworkSection>
<VirtualSystem ovf:id="vm"><Name>vm</Name>
<OperatingSystemSection ovf:id="96" ovf:version="12"><Description>Debian</Description></OperatingSystemSection>
<VirtualHardwareSection><System><vssd:VirtualSystemType xmlns:vssd="v">vmx-13</vssd:VirtualSystemType></System>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
<Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
<rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
<Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
<rasd:ResourceType>6</rasd:ResourceType></Item>
<Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>
<rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
<Item><rasd:Address>00:50:56:00:00:01</rasd:Address><rasd:Connection>VM Network</rasd:Connection>
<rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceSubType>E1000</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>
"#;
