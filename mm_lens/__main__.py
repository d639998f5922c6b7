"""`python -m mm_lens` is `mm-lens`."""

from mm_lens.cli.commands import main

main()
