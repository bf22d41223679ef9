"""Makes worlds: collects real play, trains and evaluates a model, and writes a world folder."""
