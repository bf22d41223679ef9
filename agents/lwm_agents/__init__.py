"""Uses worlds: agents that train inside a dream and are measured in the real game."""
