"""Vision-language families for mm_lens, one module or folder each, found through entry points."""
