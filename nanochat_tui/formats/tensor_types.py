"""The one table of tensor types: id, name, block size, and how its blocks become numbers and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats import plain_blocks as plain
from nanochat_tui.formats import ternary_blocks as ternary
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.plain_blocks import Blocks, Values
from nanochat_tui.formats.ternary_blocks import Codes, Scales

Element = TypeVar("Element", bound=np.generic)
_HALF_EXPONENT: Final = np.uint16(0x7C00)
"""All ones in the exponent of a float16 mean infinity or NaN."""


CodeOrder = Literal["", "sequential", "strided", "strided, highest first"]
"""sequential: four consecutive codes in a byte, the lowest bits first. strided: byte m of 32 has codes m, 32 + m,
64 + m and 96 + m, the first in the lowest or in the highest bits."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """One way to store numbers in blocks that run along a tensor's last axis.

    `block_elements` numbers take `block_bytes` bytes; both are 0 for a type whose layout is not known (such a
    tensor can be described but not decoded). `decoder` and `encoder` are None where the project has none.
    `split` and `join` exist for ternary types with a scale in every block only.

    A type whose numbers depend on something said once per tensor (I2_S: its scale) has that in `tail_bytes` bytes
    behind the blocks; it has a `tail_decoder` of blocks and tail, and its `encoder` takes the whole tensor.
    """

    id: int
    name: str
    block_elements: int
    block_bytes: int
    decoder: Callable[[Blocks], Values] | None = None
    encoder: Callable[[Values], Blocks] | None = None
    split: Callable[[Blocks], tuple[Codes, Scales]] | None = None
    join: Callable[[Codes, Scales], Blocks] | None = None
    max_code: int = 3
    """Largest ternary code that the layout can hold."""
    scales_at: tuple[int, ...] = ()
    """Where in a block its float16 scales (and minimums) begin, in bytes; NaN or infinity there spoils the block."""
    tail_bytes: int = 0
    tail_decoder: Callable[[Blocks, Blocks], Values] | None = None
    code_order: CodeOrder = ""
    """In which order a block packs codes of two bits; "" if it does not give two bits to each."""
    codes_at: tuple[int, int] = (0, 0)
    """Begin and end of a block's codes of two bits, in bytes."""
    order_varies: bool = False
    """Whether builds for other machines order the codes otherwise under the same id (see `i2_s_layouts`)."""
    remedy: str = "use a file of this model in a type that can be decoded, such as Q2_0, TQ2_0 or Q8_0"
    """For a type that is not decoded: what to do instead, as the end of a sentence."""

    @property
    def is_known(self) -> bool:
        """Whether the layout is known, so that a tensor's size follows from its shape."""
        return self.block_elements > 0

    @property
    def is_ternary(self) -> bool:
        """Whether blocks are codes, meaning −1 to 1 (or 2, or never 0), and one float16 scale."""
        return self.split is not None

    @property
    def has_tensor_scale(self) -> bool:
        """Whether codes share one float32 scale, which stands in the tensor's tail, instead of one per block."""
        return self.tail_decoder is not None

    @property
    def has_trits(self) -> bool:
        """Whether a tensor is stored as codes and scales, per block (`is_ternary`) or one for all."""
        return self.is_ternary or self.has_tensor_scale

    def tensor_scale(self, tail: Blocks) -> np.float32:
        """Return the scale in the tail, uint8 [tail_bytes], of a type with `has_tensor_scale`; it may be NaN."""
        return np.float32(np.ascontiguousarray(tail[:4]).view("<f4")[0])

    @property
    def is_decodable(self) -> bool:
        """Whether the project can turn the type into numbers."""
        return self.decoder is not None or self.tail_decoder is not None

    @property
    def refusal(self) -> str:
        """Why a tensor of this type is not decoded, and what to do, as the end of a sentence that names a tensor."""
        if self.name == f"type {self.id}":
            return f"the unknown type {self.id}; {self.remedy}"
        return f"type {self.name} (id {self.id}), which cannot be decoded; {self.remedy}"

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per element without the tail; 0.0 if the layout is not known."""
        return 8 * self.block_bytes / self.block_elements if self.is_known else 0.0

    def nbytes(self, elements: int) -> int:
        """Return the bytes of a tensor of `elements` numbers. Raises FormatError unless they fill whole blocks."""
        if not self.is_known or elements % self.block_elements:
            raise FormatError(f"{elements} elements are not a whole number of {self.name} blocks")
        return elements // self.block_elements * self.block_bytes + self.tail_bytes

    def decode(self, blocks: Blocks, tail: Blocks | None = None) -> Values:
        """Turn uint8 [n_blocks, block_bytes] into float32 [n_blocks, block_elements].

        A type with a tail needs it, uint8 [tail_bytes], even for a part of the blocks.
        Raises FormatError if the project cannot decode this type, or the shape is wrong.
        """
        if blocks.dtype != np.uint8:
            raise FormatError(f"blocks of {self.name} are bytes, not {blocks.dtype}")
        if self.is_decodable:
            _checked(blocks, self.block_bytes, self.name)
        if self.tail_decoder is not None:
            if tail is None or tail.shape != (self.tail_bytes,) or tail.dtype != np.uint8:
                raise FormatError(f"blocks of {self.name} mean nothing without the {self.tail_bytes} bytes behind them")
            return self.tail_decoder(blocks, tail)
        if self.decoder is None:
            raise FormatError(f"these blocks are of {self.refusal}")
        return self.decoder(blocks)

    def is_finite(self, blocks: Blocks) -> bool:
        """Whether no number in uint8 [n_blocks, block_bytes] is NaN or infinite: a look at the scales, where there are.

        Raises FormatError as `decode`.
        """
        if self.scales_at:
            return not any(
                (plain.view(blocks[:, at : at + 2], "<u2") & _HALF_EXPONENT == _HALF_EXPONENT).any()
                for at in self.scales_at
            )
        if self.name == "F16":
            return not (plain.view(blocks, "<u2") & _HALF_EXPONENT == _HALF_EXPONENT).any()
        return bool(np.isfinite(self.decode(blocks)).all())

    def encode(self, values: Values) -> Blocks:
        """Turn float32 [n_blocks, block_elements] into uint8 [n_blocks, block_bytes].

        A type with a tail takes a whole tensor and returns all its bytes, uint8 [nbytes].
        Raises FormatError if the project cannot write this type, the shape is wrong or a value does not fit.
        """
        if self.encoder is None:
            raise FormatError(f"tensor type {self.name} (id {self.id}) cannot be written; choose Q8_0, F16 or F32")
        numbers = np.ascontiguousarray(values, dtype=np.float32)
        return self.encoder(_checked(numbers, self.block_elements, self.name))


def _checked(blocks: NDArray[Element], width: int, name: str) -> NDArray[Element]:
    if blocks.ndim != 2 or blocks.shape[1] != width:
        raise FormatError(f"blocks of {name} have shape [n, {width}], not {list(blocks.shape)}")
    return blocks


def _reference(type_id: int, name: str) -> Callable[[Blocks], Values]:
    """Return a decoder by the gguf package, for types that are met but that nothing here computes with."""

    def decode(blocks: Blocks) -> Values:
        from gguf import GGMLQuantizationType, quants

        try:
            values: Values = quants.dequantize(np.ascontiguousarray(blocks), GGMLQuantizationType(type_id))
        except (ValueError, NotImplementedError) as error:  # an older release of the package
            raise FormatError(f"the installed gguf package cannot decode {name}; update it") from error
        return values

    return decode


def _plain(type_id: int, name: str, dtype: str) -> TensorType:
    return TensorType(type_id, name, 1, np.dtype(dtype).itemsize, plain.decode_as(dtype))


def _foreign(type_id: int, name: str, elements: int, size: int, *scales_at: int) -> TensorType:
    return TensorType(type_id, name, elements, size, _reference(type_id, name), scales_at=scales_at)


def _ternary(
    type_id: int,
    name: str,
    elements: int,
    size: int,
    *,
    split: Callable[[Blocks], tuple[Codes, Scales]],
    join: Callable[[Codes, Scales], Blocks],
    quantise: Callable[[Values], tuple[Codes, Scales]] = ternary.absmax_codes,
    max_code: int = 3,
    scale_at: int = 0,
    code_order: CodeOrder = "",
    codes_at: tuple[int, int] = (0, 0),
) -> TensorType:
    return TensorType(
        type_id,
        name,
        elements,
        size,
        decoder=lambda blocks: ternary.weigh(*split(blocks)),
        encoder=lambda values: join(*quantise(values)),
        split=split,
        join=join,
        max_code=max_code,
        scales_at=(scale_at,),
        code_order=code_order,
        codes_at=codes_at,
    )


def _two_bits(type_id: int, name: str, elements: int) -> TensorType:
    """Return a type of a scale and codes of two bits one after another."""
    size = 2 + elements // 4
    order: CodeOrder = "sequential"
    split, join = ternary.split_q2, ternary.join_q2
    return _ternary(type_id, name, elements, size, split=split, join=join, code_order=order, codes_at=(2, size))


def _recognised(type_id: int, name: str, elements: int, size: int, remedy: str) -> TensorType:
    """Return a type that is told by its id, and its size where that is known, in order to be refused by name."""
    return TensorType(type_id, name, elements, size, remedy=remedy)


_ALL: Final = (
    TensorType(0, "F32", 1, 4, plain.decode_as("<f4"), plain.encode_f32),
    TensorType(1, "F16", 1, 2, plain.decode_as("<f2"), plain.encode_f16),
    TensorType(30, "BF16", 1, 2, plain.decode_bf16, plain.encode_bf16),
    TensorType(8, "Q8_0", 32, 34, plain.decode_q8_0, plain.encode_q8_0, scales_at=(0,)),
    _ternary(34, "TQ1_0", 256, 54, split=ternary.split_tq1_0, join=ternary.join_tq1_0, max_code=2, scale_at=52),
    _ternary(
        35,
        "TQ2_0",
        256,
        66,
        split=ternary.split_tq2_0,
        join=ternary.join_tq2_0,
        scale_at=64,
        code_order="strided",
        codes_at=(0, 64),
    ),
    _two_bits(42, "Q2_0", 64),
    _two_bits(42, "Q2_0_g128", 128),
    _two_bits(142, "PQ2_0", 128),
    _ternary(143, "PTQ1_0", 128, 28, split=ternary.split_ptq1_0, join=ternary.join_ptq1_0, max_code=2, scale_at=26),
    _ternary(
        43,
        "STQ1_0",
        256,
        42,
        split=ternary.split_stq1_0,
        join=ternary.join_stq1_0,
        quantise=ternary.sherry_codes,
        max_code=2,
        scale_at=40,
    ),
    _ternary(
        41, "Q1_0", 128, 18, split=ternary.split_q1, join=ternary.join_q1, quantise=ternary.sign_codes, max_code=2
    ),
    TensorType(
        36,
        "I2_S",
        128,
        32,
        encoder=ternary.encode_i2_s,
        tail_bytes=ternary.I2_S_TAIL,
        tail_decoder=ternary.decode_i2_s,
        max_code=2,
        code_order="strided, highest first",
        codes_at=(0, 32),
        order_varies=True,
    ),
    _plain(24, "I8", "i1"),
    _plain(25, "I16", "<i2"),
    _plain(26, "I32", "<i4"),
    _plain(27, "I64", "<i8"),
    _plain(28, "F64", "<f8"),
    _foreign(2, "Q4_0", 32, 18, 0),
    _foreign(3, "Q4_1", 32, 20, 0, 2),
    _foreign(6, "Q5_0", 32, 22, 0),
    _foreign(7, "Q5_1", 32, 24, 0, 2),
    _foreign(10, "Q2_K", 256, 84, 80, 82),
    _foreign(11, "Q3_K", 256, 110, 108),
    _foreign(12, "Q4_K", 256, 144, 0, 2),
    _foreign(13, "Q5_K", 256, 176, 0, 2),
    _foreign(14, "Q6_K", 256, 210, 208),
    _foreign(16, "IQ2_XXS", 256, 66),
    _foreign(17, "IQ2_XS", 256, 74),
    _foreign(18, "IQ3_XXS", 256, 98),
    _foreign(19, "IQ1_S", 256, 50),
    _foreign(20, "IQ4_NL", 32, 18),
    _foreign(21, "IQ3_S", 256, 110),
    _foreign(22, "IQ2_S", 256, 82),
    _foreign(23, "IQ4_XS", 256, 136),
    _foreign(29, "IQ1_M", 256, 56),
    _foreign(39, "MXFP4", 32, 17),
    _foreign(40, "NVFP4", 64, 36),
    _ternary(
        40, "Q1_0_g32", 32, 6, split=ternary.split_q1, join=ternary.join_q1, quantise=ternary.sign_codes, max_code=2
    ),
)

TENSOR_TYPES: Final = MappingProxyType({kind.name: kind for kind in _ALL})
"""Types that can be decoded, by name. Two names can share an id: 42 is `Q2_0`, mainline's groups of 64, and
`Q2_0_g128`, an older fork's; 40 is `NVFP4` and the early forks' `Q1_0_g32`. `STQ1_0` has the id that its pull request
has now; files were also published with 42 and 253."""

FILE_TYPES: Final = MappingProxyType(
    {
        "F32": 0,
        "F16": 1,
        "Q4_0": 2,
        "Q8_0": 7,
        "BF16": 32,
        "TQ1_0": 36,
        "TQ2_0": 37,
        "Q1_0": 40,
        "I2_S": 40,
        "Q2_0": 41,
        "PQ2_0": 141,
    }
)
"""`general.file_type` by the type of most tensors: a hint for other programs, which do not agree on all of them."""
_DISPUTED: Final = frozenset({40, 41, 42})
"""Values of `general.file_type` that mean one thing here and another there."""


def claimed_type(file_type: int) -> str | None:
    """Return the name of the type that `general.file_type` says most tensors have, or None if that is not certain."""
    if file_type in _DISPUTED:
        return None
    return next((name for name, number in FILE_TYPES.items() if number == file_type), None)


_GIVEN_UP: Final = "llama.cpp has given the type up, so quantise the model again"
_TILES: Final = "its bytes depend on the program that made it, so use the I2_S file of the same model"
_IK: Final = "only ik_llama.cpp reads it, so use the model's I2_S or TQ2_0 file"

_RECOGNISED: Final = (
    replace(TENSOR_TYPES["STQ1_0"], id=42),
    replace(TENSOR_TYPES["STQ1_0"], id=253),
    _recognised(31, "Q4_0_4_4", 32, 18, _GIVEN_UP),
    _recognised(32, "Q4_0_4_8", 32, 18, _GIVEN_UP),
    _recognised(33, "Q4_0_8_8", 32, 18, _GIVEN_UP),
    _recognised(36, "IQ4_NL_4_4", 32, 18, _GIVEN_UP),
    _recognised(37, "IQ4_NL_4_8", 32, 18, _GIVEN_UP),
    _recognised(38, "IQ4_NL_8_8", 32, 18, _GIVEN_UP),
)
"""Further meanings of ids, by size."""

_UNSIZED: Final = {
    9: ("Q8_1", "it belongs into a running program and not into a file, so fetch or convert the model again"),
    15: ("Q8_K", "it belongs into a running program and not into a file, so fetch or convert the model again"),
    37: ("I8_S", "it belongs into a running program and not into a file, so fetch or convert the model again"),
    38: ("TL1", _TILES),
    39: ("TL2", _TILES),
    100: ("Q1_58", "it is the original nanochat's, so convert its file with nanochat-tui convert"),
    134: ("IQ1_BN", _IK),
    135: ("IQ2_BN", _IK),
    144: ("PQ1_0", "no published file is known to use it, so use the model's Q1_0 or PQ2_0 file"),
    335: ("IQ2_BN_R4", _IK),
}
"""Types whose layout is not known, with what to do; what an id means when no size above fits it."""

_OPEN_IDS: Final = frozenset({37, 38, 39, 40, 43, 253})
"""Ids that stand for something else too, so that a size which does not fit is no damage."""

_BY_ID: Final[dict[int, list[TensorType]]] = {}
for _kind in (*_ALL, *_RECOGNISED):
    _BY_ID.setdefault(_kind.id, []).append(_kind)


def type_by_id(type_id: int) -> TensorType:
    """Return the usual type of this id; an unknown one gets an entry that can be described but not decoded."""
    meanings = _BY_ID.get(type_id)
    return meanings[0] if meanings else unsized(type_id)


def meanings(type_id: int) -> tuple[TensorType, ...]:
    """Return the types of known size that an id can mean, the usual one first; a reader chooses by bytes."""
    return tuple(_BY_ID.get(type_id, ()))


def may_mean_more(type_id: int) -> bool:
    """Whether an id can also mean a type of unknown size: no `meanings`, or not all of them."""
    return type_id in _OPEN_IDS or type_id not in _BY_ID


def unsized(type_id: int) -> TensorType:
    """Return the type of unknown layout that an id stands for, by name if it has one."""
    found = _UNSIZED.get(type_id)
    if found is None:
        return TensorType(type_id, f"type {type_id}", 0, 0)
    return TensorType(type_id, found[0], 0, 0, remedy=found[1])


def ternary_codes(kind: TensorType, blocks: Blocks) -> tuple[Codes, Scales]:
    """Split ternary blocks without going through floats.

    Parameters: kind, a type with `is_ternary`; blocks uint8 [n_blocks, block_bytes].
    Returns: codes uint8 [n_blocks, block_elements] of 0 to 3, meaning code − 1; scales float16 [n_blocks].
    Raises FormatError if the type is not ternary or the shape is wrong.
    """
    if kind.split is None:
        raise FormatError(f"tensor type {kind.name} is not ternary")
    return kind.split(_checked(blocks, kind.block_bytes, kind.name))


def encode_ternary(kind: TensorType, codes: Codes, scales: Scales) -> Blocks:
    """Put codes and scales together exactly; the inverse of `ternary_codes`.

    Parameters: codes uint8 [n_blocks, block_elements], 0 to `max_code`; scales float16 [n_blocks].
    Returns uint8 [n_blocks, block_bytes]. Raises FormatError for another type, shape, dtype or code, or if
    the type has no place for these codes (Q1_0: a zero; STQ1_0: not one zero in four).
    """
    if kind.join is None:
        raise FormatError(f"tensor type {kind.name} is not ternary")
    _checked(codes, kind.block_elements, kind.name)
    if scales.shape != (len(codes),) or scales.dtype != np.float16 or codes.dtype != np.uint8:
        raise FormatError(f"{kind.name} takes uint8 codes and one float16 scale per block")
    if codes.size and int(codes.max()) > kind.max_code:
        raise FormatError(f"{kind.name} holds codes 0 to {kind.max_code}, not {int(codes.max())}")
    return kind.join(codes, scales)


def encode_ternary_matrix(kind: TensorType, trits: NDArray[np.int8], scales: Scales) -> Blocks:
    """Store a matrix of trits with group scales, exactly or not at all.

    Parameters: trits int8 [..., columns] in −1 to 1; scales float16 [..., columns / group]. A type with
    smaller blocks than the group repeats the scale; one with larger needs the groups of each block to agree.
    Returns uint8 [n_blocks, block_bytes]. Raises FormatError if the type cannot hold the matrix exactly.
    """
    groups = scales.shape[-1] if scales.ndim else 0
    if trits.shape[:-1] != scales.shape[:-1] or not groups or trits.shape[-1] % groups:
        raise FormatError(f"scales of shape {list(scales.shape)} do not divide trits of shape {list(trits.shape)}")
    columns, group, block = trits.shape[-1], trits.shape[-1] // groups, kind.block_elements
    if trits.size and (int(trits.min()) < -1 or int(trits.max()) > 1):
        raise FormatError("a trit is outside −1 to 1")
    if block == 0 or columns % block or (block % group and group % block):
        raise FormatError(f"{kind.name} cannot hold {columns} columns in groups of {group}")
    if group >= block:
        per_block = np.repeat(scales.reshape(-1), group // block)
    else:
        grouped = scales.reshape(-1, block // group)
        if (grouped != grouped[:, :1]).any():
            raise FormatError(f"{kind.name} has one scale per {block} weights, and groups of {group} differ")
        per_block = np.ascontiguousarray(grouped[:, 0])
    return encode_ternary(kind, (trits.reshape(-1, block) + 1).astype(np.uint8), per_block)


def ternary_matrix(kind: TensorType, blocks: Blocks, shape: tuple[int, ...]) -> tuple[NDArray[np.int8], Scales]:
    """Return what `encode_ternary_matrix` stored: values −1 to 2 int8 of `shape`, one scale per block.

    scales is float16 [..., columns / block_elements]. Raises FormatError if the type is not ternary.
    """
    codes, scales = ternary_codes(kind, blocks)
    trits = codes.astype(np.int8) - np.int8(1)
    return trits.reshape(shape), scales.reshape(*shape[:-1], shape[-1] // kind.block_elements)
