"""How signatures are checked while the tests run (see addopts): as mypy reads them."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""A whole number is a float."""
