"""Commands about runs: opened in a browser, and run again from a file."""
