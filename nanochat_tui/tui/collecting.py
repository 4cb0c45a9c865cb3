"""Garbage collection of the running application.

Removed widgets are in reference cycles, so only the collector frees them. The command's threshold for a start
(`cli.entry.OBJECTS_PER_COLLECTION`) is too high for an application that runs for days: Python would look at the oldest
generation once in 1,400 replies, and removed turns would cost 8 MiB per 1,000 replies until then. A collection of
everything takes 60 ms and more, most of it for the 100,000 objects of modules and the model, which are never freed.
"""

from __future__ import annotations

import gc

THRESHOLDS = (10_000, 5, 4)
"""As `gc.set_threshold` takes them: the oldest generation is looked at about once in 60 replies."""


def keep_what_is_loaded() -> None:
    """Exempt every object that exists from collection, and collect what is made from now on at `THRESHOLDS`.

    For the moment after a model was loaded. What an earlier call exempted is collected first, so that the model that
    was there before is freed. Thread safe.
    """
    if gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
    gc.freeze()
    gc.collect()  # of nothing: the collector estimates its work by the number of objects that its last full run left
    gc.set_threshold(*THRESHOLDS)
