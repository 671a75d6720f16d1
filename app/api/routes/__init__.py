"""The routes, one file for each kind of thing; each file has its `router`."""
