"""Looking inside a model: attention maps, and what each layer would say next."""
