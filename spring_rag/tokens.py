"""Virtual tokens: the trained matrix, and what is known about it.

Reading and writing files, the Hub and the model card live in `spring_rag.persistence`.
"""

import os
import warnings
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from spring_rag.backbone import Table
from spring_rag.errors import BackboneMismatchError, TokensError
from spring_rag.persistence import Artifact, load, push, write_folder, write_pt


class VirtualTokens(Artifact):
    """A trained matrix whose row i is virtual token i+1, in the space of its backbone's embedding table.

    Args:
        matrix: shape `[n, hidden_size]`, n ≥ 1, any float dtype and device; copied to float32 on the CPU.
        backbone: the model that it was trained on; without it the tokens attach wherever their size fits,
            with a warning.
        template: layout of the prompts that it was trained with; None is the default layout.
        training: how it was trained, as JSON; kept in config.json and shown in the model card.
        after_scaling: the rows stand behind the scaling that the backbone's embedding layer applies (Gemma's), as PEFT's do; they are
            divided by it where they are attached. Without effect on backbones that don't scale.
        chat_template: digest of the chat template that they were trained with, as `template_digest` gives it; None where they were
            trained in text prompts, or it isn't known.
        task: name of the skill that they were trained for, as "answer" or "cite".
        calibration: the two numbers that make probabilities of what the skill says, as `Skill.calibrated` takes them; None where none were fitted.

    Raises:
        TokensError: the matrix isn't 2-D, is empty, isn't of floats, or holds NaN or infinite values; its
            width isn't the backbone's hidden size; `training` isn't JSON.
    """

    def in_table_space(self, scale: float) -> Tensor:
        """Return the rows as the backbone's embedding table would hold them.

        Args:
            scale: what the backbone's embedding layer multiplies rows of its table by; 1 on all families but Gemma's and its like.

        Returns:
            Shape `[n, hidden_size]`, float32, on the CPU; `matrix` itself unless the rows are `after_scaling`.
        """
        return self.matrix / scale if self.after_scaling else self.matrix

    def __getitem__(self, index: slice) -> "VirtualTokens":
        """Take the first k tokens, `tokens[:k]` with 0 ≤ k ≤ n; what is known about them stays the same.

        Only a prefix has a meaning, because training always used the first k rows, never others.

        Raises:
            TokensError: any other index or slice, or k beyond n.
        """
        is_prefix = isinstance(index, slice) and index.start in (None, 0) and index.step in (None, 1)
        if not is_prefix:
            msg = f"only a prefix of virtual tokens is usable, as in tokens[:10], not {index}"
            raise TokensError(msg)
        k = len(self) if index.stop is None else index.stop
        if not isinstance(k, int) or not 0 <= k <= len(self):
            msg = f"can't take the first {k} virtual tokens: expected a number from 0 to {len(self)}"
            raise TokensError(msg)
        return self.first(k)

    def __repr__(self) -> str:
        backbone = self.backbone.model_id if self.backbone else None
        return (
            f"VirtualTokens({len(self)} × {self.hidden_size}, backbone={backbone!r}, digest={self.digest!r})"
        )

    def check(self, embedding_table: Table, model_id: str | None, quantization: str | None = None) -> None:
        """Check that these tokens may be attached to a model.

        Tokens that record no backbone attach wherever their size fits, with one warning.

        Args:
            embedding_table: the model's input embeddings, shape `[vocab, hidden_size]`; on the meta device if
                its values aren't at hand, in which case names are compared.
            model_id: the model's Hub id or path; None if it has none.
            quantization: how the model is quantised, as "Q4_1", if its embeddings are. Tokens of the same model in other
                bits then attach, with one warning.

        Raises:
            BackboneMismatchError: the tokens belong to another backbone; names both.
        """
        if self.backbone is not None:
            self.backbone.check(embedding_table, model_id, quantization)
            return
        name = repr(model_id) if model_id else "a backbone without a name"
        if self.hidden_size != embedding_table.shape[-1]:
            msg = (
                f"virtual tokens of an unrecorded backbone with hidden size {self.hidden_size} can't be "
                f"attached to {name}, whose hidden size is {embedding_table.shape[-1]}"
            )
            raise BackboneMismatchError(msg)
        msg = (
            f"these virtual tokens don't record their backbone; they are attached to {name} because the "
            f"hidden size, {self.hidden_size}, fits. If they were trained on another model they only do "
            "harm: prefer a saved folder or a published name."
        )
        warnings.warn(msg, stacklevel=2)

    @classmethod
    def from_pretrained(
        cls, src: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> "VirtualTokens":
        """Load virtual tokens, without ever running code from a file.

        Args:
            src: a folder written by `save_pretrained` or by PEFT's prompt tuning; a `.safetensors` or the
                authors' `.pt` file; a published name such as `"mistral-7b-instruct"`; or a Hub id,
                `"owner/name"`. What exists on disk comes first.
            revision: branch, tag or commit on the Hub.
            token: access token for the Hub; by default the one that `hf auth login` saved.

        Raises:
            TokensError: nothing usable is there; the text says what was found and what was expected.
        """
        found = load(src, revision=revision, token=token)
        return cls(**{each.name: getattr(found, each.name) for each in fields(found)})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `virtual_tokens.safetensors`, `config.json` and a model card, `README.md`, into a folder.

        Other files there are left alone. A save that is interrupted at any moment leaves a whole artifact,
        the old one or the new.

        Raises:
            TokensError: there are no rows to save, or a config.json or README.md of something else lies there.
            OSError: the folder can't be written.
        """
        write_folder(self, Path(folder))

    def save_pt(self, path: str | os.PathLike[str]) -> None:
        """Write the authors' format, atomically: one float32 tensor `[n, hidden_size]` by `torch.save`.

        It holds the rows only; backbone, template and training are lost. Rows that are `after_scaling` are written as they are, with a
        warning.

        Raises:
            TokensError: there are no rows to save.
            OSError: the file can't be written.
        """
        write_pt(self, Path(path))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload virtual tokens",
        token: str | None = None,
    ) -> str:
        """Publish what `save_pretrained` writes as one commit, creating the repository if need be.

        Args:
            repo_id: `"owner/name"` on the Hub.
            private: whether a new repository is private; None is the account's default.
            revision: branch to commit to; None is the main one.
            commit_message: first line of the commit.
            token: access token with the right to write; by default the one that `hf auth login` saved.

        Returns:
            The commit's address.

        Raises:
            TokensError: the Hub can't be reached or refuses.
        """
        return push(
            self,
            repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
            token=token,
        )
