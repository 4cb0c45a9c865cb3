"""Choose the next token: penalties, biases, a mask, temperature, top-k, typical-p, top-p, min-p, seeded draw.

What may not be sampled loses its whole probability before the cuts, so they cut what is left. The order is penalties,
biases, mask, temperature, then the four cuts on the resulting distribution. Exactness before
speed, but few logits are looked at: block maxima rule out most of the vocabulary, and a heap hands out the
rest from the most to the least likely (ties: smaller id first) until the cuts stop it. Log-probabilities
are those of the unmodified distribution.
"""

from __future__ import annotations

import math

import numpy as np

from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.statistics import (
    block_maxima,
    block_weights,
    copy_floats,
    forbid,
    largest_of,
    sum_of_blocks,
)
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import (
    f32_from_bits,
    get,
    load_f32,
    load_i32,
    load_i64,
    put,
    store_f32,
    store_i32,
    store_i64,
)

LEAST = np.float32(-3.0e38)
"""What every logit but that of padding reaches."""
SMALL_K = 256
"""Largest k for which the k-th largest block maximum is looked up by insertion."""


@compiled("i:iii")
def ranks_before(logits, a, b):
    """Return whether token a comes before token b: larger logit, or equal and the smaller id."""
    la, lb = load_f32(logits + a * 4), load_f32(logits + b * 4)
    return la > lb or (la == lb and a < b)


@compiled("v:iiii")
def sift(heap, n, i, logits):
    """Restore the heap (int32 ids, best first) below place i."""
    item = load_i32(heap + i * 4)
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and ranks_before(logits, load_i32(heap + child * 4 + 4), load_i32(heap + child * 4)):
            child += 1
        if not ranks_before(logits, load_i32(heap + child * 4), item):
            break
        store_i32(heap + i * 4, load_i32(heap + child * 4))
        i = child
    store_i32(heap + i * 4, item)


@compiled("i:iii")
def take_best(heap, n, logits):
    """Remove and return the best of n ids; the heap then has n - 1."""
    best = load_i32(heap)
    store_i32(heap, load_i32(heap + (n - 1) * 4))
    sift(heap, n - 1, 0, logits)
    return best


@compiled("i:iiif")
def keep_largest(values, n, most, value):
    """Put a value into a list of n, the largest first, of which at most `most` are kept; return how many there are."""
    if n == most and value <= load_f32(values + (n - 1) * 4):
        return n
    place = n if n < most else most - 1
    while place > 0 and load_f32(values + (place - 1) * 4) < value:
        store_f32(values + place * 4, load_f32(values + (place - 1) * 4))
        place -= 1
    store_f32(values + place * 4, value)
    return min(n + 1, most)


@compiled("f:iiii")
def kth_maximum(maxima, blocks, k, sorted_out):
    """Return the k-th largest of the block maxima, k <= blocks; at least k logits are as large."""
    n = 0
    for block in range(blocks):
        n = keep_largest(sorted_out, n, k, load_f32(maxima + block * 4))
    return load_f32(sorted_out + (n - 1) * 4)


@compiled("i:Miifi")
def collect(model, logits, maxima, threshold, heap):
    """Fill the heap with the ids whose logits reach the threshold; return their number."""
    vocab = get(model, s.VOCAB)
    n = 0
    for block in range(get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK):
        if load_f32(maxima + block * 4) >= threshold:
            for token in range(block * s.STATISTICS_BLOCK, min(vocab, (block + 1) * s.STATISTICS_BLOCK)):
                if load_f32(logits + token * 4) >= threshold:
                    store_i32(heap + n * 4, token)
                    n += 1
    for i in range(n // 2 - 1, -1, -1):
        sift(heap, n, i, logits)
    return n


@compiled("f:Miii")
def threshold_of_best(model, maxima, k, scratch):
    """Return a logit that at least k tokens reach and, for a small k, not many more."""
    blocks = get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK
    if k <= min(SMALL_K, blocks):
        # a screened block's maximum is -infinity, and nothing in it is looked at
        return max(LEAST, kth_maximum(maxima, blocks, k, scratch))
    return LEAST


@compiled("d:ii")
def uniform(seed, draw):
    """Return the draw-th number in [0, 1) of the stream `seed` (SplitMix64, so that any draw stands alone)."""
    z = np.uint64(seed) + np.uint64(draw + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled("v:TS")
def penalise(thread, sequence):
    """Apply the penalties to every token seen, in the thread's own copy of the logits.

    Repetition first: positive logits are divided, others multiplied. Then what was generated loses the presence
    penalty once and the frequency penalty for every time.
    """
    work = get(thread, s.WORK_LOGITS)
    penalty = f32_from_bits(get(sequence, s.PENALTY_BITS))
    presence, frequency = f32_from_bits(get(sequence, s.PRESENCE_BITS)), f32_from_bits(get(sequence, s.FREQUENCY_BITS))
    for i in range(get(sequence, s.SEEN_COUNT)):
        token = load_i32(get(sequence, s.SEEN_IDS) + i * 4)
        place = work + token * 4
        value = load_f32(place)
        value = value / penalty if value > 0 else value * penalty
        generated = load_i32(get(sequence, s.SEEN_TIMES) + token * 4) - 1
        if generated > 0:
            value -= presence + frequency * np.float32(generated)
        store_f32(place, value)


@compiled("i:S")
def alters_logits(sequence):
    """Return whether a sequence's settings change logits before they are drawn from."""
    if get(sequence, s.SEEN_COUNT) > 0 or get(sequence, s.BIAS_COUNT) > 0 or get(sequence, s.MASKS) != 0:
        return 1
    return 0


@compiled("v:MTSii")
def alter(model, thread, sequence, row, logits):
    """Leave logits with penalties, biases and the mask of that row applied in the thread's own copy, and its maxima."""
    work, padded = get(thread, s.WORK_LOGITS), get(model, s.VOCAB_PADDED)
    blocks = padded // s.STATISTICS_BLOCK
    copy_floats(logits, work, padded)
    penalise(thread, sequence)
    for i in range(get(sequence, s.BIAS_COUNT)):
        place = work + load_i64(get(sequence, s.BIAS_IDS) + i * 8) * 4
        store_f32(place, load_f32(place) + load_f32(get(sequence, s.BIASES) + i * 4))
    if get(sequence, s.MASKS) != 0:
        forbid(work, get(sequence, s.MASKS) + row * get(sequence, s.MASK_BYTES), blocks)
    block_maxima(work, 0, blocks, get(thread, s.WORK_MAXIMA))


@compiled("i:Miif")
def first_largest(model, logits, maxima, largest):
    """Return the smallest id with the largest logit."""
    for block in range(get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK):
        if load_f32(maxima + block * 4) == largest:
            for token in range(block * s.STATISTICS_BLOCK, (block + 1) * s.STATISTICS_BLOCK):
                if load_f32(logits + token * 4) == largest:
                    return token
    return 0


@compiled("d:MTifd")
def total_weight(model, thread, logits, largest, inverse):
    """Leave every block's sum of exp((logit - largest) · inverse) in the HEAP buffer; return the total."""
    blocks = get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK
    block_weights(logits, blocks, get(thread, s.HEAP), largest, np.float32(inverse))
    total = 0.0
    for block in range(blocks):
        total += np.float64(load_f32(get(thread, s.HEAP) + block * 4))
    return total


@compiled("i:MTifdd")
def draw_from_all(model, thread, logits, largest, inverse, r):
    """Draw from the whole softmax of logits · inverse; r in [0, 1)."""
    bound = r * total_weight(model, thread, logits, largest, inverse)
    blocks, sums = get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK, get(thread, s.HEAP)
    mass, block = 0.0, 0
    while block < blocks - 1 and mass + np.float64(load_f32(sums + block * 4)) <= bound:
        mass += np.float64(load_f32(sums + block * 4))
        block += 1
    chosen = 0
    for token in range(block * s.STATISTICS_BLOCK, min(get(model, s.VOCAB), (block + 1) * s.STATISTICS_BLOCK)):
        weight = math.exp(np.float64(load_f32(logits + token * 4) - largest) * inverse)
        mass += weight
        if weight > 0.0:
            chosen = token
        if mass > bound:
            break
    return chosen


@compiled("f:Mifdddd")
def threshold_of_cuts(model, logits, largest, inverse, top_p, min_p, total):
    """Return a logit below which neither the nucleus nor min-p keeps any token.

    Tokens lighter than (1 - top_p) · total / vocabulary weigh together less than what top-p leaves out, and
    the nucleus has all heavier ones before them.
    """
    least = min_p
    if top_p < 1.0:
        least = max(least, (1.0 - top_p) * total / np.float64(get(model, s.VOCAB)))
    if least <= 0.0:
        return LEAST
    return np.float32(np.float64(largest) + math.log(least) / inverse - 1e-3)


@compiled("i:iiiid")
def keep_typical(heap, n, weights, taken, share):
    """Keep the tokens whose surprise is nearest to the entropy (Meister et al. 2022); return how many.

    Of `taken` tokens, the likeliest first, with float32 weights, as many are kept as reach `share` of their mass, and
    moved to the front. Surprise grows from the first to the last, so those kept lie side by side.
    """
    total, moment = 0.0, 0.0
    for i in range(taken):
        weight = np.float64(load_f32(weights + i * 4))
        if weight > 0.0:
            total += weight
            moment += weight * math.log(weight)
    # surprise less entropy is mean - log(weight), whatever the weights add up to
    mean, first = moment / total, 0
    while first < taken and math.log(max(1e-45, np.float64(load_f32(weights + first * 4)))) > mean:
        first += 1
    end, mass = first, 0.0
    while (end == first or mass < share * total) and (first > 0 or end < taken):
        above, below = math.inf, math.inf
        if first > 0:
            above = math.log(np.float64(load_f32(weights + (first - 1) * 4))) - mean
        if end < taken and load_f32(weights + end * 4) > 0:
            below = mean - math.log(np.float64(load_f32(weights + end * 4)))
        if above == math.inf and below == math.inf:
            break
        if above <= below:
            first -= 1
            mass += np.float64(load_f32(weights + first * 4))
        else:
            mass += np.float64(load_f32(weights + end * 4))
            end += 1
    for i in range(end - first):
        store_f32(weights + i * 4, load_f32(weights + (first + i) * 4))
        store_i32(heap + (n - 1 - i) * 4, load_i32(heap + (n - 1 - first - i) * 4))
    return end - first


@compiled("d:iiiiifd")
def take_next(heap, n, taken, weights, logits, largest, inverse):
    """Take the best of what is left of a heap of n ids and keep it right behind the rest; return its weight.

    Token number i, the likeliest being 0, then stands at place n - 1 - i, its float32 weight at place i of `weights`.
    """
    token = take_best(heap, n - taken, logits)
    store_i32(heap + (n - taken - 1) * 4, token)
    weight = math.exp(np.float64(load_f32(logits + token * 4) - largest) * inverse)
    store_f32(weights + taken * 4, np.float32(weight))
    return weight


@compiled("i:MTSiifdd")
def draw_from_best(model, thread, sequence, logits, maxima, largest, inverse, r):
    """Draw from what top-k, typical-p, top-p (of the mass that those left) and min-p leave; r in [0, 1)."""
    heap, weights = get(thread, s.HEAP), get(thread, s.ALTERNATIVES_HEAP)
    vocab = get(model, s.VOCAB)
    k = get(sequence, s.TOP_K) if 0 < get(sequence, s.TOP_K) < vocab else 0
    top_p = np.float64(f32_from_bits(get(sequence, s.TOP_P_BITS)))
    min_p = np.float64(f32_from_bits(get(sequence, s.MIN_P_BITS)))
    typical_p = np.float64(f32_from_bits(get(sequence, s.TYPICAL_P_BITS)))
    total, threshold = 0.0, LEAST
    if k > 0:
        threshold = threshold_of_best(model, maxima, k, heap)
    elif typical_p >= 1.0:
        if top_p < 1.0:
            total = total_weight(model, thread, logits, largest, inverse)
        threshold = threshold_of_cuts(model, logits, largest, inverse, top_p, min_p, total)
    n = collect(model, logits, maxima, threshold, heap)
    if n == 0:
        return 0
    limit = min(n, k) if k > 0 else n
    taken, kept, mass = 0, 0, 0.0
    if k > 0 or typical_p < 1.0:
        # the total is that of these tokens alone, so all of them are taken before the first is kept
        while taken < limit:
            total += take_next(heap, n, taken, weights, logits, largest, inverse)
            taken += 1
        if typical_p < 1.0:
            limit, total = keep_typical(heap, n, weights, limit, typical_p), 0.0
            for i in range(limit):
                total += np.float64(load_f32(weights + i * 4))
    while kept < limit:
        if taken <= kept:
            take_next(heap, n, taken, weights, logits, largest, inverse)
            taken += 1
        weight = np.float64(load_f32(weights + kept * 4))
        if kept > 0 and weight < min_p * np.float64(load_f32(weights)):
            break
        mass += weight
        kept += 1
        if top_p < 1.0 and mass >= top_p * total:
            break
    bound, reached = r * mass, 0.0
    for i in range(kept):
        reached += np.float64(load_f32(weights + i * 4))
        if reached > bound:
            return load_i32(heap + (n - 1 - i) * 4)
    return load_i32(heap + (n - kept) * 4)


@compiled("i:MTSiif")
def draw(model, thread, sequence, logits, maxima, top):
    """Return the next token's id by the sequence's temperature and cuts; top: the largest logit."""
    temperature = f32_from_bits(get(sequence, s.TEMPERATURE_BITS))
    if temperature <= 0 or get(sequence, s.TOP_K) == 1:
        return first_largest(model, logits, maxima, top)
    inverse = 1.0 / np.float64(temperature)
    r = uniform(get(sequence, s.SEED), get(sequence, s.DRAW))
    put(sequence, s.DRAW, get(sequence, s.DRAW) + 1)
    cut = 0 < get(sequence, s.TOP_K) < get(model, s.VOCAB)
    if (
        not cut
        and f32_from_bits(get(sequence, s.TOP_P_BITS)) >= 1.0
        and f32_from_bits(get(sequence, s.MIN_P_BITS)) <= 0.0
        and f32_from_bits(get(sequence, s.TYPICAL_P_BITS)) >= 1.0
    ):
        return draw_from_all(model, thread, logits, top, inverse, r)
    return draw_from_best(model, thread, sequence, logits, maxima, top, inverse, r)


@compiled("i:MTSiiif")
def choose(model, thread, sequence, row, logits, maxima, largest):
    """Return the next token's id by the sequence's settings; row: how many draft tokens stand before it."""
    if alters_logits(sequence) == 0:
        return draw(model, thread, sequence, logits, maxima, largest)
    alter(model, thread, sequence, row, logits)
    logits, maxima = get(thread, s.WORK_LOGITS), get(thread, s.WORK_MAXIMA)
    top = largest_of(maxima, get(model, s.BLOCKS_PADDED))
    token = draw(model, thread, sequence, logits, maxima, top)
    # a draw of 0, or rounding in sums of weights, may end at a token without any weight
    return token if load_f32(logits + token * 4) >= LEAST else first_largest(model, logits, maxima, top)


@compiled("i:MTSiii")
def sample(model, thread, sequence, place, row, logits):
    """Choose a sequence's next token from the logits (row `place` of the job's) and write what is told of it.

    row: how many draft tokens stand before it.

    `sequence`: its row of the table; thread: whose scratch is used. Returns the token.
    """
    stride, index = get(model, s.BLOCKS_PADDED) * 4, get(sequence, s.PRODUCED)
    maxima, sums = get(model, s.BLOCK_MAXIMA) + place * stride, get(model, s.BLOCK_SUMS) + place * stride
    largest = largest_of(maxima, get(model, s.BLOCKS_PADDED))
    normaliser = 0.0
    if get(sequence, s.LOGPROBS) == 1:
        total = sum_of_blocks(maxima, sums, get(model, s.BLOCKS_PADDED), largest)
        normaliser = np.float64(largest) + math.log(np.float64(total))
    token = choose(model, thread, sequence, row, logits, maxima, largest)
    store_i64(get(sequence, s.OUT_IDS) + index * 8, token)
    store_f32(
        get(sequence, s.OUT_LOGPROBS) + index * 4, np.float32(np.float64(load_f32(logits + token * 4)) - normaliser)
    )
    alternatives = min(get(sequence, s.ALTERNATIVES), get(model, s.VOCAB))
    if alternatives > 0:
        heap = get(thread, s.HEAP)
        threshold = threshold_of_best(model, maxima, alternatives, heap)
        n = collect(model, logits, maxima, threshold, heap)
        for i in range(min(alternatives, n)):
            best = take_best(heap, n - i, logits)
            place = index * get(sequence, s.ALTERNATIVES) + i
            store_i64(get(sequence, s.OUT_ALTERNATIVE_IDS) + place * 8, best)
            logprob = np.float64(load_f32(logits + best * 4)) - normaliser
            store_f32(get(sequence, s.OUT_ALTERNATIVE_LOGPROBS) + place * 4, np.float32(logprob))
    if get(sequence, s.SEEN_TIMES) != 0:
        times = get(sequence, s.SEEN_TIMES) + token * 4
        if load_i32(times) == 0:
            store_i32(times, 1)
            store_i32(get(sequence, s.SEEN_IDS) + get(sequence, s.SEEN_COUNT) * 4, token)
            put(sequence, s.SEEN_COUNT, get(sequence, s.SEEN_COUNT) + 1)
        store_i32(times, load_i32(times) + 1)
    put(sequence, s.PRODUCED, index + 1)
    return token
