"""The commands of `chorus`, a module for each kind. They import what is heavy only when they run."""
