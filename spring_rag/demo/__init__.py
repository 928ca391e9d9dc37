"""What answers and is asked where nothing else is named: the default backbone, its virtual tokens, documents and questions."""
