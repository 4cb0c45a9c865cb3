"""What a name means, and which files of a repository are taken."""

from __future__ import annotations

import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.hub.catalogue import CATALOGUE, NOT_OPENED, table
from nanochat_tui.hub.choice import RepoFile, candidates, choose, is_safe
from nanochat_tui.hub.reference import Reference, parse


def files(*names: str) -> list[RepoFile]:
    return [RepoFile(name, 1000 + place) for place, name in enumerate(names)]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("u/r", Reference("u/r")),
        ("u/r:Q2_0", Reference("u/r", "Q2_0")),
        ("u/r:sub/a.gguf", Reference("u/r", "sub/a.gguf")),
        ("hf.co/u/r:TQ1_0", Reference("u/r", "TQ1_0")),
        ("https://huggingface.co/u/r", Reference("u/r")),
        ("https://huggingface.co/u/r/blob/v2/x%20y.gguf", Reference("u/r", "x y.gguf", "v2")),
        ("https://huggingface.co/u/r/resolve/main/d/x.gguf?download=true", Reference("u/r", "d/x.gguf")),
        ("bitnet-2b4t", Reference("microsoft/bitnet-b1.58-2B-4T-gguf", "i2_s")),
        ("Bonsai-2-27b:PQ2_0", Reference("prism-ml/Ternary-Bonsai-2-27B-gguf", "PQ2_0")),
    ],
)
def test_a_name_stands_for(text: str, meant: Reference) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bonsay-8b",
        "u/r/s",
        "../r",
        "u/..",
        "u/r--x",
        "https://example.org/u/r",
        "u/ r",
        "-u/r",
        "http://[",
        "u\x1b/r",
    ],
)
def test_what_names_no_model_is_refused_in_words(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert "\x1b" not in str(caught.value)
    if text == "bonsay-8b":
        assert "bonsai-8b" in str(caught.value)


@pytest.mark.parametrize("revision", ["../x", "a b", "-x", "x/../y", "x" * 300])
def test_a_revision_is_no_path(revision: str) -> None:
    with pytest.raises(UserError, match="revision"):
        parse("u/r", revision)


def test_towers_drafters_and_unsafe_names_are_no_models() -> None:
    found = candidates(
        files(
            "a-Q2_0.gguf",
            "mmproj-a-F16.gguf",
            "a-dspark-dflash-v2-Q4_K_M.gguf",
            "a-MTP.gguf",
            "../b-Q2_0.gguf",
            "c\\d-Q2_0.gguf",
            "/e.gguf",
            "README.md",
            "a.imatrix.gguf",
        )
    )
    assert [each.name for each in found] == ["a-Q2_0.gguf"]
    assert not is_safe("C:x.gguf") and not is_safe("a/./b") and not is_safe("a\x1b.gguf") and is_safe("d/a-b.gguf")


def test_a_quantisation_is_a_word_of_the_name() -> None:
    some = files("M-Q2_0.gguf", "M-PQ2_0.gguf", "M-Q2_0_g64.gguf", "M-PTQ1_0.gguf", "M-F16.gguf")
    assert choose(some, "q2_0", "here").name == "M-Q2_0.gguf"
    assert choose(some, "PQ2_0", "here").name == "M-PQ2_0.gguf"
    assert choose(some, "Q2_0_g64", "here").name == "M-Q2_0_g64.gguf"
    assert choose(some, "m-f16.gguf", "here").name == "M-F16.gguf"
    assert choose(some, None, "here").name == "M-PQ2_0.gguf"
    with pytest.raises(UserError, match=r"has no Q9.*M-F16\.gguf"):
        choose(some, "Q9", "here")


def test_of_several_files_of_a_type_the_smallest_is_taken_and_a_name_must_say_which() -> None:
    heads = files("maple-TQ2_0-head-Q4_K.gguf", "maple-TQ2_0-head-F16.gguf", "maple-TQ1_0-head-F16.gguf")
    assert choose(heads, None, "here").name == "maple-TQ2_0-head-Q4_K.gguf"
    with pytest.raises(UserError, match="several files"):
        choose(heads, "TQ2_0", "here")
    with pytest.raises(UserError, match="no ternary one"):
        choose(files("a-Q4_K_M.gguf", "a-Q8_0.gguf"), None, "here")
    assert choose(files("a-Q4_K_M.gguf"), None, "here").name == "a-Q4_K_M.gguf"
    with pytest.raises(UserError, match="no GGUF"):
        choose(files("model.safetensors"), None, "here")


def test_a_split_model_is_all_its_files_or_none() -> None:
    parts = [f"m-TQ2_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    whole = choose(files(*reversed(parts)), "TQ2_0", "here")
    assert [file.name for file in whole.files] == parts and whole.name == "m-TQ2_0.gguf"
    assert whole == choose(files(*reversed(parts)), parts[1], "here")
    assert candidates(files(*parts[:2])) == []


def test_the_catalogue_claims_nothing_that_was_not_done() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    lines = "\n".join(table(["maple"]))
    for entry in CATALOGUE:
        assert parse(entry.name).repo == entry.repo
        assert entry.opened or entry.state == NOT_OPENED
        assert entry.gigabytes > 0 and entry.memory_gigabytes > entry.gigabytes
        assert entry.name in lines and entry.repo in lines
    assert f"on this machine, {NOT_OPENED}" in lines
