"""Slow, independent references. The package never imports them, and they never import it."""
