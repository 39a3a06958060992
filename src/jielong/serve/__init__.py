"""A model over HTTP: the OpenAI endpoints, one engine thread behind them, and the rules of who may ask what."""
