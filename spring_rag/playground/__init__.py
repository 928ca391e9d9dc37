"""A local page that compares several ways to answer questions from one's own index, side by side."""
