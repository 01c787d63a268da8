//! Asynchronous I/O does the same on io_uring and on threads.

use std::fs::File;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, join_all, select};
use futures_util::pin_mut;
use plinth_host::aio::{self, Backend, block_on_with};
use plinth_host::buffer::{IoBuf, IoData};

fn on_both<F: Future<Output = ()>>(test: impl Fn() -> F) {
    block_on_with(Backend::Threads, test());
    if std::env::var_os("PLINTH_TEST_NO_RING").is_none() {
        block_on_with(Backend::Auto, test());
    }
}

#[test]
fn files_are_written_and_read_with_many_requests_in_flight() {
    on_both(async || {
        let file = Arc::new(tempfile::tempfile().unwrap());
        // More than the ring's queue takes at once.
        let writes = (0..1000u64).map(|i| {
            let file = &file;
            async move { aio::write(file, i * 512, IoData::copy_of(&[i as u8; 512])).await.unwrap() }
        });
        assert!(join_all(writes).await.iter().all(|&n| n == 512));
        aio::sync_data(&file).await.unwrap();
        let reads = (0..1000u64).map(|i| aio::read(&file, i * 512, IoBuf::new(512)));
        for (i, (n, buf)) in join_all(reads).await.into_iter().enumerate() {
            assert_eq!(n.unwrap(), 512);
            assert!(buf.iter().all(|&b| b == i as u8));
        }
        let (n, _) = aio::read(&file, 512_000, IoBuf::new(10)).await;
        assert_eq!(n.unwrap(), 0);
        aio::allocate(&file, 0, 512_000, 512).await.unwrap();
        assert_eq!(file.metadata().unwrap().len(), 512_512);
    });
}

#[test]
fn errors_are_the_hosts() {
    on_both(async || {
        let file = Arc::new(File::open("/dev/null").unwrap());
        let error = aio::write(&file, 0, IoData::copy_of(b"x")).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(9));
    });
}

#[test]
fn sockets_send_and_receive() {
    on_both(async || {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (Arc::new(a), Arc::new(b));
        let parts: Vec<_> = (0..3000u32).map(|i| IoData::copy_of(&i.to_le_bytes())).collect();
        let receive = async {
            let mut all = Vec::new();
            while all.len() < 12_000 {
                aio::readable(&b).await.unwrap();
                let (n, buf) = aio::receive(&b, IoBuf::new(1000)).await;
                all.extend_from_slice(&buf[..n.unwrap()]);
            }
            all
        };
        let (sent, all) = futures_util::join!(aio::send_all(&a, parts), receive);
        sent.unwrap();
        assert!(all.chunks(4).enumerate().all(|(i, c)| c == (i as u32).to_le_bytes()));
        drop(a);
        assert_eq!(aio::receive(&b, IoBuf::new(8)).await.0.unwrap(), 0);
    });
}

#[test]
fn a_dropped_wait_does_not_hold_the_thread() {
    let start = Instant::now();
    on_both(async || {
        let (_a, b) = UnixStream::pair().unwrap();
        let b = Arc::new(b);
        let receive = aio::receive(&b, IoBuf::new(8));
        let sleep = aio::sleep(Duration::from_millis(20));
        pin_mut!(receive, sleep);
        assert!(matches!(select(receive, sleep).await, Either::Right(_)));
    });
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn work_runs_on_other_threads() {
    on_both(async || {
        let here = std::thread::current().id();
        let work = (0..100u64).map(|i| aio::offload(move || (i * i, std::thread::current().id())));
        for (i, (square, thread)) in join_all(work).await.into_iter().enumerate() {
            assert_eq!(square, (i * i) as u64);
            assert_ne!(thread, here);
        }
    });
}

#[test]
fn tasks_run_beside_and_end_with_the_one_that_matters() {
    on_both(async || {
        let (sender, receiver) = futures_channel::oneshot::channel();
        aio::spawn(async {
            aio::spawn(async {
                aio::sleep(Duration::from_millis(5)).await;
                sender.send(7).unwrap();
            });
            // Never ends by itself.
            std::future::pending::<()>().await;
        });
        assert_eq!(receiver.await, Ok(7));
    });
}
