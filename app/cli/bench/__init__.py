"""What `chorus bench` is made of: what is asked (`workload`), how it is sent (`load`), what came of it (`outcomes`),
what the service says of itself (`service`), one measurement of all that (`measure`), and how it looks (`report`)."""
