"""Commands about one picture and one question: ask, look, intervene."""
