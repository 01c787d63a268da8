//! Guest images: Debian built from its packages.
