"""``compare``: a statistical comparison of policies or training methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit.errors import ComparisonError, OutputError
from act_kit.outputs import prepare_output, restore_output

if TYPE_CHECKING:
    from act_kit.comparison.compare import Comparison
    from act_kit.eval.results import Evaluation


def compare(
    methods: Sequence[str | Path] | Mapping[str, Sequence[Evaluation]],
    *,
    vary: Sequence[str] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Compare evaluations, as ``act compare`` does: better, worse, no difference shown, or confounded.

    Args:
        methods: Folders of evaluations, of runs, or of runs of several training seeds; or the evaluations of each
            method's training seeds, by its name. A comparison of methods takes at least three training seeds of each.
        vary: Options that may differ between the methods, groups of options, or ``data``.
        out: Folder of ``compare.json`` and ``compare.html``; None to write nothing.
        overwrite: Replace an earlier comparison in ``out``; other files in it, such as the compared runs, stay.

    Raises:
        ActKitError: An evaluation is missing or damaged, or ``out`` exists.
    """
    paths = [] if isinstance(methods, Mapping) else [Path(path) for path in methods]
    for path in paths:
        restore_output(path)
        if not path.is_dir():
            raise ComparisonError(f"There is no folder {path}.")
    if out:
        out = Path(out)
        for name in ("compare.json", "compare.html"):
            if (out / name).exists() and not overwrite:
                raise OutputError(f"{out / name} exists. Fix: --overwrite replaces it, or choose another --out.")
        if not out.is_dir():
            prepare_output(out, overwrite=False)
    from act_kit.comparison import compare as comparing
    from act_kit.reports.comparison import comparison_report

    comparison = comparing.compare(methods if isinstance(methods, Mapping) else paths, vary)
    if out:
        comparison_report(comparison).write(out / "compare.html", out / "compare.json")
    return comparison
