//! What every device stands on: bus, interrupt line, outcome of an access.
