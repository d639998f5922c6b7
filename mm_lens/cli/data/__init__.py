"""Commands and options about data: which samples, from where, by which columns."""
