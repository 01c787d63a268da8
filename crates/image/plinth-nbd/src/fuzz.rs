//! Entry points for fuzzing what comes over the wire.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use futures_util::future::join5;
use plinth_host::aio::{Backend, block_on_with};
use plinth_image::graph::{IoBuf, IoData, MemoryNode, Node};

use crate::server::{Export, Server};
#[allow(clippy::wildcard_imports, reason = "the numbers of the protocol")]
use crate::wire::*;

/// Bytes of a message: what a socket takes before somebody reads.
const MAX: usize = 64 << 10;

/// A socket on whose other end all of `data` has been sent; and that other end.
fn socket(data: &[u8]) -> (UnixStream, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().expect("the host has sockets");
    theirs.set_nonblocking(true).expect("a socket can do it");
    // What does not fit was cut off.
    let _ = theirs.write(&data[..data.len().min(MAX)]);
    theirs.shutdown(std::net::Shutdown::Write).expect("it was open");
    // Nobody reads the answers; when there is no more room for them, that is an error.
    ours.set_nonblocking(true).expect("a socket can do it");
    (ours, theirs)
}

/// Takes the front off an input; zeros if there is no more.
fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let n = N.min(data.len());
    out[..n].copy_from_slice(&data[..n]);
    *data = &data[n..];
    out
}

fn option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    out.extend(IHAVEOPT.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

/// A session of a client as an input describes it in short: after a handshake requests, of which some are wrong.
fn session(mut data: &[u8]) -> Vec<u8> {
    let [how] = take(&mut data);
    let mut out = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes().to_vec();
    if how & 1 != 0 {
        option(&mut out, OPT_STRUCTURED_REPLY, &[]);
    }
    if how & 2 != 0 {
        let contexts = [BASE_ALLOCATION, ALLOCATION_DEPTH, "qemu:dirty-bitmap:b"];
        let mut list = [&0u32.to_be_bytes()[..], &3u32.to_be_bytes()].concat();
        for context in contexts {
            list.extend((context.len() as u32).to_be_bytes());
            list.extend(context.bytes());
        }
        option(&mut out, OPT_SET_META_CONTEXT, &list);
    }
    if how & 4 != 0 {
        let [number, len] = take(&mut data);
        let (text, rest) = data.split_at(usize::from(len).min(data.len()));
        option(&mut out, u32::from(number & 15), text);
        data = rest;
    }
    if how & 8 != 0 {
        option(&mut out, OPT_EXPORT_NAME, &[]);
    } else {
        option(&mut out, OPT_GO, &[0; 6]);
    }
    while !data.is_empty() && out.len() < 32 << 10 {
        let [kind, flags, at, at_low, len, len_low] = take(&mut data);
        if kind & 128 != 0 {
            out.extend([flags, at, at_low, len, len_low]);
            continue;
        }
        let command = u16::from(kind & 15);
        let mut len = u32::from_be_bytes([0, 0, len, len_low]);
        if kind & 16 != 0 {
            len <<= 12;
        }
        let offset = u64::from(at) << 8 | u64::from(at_low);
        let offset = if kind & 32 != 0 { offset << 45 } else { offset };
        out.extend(REQUEST_MAGIC.to_be_bytes());
        out.extend(u16::from(flags & 31).to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(u64::from(at_low).to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        if command == CMD_WRITE {
            out.resize(out.len() + (len as usize).min(8 << 10), kind);
        }
    }
    out
}

/// A client that sends `data` to a server, as it is or as it describes a session, and hangs up.
pub fn fuzz_nbd_server(data: &[u8]) {
    let [how] = take(&mut { data });
    let made = if how & 1 == 0 { data.get(1..).unwrap_or_default().to_vec() } else { session(&data[1..]) };
    let (ours, mut theirs) = socket(&made);
    block_on_with(Backend::Inline, async {
        let memory = MemoryNode::with("fuzz", &[7; 8192]);
        memory.set_size(64 << 10);
        let mut export = Export::new("", std::rc::Rc::new(memory.limited(1 << 20)));
        export.bitmaps = vec![("b".to_owned(), vec![(512, 1024), (8192, 4096)])];
        let server = Server::new(vec![export]);
        // Any answer is right but a panic.
        let _ = server.serve(ours.into()).await;
    });
    let mut answer = [0; 64];
    let _ = theirs.read(&mut answer);
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(REP_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

/// What a server says as an input describes it in short: a handshake, and replies, of which some are wrong.
fn answers(mut data: &[u8]) -> Vec<u8> {
    let [how, flags] = take(&mut data);
    let mut out = [MAGIC, IHAVEOPT].map(u64::to_be_bytes).concat();
    out.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    let structured = how & 1 != 0;
    reply(&mut out, OPT_STRUCTURED_REPLY, if structured { REP_ACK } else { REP_ERR_UNSUP }, &[]);
    if structured {
        if how & 2 != 0 {
            let context = [&1u32.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat();
            reply(&mut out, OPT_SET_META_CONTEXT, REP_META_CONTEXT, &context);
        }
        reply(&mut out, OPT_SET_META_CONTEXT, REP_ACK, &[]);
    }
    if how & 4 != 0 {
        let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        let [min, max] = take(&mut data);
        sizes.extend([1 << (min & 31), 4096, u32::from(max) << 12].map(u32::to_be_bytes).concat());
        reply(&mut out, OPT_GO, REP_INFO, &sizes);
    }
    let flags = u16::from(flags) | u16::from(how & 8 != 0) << 10 | SEND_HAS_FLAGS;
    let export = [&INFO_EXPORT.to_be_bytes()[..], &65536u64.to_be_bytes(), &flags.to_be_bytes()].concat();
    reply(&mut out, OPT_GO, REP_INFO, &export);
    reply(&mut out, OPT_GO, REP_ACK, &[]);
    while !data.is_empty() && out.len() < 48 << 10 {
        let [kind, cookie, a, b] = take(&mut data);
        let cookie = u64::from(cookie & 7);
        match kind >> 5 {
            0 => {
                out.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
                out.extend(u32::from(kind & 31).to_be_bytes());
                out.extend(cookie.to_be_bytes());
                out.resize(out.len() + (usize::from(a) << 8 | usize::from(b)).min(8192), kind);
            }
            1 => out.extend([kind, a, b]),
            chunk => {
                let ty = [1, 2, 5, 0x8001, 0x8002, u16::from(a)][usize::from(chunk - 2)];
                let short = u32::from(a) << 4;
                let payload = match ty {
                    REPLY_OFFSET_DATA => {
                        [&u64::from(short).to_be_bytes()[..], &vec![b; usize::from(kind & 15) * 512]].concat()
                    }
                    REPLY_OFFSET_HOLE => {
                        [&u64::from(short).to_be_bytes()[..], &(u32::from(b) << 4).to_be_bytes()].concat()
                    }
                    REPLY_BLOCK_STATUS => {
                        let mut p = 1u32.to_be_bytes().to_vec();
                        for n in 0..u32::from(kind & 15) {
                            p.extend((short + n).to_be_bytes());
                            p.extend((u32::from(b) & 3).to_be_bytes());
                        }
                        p
                    }
                    _ => {
                        let text = &data[..usize::from(kind & 15).min(data.len())];
                        [&u32::from(b).to_be_bytes()[..], &(text.len() as u16).to_be_bytes(), text].concat()
                    }
                };
                out.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
                out.extend(u16::from(kind >> 4 & 1).to_be_bytes());
                out.extend(ty.to_be_bytes());
                out.extend(cookie.to_be_bytes());
                out.extend((payload.len() as u32).to_be_bytes());
                out.extend(payload);
            }
        }
    }
    out
}

/// A server that sends `data` to a client, as it is or as it describes answers.
pub fn fuzz_nbd_client(data: &[u8]) {
    let [how] = take(&mut { data });
    let made = if how & 1 == 0 { data.get(1..).unwrap_or_default().to_vec() } else { answers(&data[1..]) };
    let (ours, _theirs) = socket(&made);
    block_on_with(Backend::Inline, async {
        let address = crate::uri::Address::Unix(std::path::PathBuf::from("fuzz"));
        let uri = crate::uri::Uri { address, export: String::new(), tls: false };
        let options = crate::client::Options::default();
        if let Ok(node) = crate::client::open_on(ours.into(), &uri, &options).await {
            let n = node.size().min(4096);
            // All are under way when the first answer comes.
            let work = join5(
                node.read(0, IoBuf::new(n as usize)),
                node.status(0, n),
                node.write(0, IoData::copy_of(&vec![1; n as usize])),
                node.write_zeroes(0, n, true),
                node.flush(),
            );
            let (_read, extent, ..) = work.await;
            if let Ok(extent) = extent {
                assert!(extent.len <= n && (extent.len > 0 || n == 0), "{} of {n} bytes", extent.len);
            }
            let _closed = node.close().await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_sessions_do_no_harm() {
        for seed in 1..3000u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let data: Vec<u8> = (0..60)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 32) as u8
                })
                .collect();
            fuzz_nbd_server(&data);
            fuzz_nbd_client(&data);
        }
    }
}
