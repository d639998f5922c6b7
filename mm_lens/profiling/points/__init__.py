"""Which hook points a profile measures, and which of them it relates to each other."""
