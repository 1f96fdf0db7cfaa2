"""The cards of scope encoder and verifier as documentation: the table of docs/scope.md and the curve of the match.

python -m jobs.scope_card        rewrites both from workers/scope_encoder/card.json and workers/scope_verifier/card.json
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from jobs.scope_evaluation import BARS, PRIVATE_BARS
from workers.trained_scope import VERIFIER_FOLDER, read_card

DOCS = Path(__file__).parents[1] / "docs"
WHAT = {
    "rephrase_1": "CounterFact rephrasing accepted, 1 fact stored",
    "front_1": "… with an unrelated sentence in front",
    "neighbour_1": "CounterFact neighbour let in",
    "same_subject_1": "same subject, other relation let in",
    "rephrase_2000": "CounterFact rephrasing accepted and the right fact, 2,000 stored",
    "front_2000": "… with an unrelated sentence in front",
    "neighbour_2000": "CounterFact neighbour let in, 2,000 stored",
    "same_subject_2000": "same subject, other relation let in, 2,000 stored",
    "held_out_relation": "relation never trained on: rephrasing accepted",
    "held_out_relation_other": "… other subject or other relation let in",
    "held_out_domain": "private domain never trained on: question accepted",
    "held_out_domain_other": "… other subject or other relation let in",
    "private_question": "private test set: question accepted and the right fact, 208 stored",
    "private_same_subject": "… same subject, other relation let in",
    "private_same_relation": "… same relation, other subject let in",
    "private_unrelated": "… unrelated question let in",
}
_LINES = {  # of the curve: measure, colour
    "rephrase_1": "#1f77b4",
    "front_1": "#17becf",
    "rephrase_2000": "#2ca02c",
    "neighbour_2000": "#d62728",
    "same_subject_1": "#ff7f0e",
    "same_subject_2000": "#9467bd",
}
_WIDTH, _HEIGHT, _EDGE = 640, 360, 48


def markdown(encoder: dict[str, Any], verifier: dict[str, Any]) -> str:
    """The results of all three gates beside the targets; a test holds docs/scope.md to it."""
    plain, trained, verified = encoder["plain_results"], verifier["cosine_results"], verifier["results"]
    thresholds = (
        f"Thresholds: cosine {verifier['scope_threshold']:.2f}, then match {verifier['threshold']:.2f}. "
        f"Without the verifier: cosine {encoder['threshold']:.2f}; "
        f"plain MiniLM at its own best: {plain['threshold']:.2f}."
    )
    lines = [
        thresholds,
        "",
        "| measure | plain MiniLM | trained, alone | trained and verified | target | met |",
        "|---|---:|---:|---:|---:|:-:|",
    ]
    for key, name in (("eer_1", "1 fact stored"), ("eer_2000", "2,000 stored")):
        what = f"equal error rate, rephrasing against neighbour, {name}"
        lines.append(f"| {what} | {_share(plain[key])} | {_share(trained[key])} | {_share(verified[key])} | | |")
    for bar in (*BARS, *PRIVATE_BARS):
        target = 1 - bar.errors_max if bar.inside else bar.errors_max
        met = verified[bar.key] >= target if bar.inside else verified[bar.key] <= target
        lines.append(
            f"| {WHAT[bar.key]} | {_share(plain[bar.key])} | {_share(trained[bar.key])} | {_share(verified[bar.key])} "
            f"| {'≥' if bar.inside else '≤'} {_share(target)} | {'yes' if met else '**no**'} |"
        )
    return "\n".join(lines)


def curve_svg(card: dict[str, Any]) -> str:
    """Errors of the verified gate by match: misses of what should be accepted, false alarms of what should not."""
    points = card["curve"]
    low, high = points[0]["threshold"], points[-1]["threshold"]

    def place(threshold: float, error: float) -> str:
        x = _EDGE + (threshold - low) / (high - low) * (_WIDTH - 2 * _EDGE)
        return f"{x:.1f},{_HEIGHT - _EDGE - min(error, 0.5) * 2 * (_HEIGHT - 2 * _EDGE):.1f}"

    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    title = f"Errors by match, from cosine {card['scope_threshold']:.2f} on (validation); dashed: the chosen match"
    parts = [
        f'{head} font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_EDGE}" y="24" font-size="13">{title}</text>',
    ]
    for tick in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        x, y = place(low, tick).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _EDGE}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{float(x) - 34}" y="{float(y) + 4}">{tick:.0%}</text>')
    for tick in range(11):
        if not low <= tick / 10 <= high:
            continue
        x, y = place(tick / 10, 0).split(",")
        parts.append(f'<text x="{float(x) - 8}" y="{float(y) + 16}">{tick / 10:.1f}</text>')
    for index, (key, colour) in enumerate(_LINES.items()):
        path = " ".join(place(point["threshold"], point[key]) for point in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        parts.append(f'<text x="{_WIDTH - 300}" y="{52 + 15 * index}" fill="{colour}">{_legend(key)}</text>')
    x, top = place(card["threshold"], 0.5).split(",")
    parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{_HEIGHT - _EDGE}" stroke="black" stroke-dasharray="4"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    """Rewrite docs/scope.md's table and docs/scope_curve.svg."""
    encoder, verifier = read_card(), read_card(VERIFIER_FOLDER)
    path = DOCS / "scope.md"
    text = path.read_text(encoding="utf-8")
    block = f"<!-- card -->\n{markdown(encoder, verifier)}\n<!-- /card -->"
    path.write_text(re.sub(r"<!-- card -->.*?<!-- /card -->", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")
    (DOCS / "scope_curve.svg").write_text(curve_svg(verifier), encoding="utf-8")
    return 0


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _legend(key: str) -> str:
    missed = next(bar for bar in BARS if bar.key == key).inside
    name, _, count = key.rpartition("_")
    stored = "1 fact" if count == "1" else "2,000 facts"
    return f"{name.replace('_', ' ')}, {stored}: {'missed' if missed else 'let in'}"


if __name__ == "__main__":
    sys.exit(main())
