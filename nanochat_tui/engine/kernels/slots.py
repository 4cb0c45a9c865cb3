"""Places in the int64 tables that describe a model, a job and a thread to the compiled program.

Nothing here imports Numba: a warm start needs the places, not the compiler.
Everything the program touches is reached by address through these tables, so that one call from Python
passes two arguments and needs no conversion. Addresses are of buffers that the Python side keeps alive.
"""

from __future__ import annotations

# ---- MODEL: shape and shared buffers, one table per loaded model
DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HEAD_PADDED, HIDDEN, VOCAB, VOCAB_PADDED, STREAMS = range(10)
DIM_PADDED, HIDDEN_PADDED, QKV_STRIDE, THREADS, CONTROL, QUERY_WIDTH, QUERY_PADDED = range(10, 17)
FLOAT_ACTIVATIONS, EPSILON_BITS, QUERY_SCALE_BITS, TILE, QUERIES, GROUP = range(18, 24)
HEAD_MATRIX, EMBEDDING_MATRIX, ROTATION_BITS, ROTATE_HEAD, ROTATE_EMBEDDING, FINAL_NORM, FINAL_MIX = range(24, 31)
"""ROTATE_*: factors of a signed Walsh-Hadamard transform in blocks of 2^ROTATION_BITS, 0 = none; layers have others."""
QKV, ATTENTION, PROJECTION, GATE_UP, PRODUCT = range(34, 39)
HEAD_X8, HEAD_INIT, HEAD_SCALE, HEAD_FLOAT, LOGITS, BLOCK_MAXIMA, BLOCK_SUMS, BLOCKS_PADDED = range(39, 47)
SMALL, SMALL_STRIDE, ROUTED, ROUTED_STRIDE = range(47, 51)
"""Products of the unrotated, unrounded input: of a recurrence's small matrix, of a router. Strides are bytes."""
SCREEN, SCREEN_BASIS, SCREEN_ROWS, SCREEN_ROW_BYTES, SCREEN_BOUNDS, SCREEN_COLUMNS, SCREEN_CODE = range(51, 58)
"""SCREEN: address of the output table's screen (see `engine.screening`), 0 as long as there is none; BASIS, ROWS: of
its directions and rows. BOUNDS: float32 [row blocks]. COLUMNS: of the screen there may be, 0 if there is never one.
CODE: address of `screen.screened_logits`."""
MODEL_SLOTS = 64

# ---- MATRIX: a record within other tables; what comes first is in `kinds`
MATRIX_FACTORS, MATRIX_BIAS, MATRIX_BLOCKS, MATRIX_WIDTH = range(5, 9)
"""FACTORS, BIAS: float32 [rows] that outputs are multiplied by and that is added, 0 = none. BLOCKS of 16 rows."""

# ---- LAYER: one row per block
ATTENTION_NORM, FFN_NORM, ATTENTION_MIX, FFN_MIX = range(8, 12)
KV_LAYER, WINDOW, ROPE_TABLE, ROTARY, QUERY_NORM, KEY_NORM, ATTENTION_SUB_NORM, FFN_SUB_NORM = range(12, 20)
"""KV_LAYER: its place in a page. WINDOW: positions a query sees, 0 = all. ROTARY: dimensions of a head that RoPE
turns, the table's width. The norms are addresses, 0 = none: of each query and key head (before RoPE), of attention's
output, of the feed-forward product."""
QKV_MATRIX, OUTPUT_MATRIX, GATE_UP_MATRIX, DOWN_MATRIX, SMALL_MATRIX, ROUTER_MATRIX = range(24, 72, 8)
ACTIVATION, CLAMP_BITS, GATED, RECURRENT = range(72, 76)
ROTATE_INPUT, ROTATE_OUTPUT, ROTATE_FFN, ROTATE_DOWN = range(76, 80)
EXPERTS, EXPERTS_USED, UP_BYTES, UP_SCALE_BYTES, DOWN_BYTES, DOWN_SCALE_BYTES = range(80, 86)
"""BYTES: of one expert's part of the stacked matrices and of their scales."""
KEY_HEADS, VALUE_HEADS, STATE_WIDTH, TAPS, CHANNELS, CONVOLUTION, STEP, DECAY, STATE_NORM = range(86, 95)
STATE_OFFSET, GROUPED = range(95, 97)
"""Of a recurrent layer. CONVOLUTION: float32 [taps][channels]. STEP, DECAY, STATE_NORM: addresses. STATE_OFFSET: bytes
into a sequence's state, where are [taps - 1][channels], then [value heads][width][width]. GROUPED: 1 puts output
heads in the order (key head, repeat)."""
LAYER_SLOTS = 104

# ---- ACTIVATION
SILU, RELU2 = range(2)

# ---- THREAD: private buffers, one row per thread
X, MIXED, X8, INIT, SCALE, QUERY, STATE, LIMITS, WEIGHTS = range(9)
WORK_LOGITS, WORK_MAXIMA, HEAP, ALTERNATIVES_HEAP, SUMS, DELTA = range(9, 15)
CHOSEN, CHOSEN_WEIGHTS, EXPERT_MATRIX, ANSWER = range(15, 19)
SCREEN_READ, SCREEN_PASSES = range(22, 24)
"""Counts: rows of the output table that were multiplied although it was screened, and screened passes."""
THREAD_SLOTS = 24

# ---- CONTROL: shared between threads, each value on a cache line of its own (64 bytes = 8 slots)
SEQUENCE, BARRIER_COUNT, BARRIER_GENERATION, STARTED = 0, 8, 16, 24
CONTROL_SLOTS = 32

# ---- JOB: what to run now
ROWS, COUNT, WANTED, LOGITS_OUT, SEQUENCES, SEQUENCE_COUNT = range(6)
KV_KIND, VALUE_OFFSET, KEY_SCALE_OFFSET, VALUE_SCALE_OFFSET, HEAD_KV_BYTES, LAYER_KV_BYTES = range(6, 12)
ONLY_SEQUENCES = 12
"""1: the rows are not given, they are the next pass of every sequence."""
JOB_LOGPROBS = 13
"""1: log-probabilities are wanted of one of the sequences."""
JOB_SLOTS = 16

# ---- ROW: one token of one sequence. LOGITS_PLACE: row of the logits buffer that is to hold its logits, or -1
# ROW_STATE: address of the sequence's recurrent state, 0 = none
TOKEN, POSITION, PAGES, LOGITS_PLACE, ROW_STATE = range(5)
ROW_SLOTS = 8

# ---- SEQUENCE: a reply being sampled in a job, one row of the job's table each
SEQUENCE_PAGES, SEQUENCE_POSITION, SEQUENCE_PLACE, SEQUENCE_ROWS, STEPS, PRODUCED, ACTIVE, LIMIT = range(8)
"""POSITION: of the next token to be run. PLACE, ROWS: its logits in the last pass. LIMIT: positions it may write."""
TEMPERATURE_BITS, TOP_K, TOP_P_BITS, MIN_P_BITS, PENALTY_BITS, SEED, DRAW, ALTERNATIVES = range(8, 16)
OUT_IDS, OUT_LOGPROBS, OUT_ALTERNATIVE_IDS, OUT_ALTERNATIVE_LOGPROBS = range(16, 20)
STOP_IDS, STOP_COUNT, SEEN_TIMES, SEEN_IDS, SEEN_COUNT, PRESENCE_BITS, FREQUENCY_BITS = range(20, 27)
(
    HISTORY,
    HISTORY_COUNT,
    DRAFT,
    DRAFT_MOST,
    DRAFT_COUNT,
    NGRAM,
    PROPOSED,
    ACCEPTED,
    PASSES,
    DRAFTED_PASSES,
    LAST_TOKEN,
    MOST_PASSES,
    DRAFT_AT,
) = range(27, 40)
"""HISTORY: int64 ids of prompt and reply so far, with room for what a job adds. DRAFT: int64 ids, guesses.
DRAFT_AT: HISTORY_COUNT that guesses were made for, if they are given (NGRAM 0) and not looked up by the program.
LAST_TOKEN: sampled or given, and not run yet. A job ends for a sequence after STEPS tokens or MOST_PASSES passes."""
SEQUENCE_STATE, LOGPROBS, BEST = range(40, 43)
"""LOGPROBS: 1 if they are wanted. BEST: as many of the largest logits decide about the next token; 0 if all do, or if
the output table is not to be screened."""
SEQUENCE_SLOTS = 48

# ---- kinds of key-value cache
KV_F32, KV_F16, KV_INT8 = range(3)

# ---- layouts shared by packing, tables and kernels
PAGE = 64
"""Positions per page of the key-value cache."""
GROUP_ROWS = 16
"""Most tokens of one sequence whose attention is computed together."""
HEAD_ROWS = 16
"""Most tokens per pass whose logits are sampled from."""
STATE_FLOATS = 32
"""Floats before the output in a query's state: running maximum and sum, a vector each."""
SCREEN_DIRECTIONS = 4
"""Coordinates of every row that a screen of the output table has in float16, beside 4 bits per weight."""
ROW_BLOCK = 16
"""Output rows interleaved in one block of a packed matrix."""
Q8_BLOCK = 32
"""Weights per scale of a Q8_0 table."""
STATISTICS_BLOCK = 64
"""Logits per block maximum: a sampler looks only into blocks whose maximum is large enough."""
MIX_READ, MIX_WRITE, MIX_MATRIX, MIX_FLOATS = 0, 4, 8, 24
"""Offsets (in floats) of one mHC record's coefficients: p [4], H·q [4], H [4, 4]; unused places are zero."""
