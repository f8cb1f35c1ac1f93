"""Run a named prediction over a data set and score it."""
