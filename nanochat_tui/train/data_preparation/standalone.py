"""What shows, without a compiler, that a Rust function needs more than itself and the standard library.

The compiler has the last word; this only saves asking it of functions that cannot compile alone.
"""

from __future__ import annotations

import re
from typing import Final

from nanochat_tui.evaluate.rust_functions import RustFunction

LONGEST: Final = 700
"""Characters of a function that a small model could write whole."""
_ELSEWHERE = re.compile(r"\b(?:crate|super|Self|self)\b|\bmacro_rules\b|\basm!|include(?:_str|_bytes)?!|\bunsafe\b|#\[")
"""Words of functions that belong to something around them; unsafe code is not taught."""
_NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|b?"(?:\\.|[^"\\])*"|b?\'(?:\\.[^\']*|[^\'\\])\'', re.DOTALL)
_NAMED = re.compile(r"(?<![\w:'])[A-Z]\w*")
_CALLED = re.compile(r"(?<![\w.:])(?<!fn )([a-z_]\w*)\s*(?:::<[^()]*>)?\(")
_MACRO = re.compile(r"\b(\w+)!\s*[(\[{]")
_PATH = re.compile(r"(?<![\w:])([a-z_]\w*)::(?!<)")
_BOUND = re.compile(
    r"\b(?:let|mut|ref|fn|const|static|struct|enum|type|in)\s+\(?\s*([A-Za-z_]\w*)|\|\s*&?(?:mut\s+)?(\w+)"
)
_PRELUDE: Final = """
    AsMut AsRef Box Clone Copy Debug Default DoubleEndedIterator Drop Eq Err Error ExactSizeIterator Extend Fn FnMut
    FnOnce From FromIterator Into IntoIterator Item Iterator None Ok Option Ord Output Owned PartialEq PartialOrd Result
    Send Sized Some String Sync Target ToOwned ToString TryFrom TryInto Unpin Vec
"""
_WORDS: Final = "if while for match return in drop move as loop else let"
_MACROS: Final = """
    assert assert_eq assert_ne concat debug_assert debug_assert_eq debug_assert_ne eprint eprintln file format line
    matches panic print println stringify todo unimplemented unreachable vec write writeln
"""
_ROOTS: Final = "std core alloc bool char f32 f64 i8 i16 i32 i64 i128 isize str u8 u16 u32 u64 u128 usize"
_KNOWN: Final = {
    pattern: frozenset(words.split())
    for pattern, words in ((_NAMED, _PRELUDE), (_CALLED, _WORDS), (_MACRO, _MACROS), (_PATH, _ROOTS))
}
"""Names by the pattern that finds them which every module knows."""


def cannot_stand_alone(function: RustFunction) -> bool:
    """Whether a function surely does not compile alone, is too long, or makes no use of its parameters."""
    text = function.source
    if len(text) > LONGEST or (function.constant and function.parameters) or _ELSEWHERE.search(text):
        return True
    code = _NOT_CODE.sub(" ", text)
    known = {use.rstrip(";").rpartition("::")[2] for use in function.uses}
    known |= {name for pair in _BOUND.findall(code) for name in pair} | {function.name}
    known |= {name for pattern, _ in function.parameters for name in re.findall(r"\w+", pattern)}
    if generics := re.search(r"^[^(]*<(.*?)>\s*\(", code):
        known |= set(re.findall(r"\w+", generics[1]))
    return any(
        name not in everywhere and (pattern is _MACRO or name not in known)
        for pattern, everywhere in _KNOWN.items()
        for name in pattern.findall(code)
    )
