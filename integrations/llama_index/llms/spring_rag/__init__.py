"""spring-rag in LlamaIndex: a language model with virtual tokens, and prompts that have a slot for them."""

from spring_rag.extras import extra

with extra("llama-index"):
    from llama_index.llms.spring_rag.engines import Upgrade, upgrade_engine
    from llama_index.llms.spring_rag.llm import SpringLLM
    from llama_index.llms.spring_rag.placement import with_virtual_tokens
    from llama_index.llms.spring_rag.postprocessor import NumberedPassages
    from llama_index.llms.spring_rag.skills import SkillQueryEngine
    from spring_rag.bridge.marks import render_text

__all__ = [
    "NumberedPassages",
    "SkillQueryEngine",
    "SpringLLM",
    "Upgrade",
    "render_text",
    "upgrade_engine",
    "with_virtual_tokens",
]
