"""Places in the int64 tables that describe a model, a job and a thread to the compiled program.

Nothing here imports Numba: a warm start needs the places, not the compiler.
Everything the program touches is reached by address through these tables, so that one call from Python
passes two arguments and needs no conversion. Addresses are of buffers that the Python side keeps alive.
"""

from __future__ import annotations

# ---- MODEL: shape and shared buffers, one table per loaded model
DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HEAD_PADDED, HIDDEN, VOCAB, VOCAB_PADDED, STREAMS = range(10)
DIM_PADDED, HIDDEN_PADDED, QKV_STRIDE, THREADS, CONTROL, LAYER_TABLE, THREAD_TABLE, JOB = range(10, 18)
FLOAT_ACTIVATIONS, EPSILON_BITS, QUERY_SCALE_BITS, TILE, QUERIES, GROUP = range(18, 24)
TABLE_KIND, TABLE_WEIGHTS, TABLE_SCALES, TABLE_BIAS = range(24, 28)
EMBEDDING_KIND, EMBEDDING_WEIGHTS, EMBEDDING_SCALES, FINAL_NORM, FINAL_MIX, ROPE_TABLE = range(28, 34)
QKV, ATTENTION, PROJECTION, GATE_UP, PRODUCT = range(34, 39)
HEAD_X8, HEAD_INIT, HEAD_SCALE, HEAD_FLOAT, LOGITS, BLOCK_MAXIMA, BLOCK_SUMS = range(39, 46)
WORK_LOGITS, WORK_MAXIMA, HEAP, ALTERNATIVES_HEAP, BLOCKS_PADDED = range(46, 51)
MODEL_SLOTS = 64

# ---- kinds of matrix
KIND_Q8, KIND_F32, KIND_F16 = range(3)

# ---- LAYER: one row per block
QKV_WEIGHTS, QKV_SCALES, OUTPUT_WEIGHTS, OUTPUT_SCALES, GATE_UP_WEIGHTS, GATE_UP_SCALES = range(6)
DOWN_WEIGHTS, DOWN_SCALES, ATTENTION_NORM, FFN_NORM, ATTENTION_MIX, FFN_MIX = range(6, 12)
LAYER_SLOTS = 16

# ---- THREAD: private buffers, one row per thread
X, MIXED, X8, INIT, SCALE, SCORES, HEAD_OUT, FLOATS = range(8)
THREAD_SLOTS = 16

# ---- CONTROL: shared between threads, each value on a cache line of its own (64 bytes = 8 slots)
SEQUENCE, BARRIER_COUNT, BARRIER_GENERATION, STARTED = 0, 8, 16, 24
CONTROL_SLOTS = 32

# ---- JOB: what to run now
TOKENS, COUNT, POSITION, WANT, LOGITS_OUT, STEPS, PRODUCED = range(7)
KEYS, VALUES, KEY_STRIDE, VALUE_STRIDE, HEAD_KEY_STRIDE, HEAD_VALUE_STRIDE, HALF_CACHE, CURRENT = range(8, 16)
TEMPERATURE_BITS, TOP_K, TOP_P_BITS, MIN_P_BITS, PENALTY_BITS, SEED, DRAW, ALTERNATIVES = range(16, 24)
OUT_IDS, OUT_LOGPROBS, OUT_ALTERNATIVE_IDS, OUT_ALTERNATIVE_LOGPROBS = range(24, 28)
STOP_IDS, STOP_COUNT, SEEN_TIMES, SEEN_IDS, SEEN_COUNT, GO_ON = range(28, 34)
PRESENCE_BITS, FREQUENCY_BITS = 34, 35
JOB_SLOTS = 48

# ---- WANT: what a job leaves behind
WANT_NOTHING, WANT_SAMPLES, WANT_ALL_LOGITS = range(3)

# ---- layouts shared by packing, tables and kernels
ROW_BLOCK = 16
"""Output rows interleaved in one block of a packed matrix."""
Q8_BLOCK = 32
"""Weights per scale of a Q8_0 table."""
STATISTICS_BLOCK = 64
"""Logits per block maximum: a sampler looks only into blocks whose maximum is large enough."""
MIX_READ, MIX_WRITE, MIX_MATRIX, MIX_FLOATS = 0, 4, 8, 24
"""Offsets (in floats) of one mHC record's coefficients: p [4], H·q [4], H [4, 4]; unused places are zero."""
