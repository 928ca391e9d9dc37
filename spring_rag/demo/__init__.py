"""The defaults: the default backbone, its virtual tokens, and the demo's documents and questions."""
