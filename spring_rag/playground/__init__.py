"""A local page on which one's own index answers several ways, side by side."""
