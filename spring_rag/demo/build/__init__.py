"""How the demo's backbone, tokens, documents and questions are made; nothing here is needed to run the demo."""
