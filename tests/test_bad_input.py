"""どんな値やファイルを渡しても、結果か、一文の日本語の誤りのどちらかになることを確かめます。"""

import json
import shutil
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dpo_helpers as dpo

settings.register_profile("ours", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
settings.load_profile("ours")

ODD_TEXTS = ["", " ", "　", "\0", "\u200b", "\u202eabc", "\ud83d", "あ" * 2000, "../x", "/dev/null", "%s%n", "{0}",
             "<script>alert(1)</script>", "質問:", "\ufffd"]  # fmt: skip
CELL = st.one_of(st.none(), st.text(), st.sampled_from(ODD_TEXTS), st.integers(), st.floats(), st.lists(st.text()))
TALK = st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), CELL), max_size=3)
COLUMNS = st.sampled_from(("prompt", "chosen", "rejected", "question", "input", "system", "messages", "concept"))
ROWS = st.lists(st.one_of(st.dictionaries(COLUMNS, CELL | TALK), CELL), max_size=5)


def outcome(function, *args, **options):
    """誤りが HelperError なら、一行で、句点で終わる日本語の文かを確かめます。ほかの誤りはそのまま出ます。"""
    try:
        return function(*args, **options)
    except dpo.HelperError as error:
        text = str(error)
        assert text.endswith("。") and len(text.splitlines()) == 1 and len(text) < 3000, text[:300]
        assert any("ぁ" <= char <= "ん" for char in text)
        return error


@given(kind=st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet"]), content=st.one_of(
    st.binary(max_size=200), ROWS.map(lambda rows: json.dumps(rows, default=str).encode()),
    st.lists(st.text(alphabet=string.printable + "あ質問、。\u200b\ufeff"), max_size=6).map(
        lambda cells: b"prompt,chosen,rejected\n" + ",".join(cells).encode()
    ),
))  # fmt: skip
def test_any_file(kind, content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"pairs{kind}"
    path.write_bytes(content)
    outcome(dpo.load_pairs, path)


@settings(max_examples=150)
@given(ROWS | st.lists(st.fixed_dictionaries(dict.fromkeys(("prompt", "chosen", "rejected"), st.text())), max_size=8))
def test_any_rows_are_refused_or_audited_repaired_and_split(small_run, rows):
    pairs = outcome(dpo.load_pairs, rows)
    if not isinstance(pairs, dpo.HelperError):
        assert len(pairs) == len(rows)
        findings = dpo.audit_pairs(pairs, small_run.tokenizer)
        for found in findings:
            assert all(0 <= i < len(pairs) for i in found["rows"]) and dpo.finding_text(found).endswith("。")
        assert sum(map(len, dpo.repair(pairs, findings))) == len(pairs)
        outcome(dpo.split_pairs, pairs)


@pytest.mark.parametrize("name", ODD_TEXTS, ids=ascii)
def test_odd_names_and_questions(name, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function in (dpo.load_pairs, dpo.load_run, dpo.load_config):
        assert isinstance(outcome(function, name), dpo.HelperError)
    assert isinstance(outcome(dpo.generate_response, name, small_run.model, small_run.tokenizer), str | dpo.HelperError)


@pytest.mark.parametrize("how", ["途中まで", "別の形の JSON", "消えた"])
@pytest.mark.parametrize("part", [
    "config.json", "metrics.json", "history.jsonl", "pairs.jsonl", "answers.jsonl", "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors", "sft/adapter_model.safetensors",
])  # fmt: skip
def test_a_broken_run_folder_is_named(part, how, small_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(small_run.config.folder, folder)
    content = (folder / part).read_bytes()
    (folder / part).unlink()
    if how != "消えた":
        (folder / part).write_bytes(content[: len(content) // 2] if how == "途中まで" else b"[1, 2, 3]")
    found = outcome(dpo.load_run, folder)
    assert isinstance(found, dpo.HelperError) and str(folder) in str(found)
