"""The receipt of a run and the counts of its rows, as names and values."""

from __future__ import annotations

from offbook.doctor.inspection import Span, visible
from offbook.errors import first_few
from offbook.report.contents import Contents, Facts
from offbook.report.rows import TrainingRows
from offbook.report.words import WORDS


def counts(rows: TrainingRows) -> Facts:
    """How many rows, replies and tokens there are."""
    counts, lengths = rows.counts, rows.lengths
    return [
        (WORDS["rows"], f"{counts['rows']:,}"),
        (WORDS["replies_count"], f"{counts['replies']:,}"),
        (WORDS["supervised"], f"{lengths.supervised:,}"),
        (WORDS["mean_length"], f"{lengths.mean:.0f}"),
        (WORDS["longest"], f"{lengths.longest:,}"),
        (WORDS["duplicates"], f"{counts['duplicates']:,}"),
        (WORDS["open_prompts"], f"{counts['open_prompts']:,}"),
    ]


def shown(spans: list[Span]) -> list[Span]:
    """Tokens with their white space made visible."""
    return [Span(span.trained, tuple(map(visible, span.tokens))) for span in spans]


def facts(c: Contents) -> Facts:
    """The receipt in short."""
    receipt, facts = c.receipt, Facts()
    if receipt.rows:
        facts.append(
            (
                WORDS["examples"],
                WORDS["trained_rows"].with_values(
                    training=f"{receipt.rows.training:,}",
                    validation=f"{receipt.rows.validation:,}",
                ),
            )
        )
        for name, places in (
            ("cut_rows", receipt.rows.cut),
            ("dropped_rows", receipt.rows.dropped),
        ):
            if places:
                facts.append((WORDS[name], f"{len(places):,}: {first_few(places, 3)}"))
    if receipt.device:
        facts.append((WORDS["device"], receipt.device.name))
        facts.append((WORDS["threads"], receipt.device.threads))
    if receipt.micro_batch_tokens:
        facts.append((WORDS["micro_batch"], f"{receipt.micro_batch_tokens:,}"))
    if receipt.date:
        facts.append((WORDS["template_date"], receipt.date))
    return facts


def tables(c: Contents) -> list[tuple[str, object, Facts]]:
    """The long parts of the receipt: their keys in the page, names and contents."""
    receipt = c.receipt
    hashes = {f"base: {name}": value for name, value in receipt.base.items()}
    if receipt.chat_template:
        hashes["chat template"] = receipt.chat_template
    hashes |= {f"data: {name}": value for name, value in receipt.data.items()}
    hashes |= {f"commit: {name}": value for name, value in receipt.commits.items()}
    settings = {k: v for k, v in c.config.flat().items() if k != "output_dir"}
    parts = (
        ("hashes", WORDS["hashes"], hashes),
        ("versions", WORDS["versions"], receipt.versions),
        ("settings", WORDS["settings"], settings),
    )
    return [(key, name, list(values.items())) for key, name, values in parts if values]
