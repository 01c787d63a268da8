# Nothing to do: the first line of the init is what is measured.
