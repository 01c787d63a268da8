//! PCI Express host bridge, configuration space, MSI-X.
