"""The options of every command that needs a backbone with virtual tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.console import Progress, note
from spring_rag.cli.options import parse_object
from spring_rag.errors import BackendError, TokensError

if TYPE_CHECKING:
    from spring_rag import RagTemplate, SpringModel

Tokens = Annotated[
    str | None,
    typer.Option(
        metavar="T",
        help="Virtual tokens: folder, file, Hub id or published name. Default: none with --model, else SmolLM2's.",
    ),
]

Skills = Annotated[
    list[str] | None,
    typer.Option(
        metavar="T",
        help="Virtual tokens of a further skill, trained with --task answerable or cite. May be repeated. The default backbone has its own.",
    ),
]


@dataclass(frozen=True)
class TemplateOptions:
    """What the tokenizer's chat template is told beyond the layout."""

    thinking: Annotated[
        bool | None,
        typer.Option(
            "--thinking/--no-thinking",
            help="Let the backbone think before it answers, where its chat template has a say in that. Default: as the virtual tokens were"
            " trained; without them, no.",
        ),
    ] = None
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='What else the chat template is given, such as \'{"date_string": "26 Jul 2024"}\' in place of today\'s date.',
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether they change anything."""
        return self.thinking is not None or self.chat_template_kwargs is not None

    def told(self, template: "RagTemplate") -> "RagTemplate":
        """Change a layout as the options say.

        Raises:
            typer.BadParameter: what is no JSON object.
            PromptError: what no chat template may be given.
        """
        if self.thinking is not None:
            template = replace(template, thinking=self.thinking)
        if self.chat_template_kwargs is not None:
            kwargs = parse_object(
                self.chat_template_kwargs, "--chat-template-kwargs", '{"date_string": "26 Jul 2024"}'
            )
            template = replace(template, chat_template_kwargs={**template.chat_template_kwargs, **kwargs})
        return template


@dataclass(frozen=True)
class PromptOptions(TemplateOptions):
    """How prompts are laid out, if not as the virtual tokens were trained."""

    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Put the prompt into the tokenizer's chat template, or don't. Default: as the virtual tokens were trained; without them,"
            " if there is one.",
        ),
    ] = None
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message of the chat.")] = None

    @property
    def given(self) -> bool:
        """Whether they change anything."""
        return self.chat is not None or self.system is not None or super().given

    def template(self, model: "SpringModel", tokens: str | None = None) -> "RagTemplate":
        """Return the layout for a set of virtual tokens, changed as the options say.

        Raises:
            typer.BadParameter: a system message without a chat.
        """
        template = self.told(model.template(tokens))
        if self.chat is not None:
            template = replace(template, chat=self.chat, system=template.system if self.chat else None)
        if self.system is not None and not template.chat:
            msg = "--system needs a chat; add --chat"
            raise typer.BadParameter(msg)
        return replace(template, system=self.system) if self.system is not None else template


@dataclass(frozen=True)
class ModelOptions:
    """Which backbone, and whether it runs here or on servers."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="Backbone: Hub id, folder, model.gguf or owner/name:file.gguf. Default: the one that the tokens were trained on, else"
            " SmolLM2-135M-Instruct.",
        ),
    ] = None
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A vLLM server that has the backbone (http://localhost:8000/v1), in place of this process; several take turns.",
        ),
    ] = None
    engine: Annotated[
        Literal["transformers", "llama.cpp"],
        typer.Option(
            metavar="ENGINE",
            help="What runs the backbone in this process: transformers, or llama.cpp, which reads a GGUF as it is.",
        ),
    ] = "transformers"
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Key of the server. Default: VLLM_API_KEY or OPENAI_API_KEY."),
    ] = None

    def load(
        self, tokens: str | None, backbone: BackboneOptions, timeout: float | None = None
    ) -> "SpringModel":
        """Load the backbone with virtual tokens.

        Without `--model` it is the backbone that the tokens record; without tokens either, it is the default backbone with its own
        tokens. `timeout` is how many seconds a server may take to answer.

        Raises:
            TokensError: tokens that don't record their backbone, without a model.
            BackendError: the backbone can't be loaded, or a server can't be reached.
        """
        with Progress(f"loading {self.model or 'the backbone'}"):
            return self._load(tokens, backbone, timeout)

    def _load(self, tokens: str | None, backbone: BackboneOptions, timeout: float | None) -> "SpringModel":
        from spring_rag import SpringModel, VirtualTokens
        from spring_rag.backbone import is_hub_id
        from spring_rag.demo.default import HUB_ID, default_backbone

        if self.base_url and (backbone.quantize or backbone.device_map):
            msg = "--quantize and --device-map say how the backbone is loaded here; with --base-url a server has it"
            raise typer.BadParameter(msg)
        if self.engine != "transformers" and (self.base_url or backbone.quantize or backbone.device_map):
            msg = f"--engine {self.engine} goes without --base-url, --quantize and --device-map"
            raise typer.BadParameter(msg)
        servers: dict[str, Any] = {}
        if self.base_url:
            limit = {} if timeout is None else {"timeout": timeout}
            servers = {"base_url": self.base_url, "api_key": self.api_key, **limit}
        where = {**backbone.arguments(), "engine": self.engine, **servers}
        if tokens is None:
            if self.model is None:
                return _load_default(where)
            note("no virtual tokens given (--tokens): the plain backbone answers")
            return SpringModel.from_pretrained(self.model, tokens=None, **where)
        loaded = VirtualTokens.from_pretrained(tokens)
        name = self.model or (loaded.backbone.model_id if loaded.backbone else None)
        if name is None:
            msg = f"the virtual tokens {tokens!r} don't record which backbone they were trained on; name it with --model"
            raise TokensError(msg)
        if self.model is None and name == HUB_ID:
            name = default_backbone()
        if self.model is None and not (Path(name).exists() or is_hub_id(name) or ":" in name):
            msg = f"the virtual tokens {tokens!r} were trained on {name!r}, which isn't here; say with --model where it is"
            raise TokensError(msg)
        return SpringModel.from_pretrained(name, tokens=loaded, **where)


def _load_default(where: Mapping[str, Any]) -> "SpringModel":
    """Load the backbone that answers if none is named, with its virtual tokens.

    Raises:
        BackendError: it can't be loaded; says what brings it.
    """
    from spring_rag import SpringModel
    from spring_rag.demo.default import HUB_ID, INSTALL, default_backbone
    from spring_rag.demo.paths import SKILLS, TOKENS

    note("no backbone named (--model): SmolLM2-135M-Instruct answers, with its virtual tokens")
    backbone = default_backbone()
    try:
        model = SpringModel.from_pretrained(backbone, tokens=TOKENS, **where)
    except BackendError as error:
        if backbone != HUB_ID:
            raise
        msg = f"the default backbone isn't installed ({INSTALL}), nor can the Hub's be used; install it, or name another with --model: {error}"
        raise BackendError(msg) from error
    for folder in sorted(SKILLS.glob("*")):
        model.add_skill(folder)
    return model
