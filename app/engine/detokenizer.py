"""Tokens to text, one at a time: whole characters only, and nothing of a stop string.

The concatenation of what `push` and `finish` return is the answer's text, whether it is streamed or not.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.backbone.tokenizer import BackboneTokenizer

_UNFINISHED = "\ufffd"  # what a decoder shows for bytes that do not make a character yet
_CONTEXT = 4  # tokens of the row that tell the decoder whether a space stands before the first new one


class TextStream:
    """`context` are ids of the row's end; `separator` is dropped once from the answer's beginning."""

    def __init__(
        self,
        tokenizer: BackboneTokenizer,
        *,
        context: Sequence[int] = (),
        stop: Sequence[str] = (),
        separator: str = "",
    ) -> None:
        self._tokenizer, self._stop, self._separator = tokenizer, tuple(stop), separator
        self._ids = [index for index in context[-_CONTEXT:] if index >= 0]
        self._shown = len(self._ids)  # ids whose text has been taken
        self._from = 0  # where decoding starts: a few tokens back, for the decoder's own context
        self._held = ""  # text that may still turn into a stop string
        self._begun = False
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that is now certain; may be empty. After a stop string `stopped` is set and nothing more comes."""
        self._ids.append(token)
        return self._release(self._take(final=False), final=False)

    def finish(self) -> str:
        """What was held back."""
        return self._release(self._take(final=True), final=True)

    def _take(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._from : self._shown])
        after = self._tokenizer.decode(self._ids[self._from :])
        if after.endswith(_UNFINISHED) and not final:
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        if not self._begun and text:
            self._begun = True
            text = text.removeprefix(self._separator) if self._separator else text
        self._held += text
        places = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.stopped = True
            out, self._held = self._held[: min(places)], ""
            return out
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
