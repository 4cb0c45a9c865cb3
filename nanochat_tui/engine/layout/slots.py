"""Places in the int64 tables that describe a model, a job and a thread to the compiled program.

Nothing here imports Numba: a warm start needs the places, not the compiler.
Everything the program touches is reached by address through these tables, so that one call from Python
passes two arguments and needs no conversion. Addresses are of buffers that the Python side keeps alive.
A slot knows its table (see `table`), and its name is unique among all tables.
"""

from __future__ import annotations

from nanochat_tui.engine.layout import table as t

# ---- MATRIX: a record within other tables
MATRIX_KIND, MATRIX_WEIGHTS, MATRIX_SCALES, MATRIX_COLUMNS, MATRIX_PADDED = t.MATRIX.slots(range(5))
"""KIND: see `kinds`. WEIGHTS, SCALES: addresses. PADDED: columns as the int8 activations are padded, a multiple of the
ternary group."""
MATRIX_FACTORS, MATRIX_BIAS, MATRIX_BLOCKS = t.MATRIX.slots(range(5, 8))
"""FACTORS, BIAS: float32 [rows] that outputs are multiplied by and that is added, 0 = none. BLOCKS of 16 rows."""
(MATRIX_ADAPTER,) = t.MATRIX.slots((8,))
MATRIX_ADAPTER.holds = t.ADAPTER
MATRIX_SLOTS = t.MATRIX.width(9)

# ---- ADAPTER: what a low-rank adapter adds to a matrix' outputs, 0 in MATRIX_ADAPTER = none
ADAPTER_DOWN, ADAPTER_UP, ADAPTER_RANK = t.ADAPTER.slots(range(3))
"""DOWN: float32 in blocks of 16 rows, [rank][columns]. UP: the same, [rows][rank], with its scale. RANK: of all
adapters together, a multiple of 16."""
ADAPTER_SLOTS = t.ADAPTER.width(4)

# ---- MODEL: shape and shared buffers, one table per loaded model
DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HEAD_PADDED, HIDDEN, VOCAB, VOCAB_PADDED, STREAMS = t.MODEL.slots(range(10))
QKV_STRIDE, CONTROL, QUERY_WIDTH = t.MODEL.slots((12, 14, 15))
CONTROL.holds = t.CONTROL
ROUND_HEAD, EPSILON_BITS, QUERY_SCALE_BITS, TILE, QUERIES, GROUP = t.MODEL.slots(range(18, 24))
HEAD_MATRIX, EMBEDDING_MATRIX = t.MODEL.slots((24, 25))
HEAD_MATRIX.holds = EMBEDDING_MATRIX.holds = t.MATRIX
ROTATION_BITS, ROTATE_HEAD, ROTATE_EMBEDDING, FINAL_NORM, FINAL_MIX, TOKEN_SCALES = t.MODEL.slots(range(26, 32))
"""ROUND_HEAD: 1 rounds the input of a head of floats, as the model was trained. TOKEN_SCALES: 1 gives the inputs of
linears one scale per token, for the same reason."""
"""ROTATE_*: factors of a signed Walsh-Hadamard transform in blocks of 2^ROTATION_BITS, 0 = none; layers have others."""
QKV, ATTENTION, PROJECTION, GATE_UP, PRODUCT = t.MODEL.slots(range(34, 39))
HEAD_X8, HEAD_INIT, HEAD_SCALE, HEAD_FLOAT = t.MODEL.slots(range(39, 43))
LOGITS, BLOCK_MAXIMA, BLOCK_SUMS, BLOCKS_PADDED = t.MODEL.slots(range(43, 47))
SMALL, SMALL_STRIDE, ROUTED, ROUTED_STRIDE = t.MODEL.slots(range(47, 51))
"""Products of the unrotated, unrounded input: of a recurrence's small matrix, of a router. Strides are bytes."""
SCREEN, SCREEN_BASIS, SCREEN_ROWS, SCREEN_ROW_BYTES = t.MODEL.slots(range(51, 55))
SCREEN_BOUNDS, SCREEN_COLUMNS, SCREEN_CODE = t.MODEL.slots(range(55, 58))
"""SCREEN: address of the output table's screen (see `weights.screening`), 0 as long as there is none; BASIS, ROWS: of
its directions and rows. BOUNDS: float32 [row blocks]. COLUMNS: of the screen there may be, 0 if there is never one.
CODE: address of `screen.screened_logits`."""
MODEL_SLOTS = t.MODEL.width(64)

# ---- LAYER: one row per block
ATTENTION_NORM, FFN_NORM, ATTENTION_MIX, FFN_MIX, KV_LAYER, WINDOW, ROPE_TABLE, ROTARY = t.LAYER.slots(range(8, 16))
QUERY_NORM, KEY_NORM, ATTENTION_SUB_NORM, FFN_SUB_NORM = t.LAYER.slots(range(16, 20))
"""KV_LAYER: its place in a page. WINDOW: positions a query sees, 0 = all. ROTARY: dimensions of a head that RoPE
turns, the table's width. The norms are addresses, 0 = none: of each query and key head (before RoPE), of attention's
output, of the feed-forward product."""
QKV_MATRIX, OUTPUT_MATRIX, GATE_UP_MATRIX, DOWN_MATRIX, SMALL_MATRIX, ROUTER_MATRIX = t.LAYER.records(
    t.MATRIX, range(24, 78, MATRIX_SLOTS)
)
ACTIVATION, CLAMP_BITS, GATED, RECURRENT = t.LAYER.slots(range(78, 82))
ROTATE_INPUT, ROTATE_OUTPUT, ROTATE_FFN, ROTATE_DOWN = t.LAYER.slots(range(82, 86))
EXPERTS, EXPERTS_USED, UP_BYTES, UP_SCALE_BYTES, DOWN_BYTES, DOWN_SCALE_BYTES = t.LAYER.slots(range(86, 92))
"""BYTES: of one expert's part of the stacked matrices and of their scales."""
KEY_HEADS, VALUE_HEADS, STATE_WIDTH, TAPS, CHANNELS, CONVOLUTION, STEP, DECAY = t.LAYER.slots(range(92, 100))
STATE_NORM, STATE_OFFSET, GROUPED = t.LAYER.slots(range(100, 103))
"""Of a recurrent layer. CONVOLUTION: float32 [taps][channels]. STEP, DECAY, STATE_NORM: addresses. STATE_OFFSET: bytes
into a sequence's state, where are [taps - 1][channels], then [value heads][width][width]. GROUPED: 1 puts output
heads in the order (key head, repeat)."""
LAYER_SLOTS = t.LAYER.width(104)

# ---- ACTIVATION
SILU, RELU2 = range(2)

# ---- THREAD: private buffers, one row per thread
X, MIXED, X8, INIT, SCALE, QUERY, STATE, LIMITS, WEIGHTS = t.THREAD.slots(range(9))
WORK_LOGITS, WORK_MAXIMA, HEAP, ALTERNATIVES_HEAP, SUMS, DELTA = t.THREAD.slots(range(9, 15))
CHOSEN, CHOSEN_WEIGHTS, EXPERT_MATRIX, ANSWER = t.THREAD.slots(range(15, 19))
EXPERT_MATRIX.holds = t.MATRIX
NUMBER, CREW, BASE, OPEN, HELD, STREAMS_NOW, BEST_NOW = t.THREAD.slots(range(19, 26))
"""Of the pass that the thread takes part in: its number among the CREW threads, pieces of each share before this step,
1 once it knows that the step was open after it had prepared for it, share of the piece it works on. STREAMS_NOW: X, or
in a pass whose threads share tiles of tokens the X of thread 0. BEST_NOW: see FACT_BEST."""
STOLEN, NAPS, DROPPED = t.THREAD.slots(range(26, 29))
"""Counts: pieces of other threads' shares, waits that became sleep, passes that a thread left because it was late."""
SCREEN_READ, SCREEN_PASSES = t.THREAD.slots(range(29, 31))
"""Counts: rows of the output table that were multiplied although it was screened, and screened passes."""
SCREEN_LISTED, SCREEN_FOUND, SCREEN_BEGIN_BITS = t.THREAD.slots(range(31, 34))
"""Of a share of the output table, between the steps of screening it."""
OWN_STREAMS, HASTY = t.THREAD.slots(range(34, 36))
"""OWN_STREAMS: 1 if the thread computes the tokens' streams for itself in this pass. HASTY: not 0 if it
had to take another one's pieces, 2 in this step, 1 in the last one."""
ADAPTED, ADAPTED_ROWS = t.THREAD.slots(range(36, 38))
"""Of an adapter and one token: its sums, float32 [rank], and what it adds, [rows]."""
THREAD_SLOTS = t.THREAD.width(40)

# ---- CONTROL: shared between threads, what one writes while others look on a line of its own (64 bytes = 8 slots)
SEQUENCE, READY, PASS, ENDED, SLEEPERS, NAP_LIMIT = t.CONTROL.slots((0, 8, 16, 32, 48, 56))
(PASS_FACTS,) = t.CONTROL.records(t.FACTS, (64,))
"""SEQUENCE: number of the job. READY: workers that wait for a pass or take part in one. PASS: of the last pass that was
announced; ENDED: of the last one that was finished. SLEEPERS: threads that wait asleep. NAP_LIMIT: seconds,
nanoseconds. PASS_FACTS: see below, for passes of even numbers, and for odd ones behind it. FACT_BEST: as BEST of the
only sequence, if the output table is screened, else 0."""
FACT_CREW, FACT_BASE, FACT_COUNT, FACT_BY_ROWS, FACT_WANTED, FACT_SEQUENCES, FACT_BEST = t.FACTS.slots(range(7))
FACT_SLOTS = t.FACTS.width(8)
(SHARES,) = t.CONTROL.records(t.SHARE, (96,))
(SHARE_DONE,) = t.SHARE.slots((16,))
SHARE_SLOTS = t.SHARE.width(32)
"""SHARES: where the shares begin, one of each thread. A share is the number of its pieces that were ever taken, and at
SHARE_DONE that of those that are finished."""

# ---- STEP: what is shared between the threads of a pass, see `kernels.passes`
(
    TILES_STEP,
    QKV_STEP,
    CACHE_STEP,
    ATTEND_STEP,
    OUTPUT_STEP,
    UP_STEP,
    DOWN_STEP,
    SMALL_STEP,
    CONVOLVE_STEP,
    DELTA_STEP,
    ROUTER_STEP,
    EXPERTS_UP_STEP,
    EXPERTS_DOWN_STEP,
    HEAD_INPUT_STEP,
    HEAD_STEP,
    ADVANCE_STEP,
    SCREEN_STEP,
) = range(17)
"""The last ones are not of a layer; SCREEN_STEP and two more are its phases."""

# ---- JOB: what to run now
ROWS, COUNT, WANTED, LOGITS_OUT, SEQUENCES, SEQUENCE_COUNT = t.JOB.slots(range(6))
ROWS.holds, SEQUENCES.holds = t.ROW, t.SEQUENCE
KV_KIND, VALUE_OFFSET, KEY_SCALE_OFFSET, VALUE_SCALE_OFFSET, HEAD_KV_BYTES, LAYER_KV_BYTES = t.JOB.slots(range(6, 12))
ONLY_SEQUENCES, JOB_LOGPROBS, JOB_CREW, JOB_STATES = t.JOB.slots(range(12, 16))
"""ONLY_SEQUENCES: 1 if the rows are not given, but are the next pass of every sequence. JOB_LOGPROBS: 1 if
log-probabilities are wanted of one of the sequences. JOB_CREW: threads that run the job. JOB_STATES: 1 if the job ends
with the normalised rows in HEAD_FLOAT, before the output table."""
JOB_SLOTS = t.JOB.width(16)

# ---- ROW: one token of one sequence. LOGITS_PLACE: row of the logits buffer that is to hold its logits, or -1
# ROW_STATE: address of the sequence's recurrent state, 0 = none
TOKEN, POSITION, PAGES, LOGITS_PLACE, ROW_STATE = t.ROW.slots(range(5))
ROW_SLOTS = t.ROW.width(8)

# ---- SEQUENCE: a reply being sampled in a job, one row of the job's table each
SEQUENCE_PAGES, SEQUENCE_POSITION, SEQUENCE_PLACE, SEQUENCE_ROWS = t.SEQUENCE.slots(range(4))
STEPS, PRODUCED, ACTIVE, LIMIT = t.SEQUENCE.slots(range(4, 8))
"""POSITION: of the next token to be run. PLACE, ROWS: its logits in the last pass. LIMIT: positions it may write."""
TEMPERATURE_BITS, TOP_K, TOP_P_BITS, MIN_P_BITS, PENALTY_BITS = t.SEQUENCE.slots(range(8, 13))
SEED, DRAW, ALTERNATIVES = t.SEQUENCE.slots(range(13, 16))
OUT_IDS, OUT_LOGPROBS, OUT_ALTERNATIVE_IDS, OUT_ALTERNATIVE_LOGPROBS = t.SEQUENCE.slots(range(16, 20))
STOP_IDS, STOP_COUNT, SEEN_TIMES, SEEN_IDS, SEEN_COUNT = t.SEQUENCE.slots(range(20, 25))
PRESENCE_BITS, FREQUENCY_BITS = t.SEQUENCE.slots(range(25, 27))
HISTORY, HISTORY_COUNT, DRAFT, DRAFT_MOST, DRAFT_COUNT, NGRAM = t.SEQUENCE.slots(range(27, 33))
PROPOSED, ACCEPTED, PASSES, DRAFTED_PASSES, LAST_TOKEN, MOST_PASSES, DRAFT_AT = t.SEQUENCE.slots(range(33, 40))
"""HISTORY: int64 ids of prompt and reply so far, with room for what a job adds. DRAFT: int64 ids, draft tokens.
DRAFT_AT: HISTORY_COUNT that drafts were made for, if they are given (NGRAM 0) and not looked up by the program.
LAST_TOKEN: sampled or given, and not run yet. A job ends for a sequence after STEPS tokens or MOST_PASSES passes."""
SEQUENCE_STATE, LOGPROBS, BEST, TYPICAL_P_BITS = t.SEQUENCE.slots(range(40, 44))
"""LOGPROBS: 1 if they are wanted. BEST: as many of the largest logits decide about the next token; 0 if all do, or if
the output table is not to be screened."""
MASKS, MASK_BYTES, BIAS_IDS, BIASES, BIAS_COUNT = t.SEQUENCE.slots(range(44, 49))
"""MASKS: a bit per token of the padded vocabulary, 1 if it may be sampled, for the next row and for one more behind
every draft token; MASK_BYTES apart; 0 = all may. BIAS_IDS, BIASES: int64 ids, and float32 that are added to logits."""
SEQUENCE_SLOTS = t.SEQUENCE.width(56)

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
"""Coordinates of every row that a screen of the output table has in float16, in addition to 4 bits per weight."""
ROW_BLOCK = 16
"""Output rows interleaved in one block of a packed matrix."""
Q8_BLOCK = 32
"""Weights per scale of a Q8_0 table."""
STATISTICS_BLOCK = 64
"""Logits per block maximum: a sampler looks only into blocks whose maximum is large enough."""
MIX_READ, MIX_WRITE, MIX_MATRIX, MIX_FLOATS = 0, 4, 8, 24
"""Offsets (in floats) of one mHC record's coefficients: p [4], H·q [4], H [4, 4]; unused places are zero."""
