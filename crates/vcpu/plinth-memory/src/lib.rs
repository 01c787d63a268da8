//! Guest RAM: volatile typed access, write tracking.
