"""The recipe of the demo models that answer questions about scenes; see `train`."""
