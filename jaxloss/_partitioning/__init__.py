"""How an operation on rows is batched by `vmap` and split over the devices of a mesh."""
