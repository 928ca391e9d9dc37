"""Agents of both frameworks on a checkpoint whose weights are written for them: call a tool, retrieve, answer with virtual tokens."""

import pytest
from agent_parts import check_agents, save_agents_backbone
from tool_parts import scripted  # noqa: F401 - a fixture

from spring_rag import SpringModel


@pytest.mark.filterwarnings("ignore:these virtual tokens don't record")
async def test_agents_answer_from_what_their_tool_found(scripted, tmp_path):  # noqa: F811
    tokens = await save_agents_backbone(tmp_path, scripted())
    await check_agents(SpringModel.from_pretrained(tmp_path, tokens=tokens))
