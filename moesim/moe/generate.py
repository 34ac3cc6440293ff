"""Text from the model: a prompt continued."""

from __future__ import annotations

from moesim.capture import Request
from moesim.moe.serve import serve
from moesim.moe.tokenizer import END_ID, encode
from moesim.moe.weights import Bundle


def generate(bundle: Bundle, prompt: str, *, tokens: int = 64, temperature: float = 0.8, seed: int = 0) -> str:
    """Return the model's continuation of a prompt, of at most `tokens` tokens.

    Parameters
    ----------
    bundle
        From `moesim.moe.load_model`.
    temperature
        Of sampling; 0 takes the likeliest token.
    """
    ids = (END_ID, *encode(bundle.tokenizer, [prompt])[0])
    # the last sample is fed back too, as the trace of a serving engine would have it
    works = serve(bundle.model, [Request(ids, tokens)], slots=1, temperature=temperature, seed=seed)
    fed = [token for step in works for work in step if work.decode for token in work.tokens]
    return str(bundle.tokenizer.decode(fed))
