"""`python -m mm_lens` is `mm-lens`."""

from mm_lens.cli import main

main()
