"""Short everyday messages: the grammar that makes them, their vocabulary, the rule that scores their sentiment."""

from .grammar import MESSAGES, Grammar
from .sentiment import SentimentRule
from .tokens import Tokeniser, WordTokeniser

__all__ = ["MESSAGES", "Grammar", "SentimentRule", "Tokeniser", "WordTokeniser"]
