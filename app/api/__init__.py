"""The HTTP layer: routes, the guard in front of them, and the one table from errors to status codes."""
