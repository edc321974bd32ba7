"""Causal language models of the ``transformers`` library as followers (extra ``transformers``).

    tokeniser = HuggingFaceTokeniser("gpt2")
    env = HappyTextEnv(max_tokens=32, prompt_words=2, tokeniser=tokeniser)
    follower = writer(kl=0.1, language_model=partial(HuggingFaceModel, "gpt2"))

A name is looked up by ``transformers`` (a folder, or its hub, which needs a network); a config makes a model with random weights.
Dropout is off: PPO compares probabilities of the same weights before and after, and they must not differ by chance. Tested here
with a tiny random GPT-2 of the grammar's vocabulary; no pretrained one has been tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...envs.mdp.checks import require
from .language_model import LanguageModel


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("this model needs transformers: pip install 'bilevel-gym[transformers]'") from error
    return transformers


class HuggingFaceModel(LanguageModel):
    """A causal model of the ``transformers`` library.

    Args:
        source: a name or folder of a pretrained model, or a ``PretrainedConfig`` of one with random weights.

    Raises:
        ImportError: the library is missing.
        ValueError: a model that names no output embeddings, which turn its states into logits.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        auto = _library().AutoModelForCausalLM
        self.model = auto.from_pretrained(source) if isinstance(source, str) else auto.from_config(source)
        head = self.model.get_output_embeddings()
        require(head is not None, "source", "a causal model with output embeddings", repr(source))
        self.size, self.width = (int(n) for n in head.weight.shape)
        self.eval()

    def train(self, mode: bool = True) -> HuggingFaceModel:
        """Dropout stays off, whatever the mode."""
        super().train(False)
        return self

    def hidden(self, tokens: Tensor) -> Tensor:
        return self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)  # type: ignore[no-any-return]


class HuggingFaceTokeniser:
    """A tokeniser of the ``transformers`` library, as ``HappyTextEnv`` takes it.

    Args:
        source: a name or folder, or a tokeniser of the library; its end-of-sequence token begins and ends messages.
        size: tokens of the model, where that knows more than the tokeniser has; None for as many.

    Raises:
        ImportError: the library is missing.
        ValueError: a tokeniser without an end-of-sequence token, a size below the tokeniser's.
    """

    def __init__(self, source: Any, size: int | None = None) -> None:
        held = _library().AutoTokenizer.from_pretrained(source) if isinstance(source, str) else source
        require(held.eos_token_id is not None, "source", "a tokeniser with an end-of-sequence token", repr(source))
        require(size is None or size >= len(held), "size", f"{len(held)} tokens or more", size)
        self._tokeniser, self.end = held, int(held.eos_token_id)
        self.size = len(held) if size is None else size

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokeniser.encode(text, add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokeniser.decode([token for token in tokens if token != self.end]))
