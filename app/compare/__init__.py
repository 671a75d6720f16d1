"""Every way to do a task, on the same rows, the same model and the same budget: what each scores, costs and serves."""
