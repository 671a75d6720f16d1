"""Wire models: what a body may hold, with limits and examples. Nothing below `app.api` sees them."""
