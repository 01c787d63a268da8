//! Images that are made over others, and used before they are opened again.

mod common;

use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::ErrorKind;
use plinth_image::format::{
    Backing, CreateRequest, Driver, Image, Options, Progress, qcow2, vdi, vhd, vhdx, vmdk,
};
use plinth_image::graph::{IoBuf, IoData, Node, NodeRef};
use plinth_image::job::{self, ConvertRequest, CopyOptions};
use plinth_image::testing::{SimOutput, World};

const SIZE: u64 = 9 << 20;

const FORMATS: [(&Driver, &str, &str); 10] = [
    (&qcow2::DRIVER, "qcow2", ""),
    (&qcow2::DRIVER, "qcow2", "cluster_size=2M"),
    (&qcow2::DRIVER, "qcow2", "extended_l2=on"),
    (&qcow2::DRIVER, "qcow2", "extended_l2=on,preallocation=metadata"),
    (&qcow2::DRIVER, "qcow2", "compat=0.10,cluster_size=4k"),
    (&qcow2::DRIVER, "qcow2", "data_file=data"),
    (&vmdk::DRIVER, "vmdk", ""),
    (&vdi::DRIVER, "vdi", ""),
    (&vhd::DRIVER, "vhd", ""),
    (&vhdx::DRIVER, "vhdx", ""),
];

fn output(world: &World, name: &str) -> SimOutput {
    SimOutput { name: name.to_owned(), world: world.clone(), count: Rc::default() }
}

async fn all(node: &dyn Node) -> Vec<u8> {
    node.read(0, IoBuf::new(node.size() as usize)).await.unwrap().to_vec()
}

async fn same(node: &dyn Node, want: &[u8], what: &str) {
    let now = all(node).await;
    let differs = now.iter().zip(want).position(|(a, b)| a != b);
    assert_eq!((now.len(), differs), (want.len(), None), "{what}");
}

/// A parent of the same format, open, and what a child says of it.
async fn parent(world: &World, driver: &'static Driver, suffix: &str) -> (Backing, Vec<u8>) {
    let name = format!("parent.{suffix}");
    common::parent_in(world, driver, &name, "", SIZE).await;
    let parent = common::open_in(world, driver, &name, true).await.unwrap();
    let contents = all(&*parent).await;
    assert!(contents.iter().any(|&b| b != 0));
    let link = common::link_to(&name, &*parent);
    (Backing { link, node: Some(parent as NodeRef) }, contents)
}

#[test]
fn a_new_image_shows_what_is_below_and_keeps_it_around_small_writes() {
    for (driver, suffix, options) in FORMATS {
        block_on(async {
            let world = World::new(1);
            let (backing, mut want) = parent(&world, driver, suffix).await;
            let output = output(&world, "child");
            let parsed = Options::parse(options).unwrap();
            let make = async |backing: Backing| {
                let backing = Some(backing);
                let request =
                    CreateRequest { output: &output, size: SIZE, options: &parsed, backing, secret: None };
                (driver.create.unwrap())(request).await.unwrap()
            };
            let what = format!("{suffix} {options}");
            let image: Rc<dyn Image> = make(backing.clone()).await;
            same(&*image, &want, &what).await;
            // In the middle of a cluster, and beginning within a sector.
            for at in [SIZE / 2 + 37 * 512, 3 << 20, 5_000_100, SIZE - 512] {
                image.write(at, IoData::copy_of(&[0xa5; 512])).await.unwrap();
                want[at as usize..at as usize + 512].fill(0xa5);
            }
            same(&*image, &want, &what).await;
            image.flush().await.unwrap();
            common::clean(&*image).await;
            image.close().await.unwrap();
            let image = common::open_in(&world, driver, "child", true).await.unwrap();
            same(&*image, &want, &format!("{what}, opened again")).await;
            common::clean(&*image).await;
            // Nobody makes up what is below, if it was not opened.
            let image = make(backing.link.into()).await;
            assert!(image.read(0, IoBuf::new(512)).await.is_err(), "{what}");
            let part = image.write(512, IoData::copy_of(&[1; 512])).await;
            let now = image.read(512, IoBuf::new(512)).await;
            assert!(part.is_err_and(|e| e.kind == ErrorKind::Unsupported) || now.unwrap()[..] == [1; 512]);
        });
    }
}

/// Parts of clusters of every size are copied from the upper layer alone, into images that were just made.
#[test]
fn what_one_layer_has_is_copied_over_what_is_below() {
    for (driver, suffix, options) in FORMATS {
        block_on(async {
            let world = World::new(2);
            let (backing, mut want) = parent(&world, driver, suffix).await;
            let options = Options::parse(options).unwrap();
            let source = common::create_in(&world, &qcow2::DRIVER, "source", SIZE, "cluster_size=512", {
                let mut link = backing.link.clone();
                link.format = Some(driver.format);
                Some(link)
            })
            .await
            .unwrap();
            source.close().await.unwrap();
            let source = common::open_in(&world, &qcow2::DRIVER, "source", false).await.unwrap();
            for n in 0..40u64 {
                let at = (n * 227_000 / 512) * 512;
                let len = 512 * (1 + n % 19);
                source.write(at, IoData::copy_of(&vec![n as u8 | 0x80; len as usize])).await.unwrap();
                want[at as usize..(at + len) as usize].fill(n as u8 | 0x80);
            }
            let copy = CopyOptions { layers: Some(1), ..CopyOptions::default() };
            let request = ConvertRequest {
                sources: vec![source as NodeRef],
                format: driver.format,
                options: &options,
                backing: Some(backing),
                secret: None,
                copy,
            };
            job::convert(request, &output(&world, "copy"), &Progress::default()).await.unwrap();
            let image = common::open_in(&world, driver, "copy", true).await.unwrap();
            same(&*image, &want, &format!("{suffix} {options:?}")).await;
            common::clean(&*image).await;
        });
    }
}

#[test]
fn what_is_below_does_not_come_back_when_an_image_grows_again() {
    for (driver, suffix, options) in FORMATS {
        block_on(async {
            let world = World::new(2);
            let (below, mut expected) = parent(&world, driver, suffix).await;
            let options = Options::parse(options).unwrap();
            let request = CreateRequest {
                output: &output(&world, "child"),
                size: SIZE,
                options: &options,
                backing: Some(below),
                secret: None,
            };
            let made = (driver.create.unwrap())(request).await.unwrap();
            made.close().await.unwrap();
            let child = common::open_in(&world, driver, "child", false).await.unwrap();
            child.write(2 << 20, IoData::copy_of(&[5; 3 << 20])).await.unwrap();
            expected[2 << 20..5 << 20].fill(5);
            let small = (4 << 20) + 512 * 37;
            child.resize(small).await.unwrap();
            child.resize(SIZE).await.unwrap();
            expected[small as usize..].fill(0);
            same(&*child, &expected, &format!("{suffix}, grown")).await;
            child.close().await.unwrap();
            let child = common::open_in(&world, driver, "child", true).await.unwrap();
            same(&*child, &expected, &format!("{suffix}, opened again")).await;
        });
    }
}
