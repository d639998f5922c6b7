"""Geometry of each sample alone, beside the profile that pools all of them."""
