#!/usr/bin/env bash
# Does indentation as tabs help? Two short runs on the same files, judged by bits per byte of the original text.
#   scripts/compare_indentation.sh CORPUS_WITH_TABS CORPUS_WITH_SPACES RUNS [OPTION OF nanochat-train train ...]
# (the corpora: scripts/build_rust_corpus.py with --indentation 4 and with --indentation 0)
set -euo pipefail
for kind in tabs spaces; do
  data=$([ $kind = tabs ] && echo "$1" || echo "$2")
  nanochat-train train --data-path "$data" --checkpoint-dir "$3/$kind" --steps 200 --seq-len 256 --batch-size 16 \
    --warmup-steps 20 --head-frequent 6144 --ns-steps 4 --eval-interval 0 --final-eval-tokens 131072 --checkpoint-interval 0 "${@:4}"
done
