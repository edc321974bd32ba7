"""Causal language models of the ``transformers`` library as followers (extra ``transformers``).

    tokeniser = HuggingFaceTokeniser("gpt2")
    env = HappyTextEnv(max_tokens=32, prompt_words=2, tokeniser=tokeniser)
    follower = writer(kl=0.1, language_model=partial(HuggingFaceModel, "gpt2"))

``transformers`` looks up a name (a folder, or on its hub, online); a config makes a model with random weights. Dropout
is off, since PPO compares probabilities before and after an update, which must not differ by chance. We test with a tiny random
GPT-2 on the grammar's vocabulary; no pretrained one has been tried.
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
    """A causal language model of the ``transformers`` library.

    Args:
        source: name or folder of a pretrained model, or a ``PretrainedConfig`` for random weights.

    Raises:
        ImportError: the library is not installed.
        ValueError: the model has no output embeddings, which turn its states into logits.
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
        """Set the mode, but keep dropout off."""
        super().train(False)
        return self

    def hidden(self, tokens: Tensor) -> Tensor:
        return self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)  # type: ignore[no-any-return]


class HuggingFaceTokeniser:
    """A tokeniser of the ``transformers`` library, for ``HappyTextEnv``.

    Args:
        source: name, folder or tokeniser; its end-of-sequence token begins and ends messages.
        size: vocabulary size of the model, where larger than the tokeniser's; None for the same size.

    Raises:
        ImportError: the library is not installed.
        ValueError: the tokeniser has no end-of-sequence token, or ``size`` is below its own.
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
