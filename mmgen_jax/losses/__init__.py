"""Arrays in, one value an example out."""
