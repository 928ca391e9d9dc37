"""The model card that a saved artifact carries, in the form that the Hub shows."""

import json

from spring_rag.backbone import is_hub_id
from spring_rag.persistence.artifact import Artifact

_ANSWER = "answer"
_TAGS = ("spring", "virtual-tokens", "prompt-tuning", "retrieval-augmented-generation")


def model_card(artifact: Artifact) -> str:
    """Return a README.md in Markdown with the Hub's YAML header."""
    backbone_id = artifact.backbone.model_id if artifact.backbone else None
    header = ["library_name: spring-rag", "tags:", *(f"- {tag}" for tag in _TAGS)]
    if backbone_id and is_hub_id(backbone_id):  # the Hub refuses a card whose base model isn't a repository
        header += [f"base_model: {json.dumps(backbone_id)}", "base_model_relation: adapter"]
    backbone_cell = _code(backbone_id) if backbone_id else "not recorded"
    sections = [
        "---\n" + "\n".join(header) + "\n---",
        "# Virtual tokens for retrieval-augmented generation",
        (
            f"{len(artifact)} trained virtual tokens for a frozen language model. They go between the "
            "retrieved context and the question; the model itself doesn't change. "
            + (
                "Any first k of them work by themselves."
                if artifact.task == _ANSWER
                else f"They are a skill, `{artifact.task}`, and are used as a whole."
            )
        ),
        (
            "| | |\n| --- | --- |\n"
            f"| backbone | {backbone_cell} |\n"
            f"| task | {_code(artifact.task)} |\n"
            f"| tokens (n) | {len(artifact)} |\n"
            f"| hidden size | {artifact.hidden_size} |\n"
            f"| digest | `{artifact.digest}` |"
        ),
        "## Use",
        _snippet(backbone_id, artifact.task),
    ]
    if artifact.template is not None:
        sections += ["## Prompt template", _json_block(artifact.template.to_dict())]
    if artifact.training is not None:
        sections += ["## Training", _json_block(artifact.training)]
    sections.append(
        "Method: *One Token Can Help! Learning Scalable and Pluggable Virtual Tokens for Retrieval-Augmented "
        "Large Language Models*, [arXiv 2405.19670](https://arxiv.org/abs/2405.19670)."
    )
    return "\n\n".join(sections) + "\n"


def _snippet(backbone_id: str | None, task: str) -> str:
    if task != _ANSWER:
        call = (
            'model.check("a question", "an answer", ["a retrieved passage", "another"])'
            if task == "check"
            else 'model.ask("a question", ["a retrieved passage", "another"])'
        )
        return (
            "```python\n"
            "from spring_rag import SpringModel\n"
            "\n"
            f'model = SpringModel.from_pretrained({json.dumps(backbone_id or "the backbone")}, tokens="tokens that answer")\n'
            'model.add_skill("path or Hub id of this artifact")\n'
            f"{call}\n"
            "```"
        )
    return (
        "```python\n"
        "from spring_rag import SpringModel, VirtualTokens\n"
        "\n"
        'tokens = VirtualTokens.from_pretrained("path or Hub id of this artifact")\n'
        f"model = SpringModel.from_pretrained({json.dumps(backbone_id or 'the backbone')}, tokens=tokens)\n"
        'model.answer("a question", ["a retrieved passage", "another"])\n'
        "```"
    )


def _json_block(data: object) -> str:
    """Return data as an indented block, which no text in the data can end, unlike a fenced one."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _code(text: str) -> str:
    """Return a table cell of literal text, on one line."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`"
