"""The steps between matrix products as compiled code, where there is a C compiler; plain torch serves where not."""
