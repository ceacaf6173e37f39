"""Programs that train with jaxloss."""
