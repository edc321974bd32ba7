"""Short everyday messages: the grammar that generates them, their vocabulary, and the rule that scores their sentiment."""

from .grammar import MESSAGES, Grammar
from .sentiment import SentimentRule
from .tokens import Tokeniser, WordTokeniser

__all__ = ["MESSAGES", "Grammar", "SentimentRule", "Tokeniser", "WordTokeniser"]
