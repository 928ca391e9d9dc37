"""spring-rag in LangChain: two models, and prompts with a slot for virtual tokens."""

from spring_rag.extras import extra

with extra("langchain"):
    from langchain_spring_rag.chat_models import ChatSpring
    from langchain_spring_rag.documents import (
        PASSAGE_PROMPT,
        NumberingRetriever,
        format_passages,
        number_passages,
        rag_prompt,
    )
    from langchain_spring_rag.fallbacks import without_virtual_tokens
    from langchain_spring_rag.llms import SpringLLM
    from langchain_spring_rag.messages import VIRTUAL_TOKENS, spliced
    from langchain_spring_rag.placement import with_virtual_tokens
    from langchain_spring_rag.skills import with_skills

__all__ = [
    "PASSAGE_PROMPT",
    "VIRTUAL_TOKENS",
    "ChatSpring",
    "NumberingRetriever",
    "SpringLLM",
    "format_passages",
    "number_passages",
    "rag_prompt",
    "spliced",
    "with_skills",
    "with_virtual_tokens",
    "without_virtual_tokens",
]
