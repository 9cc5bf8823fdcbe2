"""Sections on tests between runs: McNemar, permutation, paired t, with Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leukoscope.report.numbers import count, difference, estimate, number, title
from leukoscope.report.page import Block, Cell, Details, Missing, Paragraph, Section, Table
from leukoscope.report.sections_paper import small

Pair = Mapping[str, Any]
MOST_OPEN = 15  # pairs in a table before it is folded away


def section(name: str, heading: str, comparison: Mapping[str, Any] | None) -> Section:
    """Every pair of comparison.json, or how to get one."""
    pairs = (comparison or {}).get("pairs") or []
    failed = [
        Paragraph(f"{pair['a']} and {pair['b']} were not tested: {pair['why']}", "quiet")
        for pair in (comparison or {}).get("not_tested") or []
    ]
    if not pairs:
        text = "No two arms were tested against each other; to do so, run"
        command = "leukoscope compare A B -o comparison.json"
        return Section(name, heading, [Missing(text, command), *failed])
    found = _discordant(pairs)
    shown: list[Block] = [found]
    if len(pairs) > MOST_OPEN:
        shown = [Paragraph(found.caption), Details(count(len(pairs), "pair"), [found])]
    return Section(name, heading, [*shown, *_paired_t(pairs), *_delong(pairs), *failed])


def _discordant(pairs: Sequence[Pair]) -> Table:
    """McNemar's test and the permutation test; Holm's p stands behind where there are more."""
    several = any("holm" in pair for pair in pairs)
    rows: list[list[Cell | str]] = []
    for pair in pairs:
        mcnemar = pair.get("mcnemar") or {}
        why = _why(mcnemar)
        rows.append(
            [
                _who(pair),
                f"{mcnemar.get('b', '')} and {mcnemar.get('c', '')}",
                _statistic(mcnemar.get("chi2"), why),
                _p(mcnemar.get("p"), why),
                _statistic(mcnemar.get("chi2_corrected"), why),
                _p(mcnemar.get("exact_p"), why),
                _p(pair.get("permutation_p")),
                *([_p((pair.get("holm") or {}).get("permutation_p"))] if several else []),
                _gap((pair.get("difference") or {}).get("accuracy")),
            ]
        )
    head = ["Pair", "Discordant", "χ²", "p", "χ² corrected", "exact p", "permutation p",
            *(["after Holm"] if several else []), "Accuracy difference"]  # fmt: skip
    held = [(pair.get("holm") or pair).get("permutation_p") for pair in pairs]
    clear = sum(p is not None and p < 0.05 for p in map(number, held))
    caption = (
        "McNemar's test, and a permutation test that exchanges whole patients (images where "
        f"patients are unknown): {clear} of "
        f"{count(len(pairs), 'pair')} differ at the 5% level by permutation"
        f"{', after Holm' if several else ''}."
    )
    return Table(caption, head, rows)


def _paired_t(pairs: Sequence[Pair]) -> list[Block]:
    """One row a pair, one column a metric."""
    metrics = list(dict.fromkeys(metric for pair in pairs for metric in pair.get("paired_t") or ()))
    if not metrics:
        return []
    rows: list[list[Cell | str]] = []
    for pair in pairs:
        tests = pair.get("paired_t") or {}
        rows.append([_who(pair), *(_t(tests[m]) if m in tests else "" for m in metrics)])
    caption = "Paired t-tests over the values of each class."
    made = Table(caption, ["Pair", *map(title, metrics)], rows)
    return [made] if len(pairs) == 1 else [Details(caption.rstrip("."), [made])]


def _delong(pairs: Sequence[Pair]) -> list[Block]:
    """A folded table a pair, one row a class; nothing where probabilities are missing."""
    found: list[Block] = []
    for pair in pairs:
        tests = pair.get("delong") or {}
        rows: list[list[Cell | str]] = [
            [label, *(_area(test.get(key), _why(test)) for key in ("auc_a", "auc_b")),
             _statistic(test.get("z"), _why(test)),
             *(_p(test.get(key), _why(test)) for key in ("p", "p_holm"))]
            for label, test in tests.items()
        ]  # fmt: skip
        held = [number(test.get("p_holm")) for test in tests.values()]
        clear = sum(p is not None and p < 0.05 for p in held)
        name = f"DeLong's test of the area under the ROC curve, {_who(pair)}"
        caption = (
            f"{clear} of {count(len(tests), 'class')} differ at the 5% level after Holm. The test "
            "takes images as independent; with several a patient its p is too small."
        )
        head = ["Class", str(pair.get("a")), str(pair.get("b")), "z", "p", "after Holm"]
        if rows:
            found.append(Details(name, [Table(caption, head, rows)]))
    return found


def _who(pair: Pair) -> str:
    return f"{pair.get('a')} against {pair.get('b')}"


def _why(result: Mapping[str, Any]) -> str:
    """Why a test is degenerate, or ""."""
    found = result.get("degenerate")
    return found if isinstance(found, str) else "the test is degenerate" if found else ""


def _t(test: Mapping[str, Any]) -> Cell | str:
    t, p = number(test.get("t")), number(test.get("p"))
    if t is None or p is None:
        return Cell("undefined", _why(test) or "no reason was recorded")
    return f"t {t:.3f}, p {small(p)}".replace("-", "−")


def _statistic(value: object, reason: str = "") -> Cell | str:
    found = number(value)
    why = reason or "no reason was recorded"
    return Cell("undefined", why) if found is None else f"{found:.2f}"


def _area(value: object, reason: str) -> Cell | str:
    found = number(value)
    return Cell("undefined", reason) if found is None else f"{found:.3f}"


def _p(value: object, reason: str = "") -> Cell | str:
    found = number(value)
    return Cell("undefined", reason or "no reason was recorded") if found is None else small(found)


def _gap(item: object) -> Cell | str:
    value, limits = estimate(item)
    if value is None:
        return Cell("undefined", "the difference was not computed")
    return difference("accuracy", value, limits)
