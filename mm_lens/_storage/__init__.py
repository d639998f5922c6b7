"""Files that are whole or not there, and content that cannot be wrong in silence."""
