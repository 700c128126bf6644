"""Where two models part: the first layer, the rewrite that made it."""
