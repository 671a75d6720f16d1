"""Decode on a GPU: steps of a few fixed shapes, each recorded once as a CUDA graph and then replayed.

A decode step is some hundreds of small kernels; launched one by one, the host is slower than the GPU. So rows are
filled up to a *bucket* of rows and keys to a bucket of places, the step runs on buffers that never move, and nothing in
it asks the GPU for a number. Rows that only fill up write to a spare slot and are cut off.

Without `capture` the same step runs as it is, on any device: that is how tests without a GPU hold it to the reference.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from app.backbone.decoder import Decoder
from app.backbone.decoder_steps import PackedRows
from app.backbone.slot_memory import SlotMemory
from app.backbone.static_steps import Standing, StaticSteps

log = logging.getLogger(__name__)
MOST_GRAPHS = 64  # kept at a time; the one that was not used for longest goes
_FEWEST_KEYS = 64
Step = Callable[[], None]


class StaticDecode:
    """Decode steps of rows in slots 0 to B. `memory` has one slot more than `slots`: the spare one.

    `capture` turns a step into something that repeats it; None runs each step as it is.
    """

    def __init__(
        self,
        decoder: Decoder,
        memory: SlotMemory,
        *,
        slots: int,
        capture: Callable[[Step], Step] | None = None,
        most: int = MOST_GRAPHS,
    ) -> None:
        device = decoder.device
        self._decoder, self._memory, self._steps = decoder, memory, StaticSteps()
        self._slots, self._capture, self._most = slots, capture, most
        self._graphs: OrderedDict[tuple[int, int], Step] = OrderedDict()
        # What a step reads and writes, at fixed addresses: token, length and slot of each row; logits.
        self._token, self._length, self._slot = torch.zeros(3, slots, dtype=torch.int64, device=device)
        self._numbers = torch.arange(slots, device=device)
        self._logits = torch.empty(slots, decoder.vocabulary, dtype=decoder.dtype, device=device)

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """(rows, keys) of the steps that are recorded, the one used last at the end."""
        return list(self._graphs)

    def __call__(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """As `Runner.decode`: logits [B, V] after feeding `tokens` [B] to rows of `lengths` [B] tokens."""
        count = tokens.shape[0]
        rows, keys = row_bucket(count, self._slots), key_bucket(longest + 1, self._memory.places)
        self._token[:count], self._length[:count], self._slot[:count] = tokens, lengths, self._numbers[:count]
        if rows > count:
            self._token[count:rows], self._length[count:rows], self._slot[count:rows] = 0, 0, self._slots
        self._run(rows, keys)
        return self._logits[:count].clone()  # the next step writes there

    def _run(self, rows: int, keys: int) -> None:
        if (rows, keys) not in self._graphs and self._capture is not None:
            self._record(rows, keys, self._capture)
        if self._capture is None:
            self._step(rows, keys)
        else:
            self._graphs.move_to_end((rows, keys))
            self._graphs[rows, keys]()

    def _record(self, rows: int, keys: int, capture: Callable[[Step], Step]) -> None:
        try:
            self._graphs[rows, keys] = capture(lambda: self._step(rows, keys))
        except torch.OutOfMemoryError:
            raise  # smaller steps may do
        except RuntimeError as error:
            log.warning("decode steps cannot be recorded here and run unrecorded", extra={"error": repr(error)})
            self._capture = None
            self._graphs.clear()
            return
        if len(self._graphs) > self._most:  # after the capture: the graphs' common memory is never without an owner
            self._graphs.popitem(last=False)

    def _step(self, rows: int, keys: int) -> None:
        decoder, length = self._decoder, self._length[:rows]
        places = torch.stack((length, self._slot[:rows], length), 1)
        standing = Standing.of(length, self._memory.heads, keys, decoder.dtype)
        x = decoder.embedding(self._token[:rows])
        packed = PackedRows(places, places, (), standing)  # what each row sees is in its mask
        self._logits[:rows] = decoder.run(x, packed, self._memory, steps=self._steps)


class CudaCapture:
    """Records a step as a CUDA graph. All graphs share one memory pool: what outlives a step lies outside of it."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Runs the step once (libraries set themselves up, and kernels are chosen) and records it; rows may be fed
        twice, since a token fed twice is written to the same place."""
        # cuDNN's attention plans each new shape on the host, and flash attention takes no mask.
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                step()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            pool, self._pool = self._pool, torch.cuda.graph_pool_handle()  # a failed capture spoils its pool
            # Other threads may take memory meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                step()
            self._pool = pool
        return graph.replay


def capture_for(device: torch.device) -> CudaCapture | None:
    """How steps are recorded on `device`, if they can be."""
    return CudaCapture(device) if device.type == "cuda" else None


def row_bucket(count: int, slots: int) -> int:
    """The next power of two, at most `slots`."""
    return min(1 << (count - 1).bit_length(), slots)


def key_bucket(keys: int, places: int) -> int:
    """`keys` rounded up to a multiple of 64 or of a quarter of the power of two below: at most a quarter too many (or
    63), and few buckets however long the rows; at most `places`."""
    part = max(_FEWEST_KEYS, 1 << max(0, (keys - 1).bit_length() - 3))
    return min(-(-keys // part) * part, places)
