"""What LangChain and LlamaIndex both need and no model does: slots in templates and chats, usage, threads. Knows no framework."""
