"""Lenses: ways to put what a state holds into words."""
