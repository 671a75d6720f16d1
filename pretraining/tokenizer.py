"""Byte-level BPE, learned from a sample of the mixture: running text and task text alike, so that answers are words.

`<s>` 0 begins every document, `</s>` 1 ends it, `<pad>` 2 and `<mask>` 3 are kept free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pretraining.documents import Document
from pretraining.errors import WorkError
from pretraining.files import digest_of, write_atomically

SPECIAL = ("<s>", "</s>", "<pad>", "<mask>")
BOS, EOS, PAD, MASK = range(4)
FILE = "tokenizer.json"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of at most `vocabulary` entries, all bytes among them: no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Readers that ask for special tokens get what the model was trained on: a document's begin, and no end.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> str:
    """Write it to `folder`; the digest of what was written."""
    write_atomically(folder / FILE, tokenizer.to_str().encode())
    return digest_of(folder / FILE)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer as packing and scoring use it: `<s>` written in a text is text.

    Raises WorkError if `folder` holds none.
    """
    if not (folder / FILE).is_file():
        raise WorkError(f"{FILE} is not in {folder}: run the stage that writes it")
    tokenizer = Tokenizer.from_file(str(folder / FILE))
    tokenizer.encode_special_tokens = True
    return tokenizer


def for_transformers(folder: Path, context: int, dress: Callable[[Tokenizer], None]) -> PreTrainedTokenizerFast:
    """The tokenizer as a model folder holds it, changed by `dress` to what the model's readers need."""
    tokenizer = Tokenizer.from_file(str(folder / FILE))
    dress(tokenizer)
    roles = dict(zip(("bos_token", "eos_token", "pad_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **roles,
    )


def encode_documents(
    tokenizer: Tokenizer, documents: Sequence[Document]
) -> list[tuple[NDArray[np.uint16], NDArray[np.uint8]]]:
    """Ids and kinds of each document, `<s>` first and `</s>` last; both of these are of the first piece's kind.

    Raises ValueError for a document without pieces.
    """
    if not all(documents):
        raise ValueError("a document has no pieces")
    texts = [piece.text for document in documents for piece in document]
    encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    result = []
    for document in documents:
        ids, kinds = [BOS], [document[0].kind]
        for piece in document:
            piece_ids = next(encoded).ids
            ids += piece_ids
            kinds += [piece.kind] * len(piece_ids)
        result.append((np.array([*ids, EOS], np.uint16), np.array([*kinds, document[0].kind], np.uint8)))
    return result
