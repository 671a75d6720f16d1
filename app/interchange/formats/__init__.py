"""Formats that `chorus convert` reads, a file each. Each gives the files of a PEFT adapter, wording included."""
