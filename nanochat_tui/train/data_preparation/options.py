"""What `prepare_data` is asked and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.formats.tokens import TokenDtype
from nanochat_tui.train.data_preparation.sources import Source


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare_data`; the defaults are those of the shipped model's corpus."""

    sources: tuple[Source | Path, ...]
    """Folders to read. Where files duplicate each other, the one of the earlier source stays."""
    tokenizer: Path
    """A tokenizer.json."""
    output: Path
    """Folder to write; made if it is not there."""
    extensions: tuple[str, ...] = (".rs",)
    indentation: int = 4
    """Leading groups of so many spaces become one tab each; 0 leaves the text alone."""
    tabs_filter: int | None = None
    """Leave out files whose indentation would not survive becoming tabs of this width and back; None is `indentation`.
    Set it to compare a corpus with tabs with one without on the same files."""
    require_licence: bool = False
    """Leave out files of which no licence is known, too."""
    any_licence: bool = False
    """Keep files of every licence, for a corpus of one's own code."""
    skip_folders: tuple[str, ...] = ("node_modules", "__pycache__", "site-packages")
    """Folders that hold generated or foreign files: shell patterns of one or more whole parts of the path."""
    min_bytes: int = 64
    max_bytes: int = 200_000
    max_line: int = 1000
    max_mean_line: float = 100.0
    min_letters: float = 0.35
    max_duplicate: float = 0.5
    """A file with more than this share of its 5-line windows in files before it is a near duplicate."""
    validation_fraction: float = 0.02
    validation_max_shared: float = 0.10
    """A validation file shares at most this share of its 5-line windows with any other file."""
    max_similarity: float = 0.7
    """Two files with more than this share of word 5-grams in common, numbers folded, are near duplicates (MinHash)."""
    hold_out: tuple[str, ...] = ()
    """Crates held out by name: all of validation; no version or copy of them is trained on, nor a file that shares
    more than `validation_max_shared` of its 5-line windows with them. Without any, validation is single files."""
    one_version: bool = False
    """Keep the newest version of each crate only, and one copy of it."""
    max_crate_share: float = 1.0
    """Largest share of the training tokens that one crate may have."""
    max_group_share: float = 1.0
    """The same for all sources of a `Source.group` together, vendored crates in it not counted."""
    benchmarks: tuple[str, ...] = ()
    """Texts of evaluations: a file with 13 successive words of one of them stays out."""
    reserved: Callable[[str], bool] | None = None
    """Says of a document's key (`source/path`) whether it is measured elsewhere: it stays out, with its duplicates."""
    eot_token: str = "<|endoftext|>"  # noqa: S105
    seed: int = 1
    """Order of the documents."""
    workers: int | None = None
    """Processes; None is one per CPU. The result does not depend on it. 1 starts none."""
    overwrite: bool = False
    """Replace an earlier data set in `output`."""

    def check(self) -> None:
        """Raise UserError if a number makes no sense."""
        shares = ("min_letters", "max_duplicate", "validation_fraction", "validation_max_shared", "max_similarity")
        for name in shares:
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UserError(f"{name} is a share between 0 and 1, not {share}")
        for name in ("max_crate_share", "max_group_share"):
            if not 0 < (share := getattr(self, name)) <= 1:
                raise UserError(f"{name} is a share above 0 and at most 1, not {share}")
        for name in ("indentation", "tabs_filter"):
            if not 0 <= (width := getattr(self, name) or 0) <= 16:
                raise UserError(f"{name} is 0 to 16 spaces, not {width}")
        if not 0 <= self.min_bytes <= self.max_bytes:
            raise UserError(f"min_bytes {self.min_bytes} and max_bytes {self.max_bytes} leave no file; change them")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"at least 1 worker is needed, not {self.workers}")
        if not self.extensions or not all(self.extensions):
            raise UserError("no file name extension given; name at least one, like .rs")


@dataclass(frozen=True)
class Progress:
    """How far a stage is: files looked at while `scanning`, documents while `tokenising`."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


@dataclass
class Count:
    """Files, their original bytes and, once they are tokenised, their tokens (with the end-of-text token)."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, size: int, tokens: int = 0) -> None:
        """Count one more file."""
        self.documents += 1
        self.bytes += size
        self.tokens += tokens


@dataclass
class PrepareReport:
    """What was written. Bytes are those of the text as the tokenizer gives it back: UTF-8, LF, no byte order mark."""

    output: Path
    dtype: TokenDtype = "u16"
    found: Count = field(default_factory=Count)
    left_out: dict[str, Count] = field(default_factory=dict)
    """By reason, in the order of the filters; bytes are sizes on disk."""
    splits: dict[str, Count] = field(default_factory=dict)
    """`train` and `val`."""
    sources: dict[str, Count] = field(default_factory=dict)
    licences: dict[str, Count] = field(default_factory=dict)
    """The most frequent first."""
    crates: dict[str, dict[str, Count]] = field(default_factory=dict)
    """By split and crate."""
    validation_moved: int = 0
    """Validation candidates sent to training because they share too much with other files."""
    validation_shared: float = 0.0
    """Mean share of 5-line windows that the validation files still share with other files."""

    @property
    def documents(self) -> int:
        """Documents of both splits."""
        return sum(count.documents for count in self.splits.values())
