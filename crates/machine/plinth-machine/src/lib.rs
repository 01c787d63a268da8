//! Boards as data, device tree, kernel and firmware loaders.
