//! Disk images: block devices over files.
