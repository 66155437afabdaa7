"""Twelve faults of twelve kinds in 300 rows: all are found, and none is in the cleaned copy."""

from __future__ import annotations

import json
from pathlib import Path

from offbook.data.conversations import read_conversations
from offbook.doctor.doctor import Doctor
from offbook.doctor.findings import KINDS, Finding
from offbook.doctor.fixes import write_fixed
from offbook.settings.sections import DoctorSettings
from support.planted import FAULTS, PHONE, SWAPPED, write_planted


def examine(path: Path) -> tuple[Doctor, list[Finding]]:
    reader = read_conversations(str(path))
    doctor = Doctor(DoctorSettings())
    assert sum(1 for _ in doctor.watch(reader)) == doctor.rows
    return doctor, doctor.findings(reader)


def lines_of(doctor: Doctor) -> dict[str, list[int]]:
    """The lines of each kind that is more than a note."""
    return {
        kind: [int(hit.source.rpartition(":")[2]) for hit in hits]
        for kind, hits in doctor.hits.items()
        if KINDS[kind].severity != "note"
    }


def test_each_fault_is_found_and_nothing_else(tmp_path: Path) -> None:
    places = write_planted(tmp_path / "rows.jsonl")
    doctor, findings = examine(tmp_path / "rows.jsonl")
    assert (doctor.rows, len(places)) == (300, 12)
    assert lines_of(doctor) == {kind: [line] for kind, line in places.items()}
    assert {f.kind: f.count for f in findings if f.severity != "note"} == dict.fromkeys(FAULTS, 1)


def test_the_copy_is_clean_and_the_log_names_each_change(tmp_path: Path) -> None:
    rows, copy = tmp_path / "rows.jsonl", tmp_path / "clean.jsonl"
    places = write_planted(rows)
    before = rows.read_bytes()
    doctor, _ = examine(rows)
    fixed = write_fixed(read_conversations(str(rows)), doctor.hits, "look", copy)
    assert rows.read_bytes() == before
    cleaned, findings = examine(copy)
    assert cleaned.rows == fixed.kept == 300 - 9
    assert [f.kind for f in findings if f.severity != "note"] == []
    log = [json.loads(line) for line in fixed.log.read_text(encoding="utf-8").splitlines()]
    assert {entry["kind"]: entry["row"] for entry in log} == {
        kind: f"{rows}:{line}" for kind, line in places.items()
    }
    changed = {"swapped", "control_text", "personal"}
    assert {e["kind"] for e in log if e["change"] == "changed"} == changed
    text = copy.read_text(encoding="utf-8")
    assert PHONE not in text
    assert PHONE not in fixed.log.read_text(encoding="utf-8")
    assert '"output": "Aye, little boat, two drops and a rag."' in text
    assert f'"output": "{SWAPPED}"' in text
    kept = set(before.decode().splitlines()) & {
        json.dumps(json.loads(line), ensure_ascii=False) for line in text.splitlines()
    }
    assert len(kept) == 300 - 12


def test_without_look_only_what_is_nearly_always_a_fault_is_changed(tmp_path: Path) -> None:
    write_planted(tmp_path / "rows.jsonl")
    doctor, _ = examine(tmp_path / "rows.jsonl")
    reader = read_conversations(str(tmp_path / "rows.jsonl"))
    write_fixed(reader, doctor.hits, "fix", tmp_path / "clean.jsonl")
    _, findings = examine(tmp_path / "clean.jsonl")
    found = [f.kind for f in findings if f.severity != "note"]
    assert found == [kind for kind in KINDS if kind in FAULTS and KINDS[kind].severity == "look"]
