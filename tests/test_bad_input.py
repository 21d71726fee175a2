"""どんな値やファイルを渡しても、結果か、一文の日本語の誤りのどちらかになることを確かめます。"""

import json
import math
import shutil
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dpo_helpers as dpo

settings.register_profile("ours", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
settings.load_profile("ours")

ODD_TEXTS = [
    "", " ", "\n", "　", "\0", "\u200b", "\u202eabc", "\ud83d", "😀", "👨‍👩‍👧‍👦", "a" * 1_000_000, "あ" * 2000, "../x",
    "/dev/null", "a\nb", "<script>alert(1)</script>", "=1+1", "%s%n", "{0}", "NaN", "-1", "質問:", "回答:", "\ufffd",
]  # fmt: skip
ODD_VALUES = [
    *ODD_TEXTS, None, True, False, -1, 0, 10**18, 2**64, 10**400, -(10**400), 1.5, -0.0, 1e-320, 1e308, math.nan,
    math.inf, -math.inf, 1j, b"bytes", [], [1], {}, {"a": 1}, (), {1}, object(), str, "5e-6", "1000", "自分で決める",
]  # fmt: skip
FIELDS = [field.name for field in dpo.fields(dpo.Config)]


def outcome(function, *args, **options):
    """誤りが HelperError なら、一行で、句点で終わる、長すぎない文かを確かめます。ほかの誤りはそのまま出ます。"""
    try:
        return function(*args, **options)
    except dpo.HelperError as error:
        text = str(error)
        assert text.endswith("。") and len(text.splitlines()) == 1 and len(text) < 1500, text[:300]
        assert any("ぁ" <= char <= "ん" for char in text)
        return error


@pytest.mark.parametrize("name", FIELDS)
def test_every_odd_value_of_every_setting(name):
    """23 個の設定 × 50 あまりの値です。"""
    refused = sum(isinstance(outcome(dpo.Config, **{name: value}), dpo.HelperError) for value in ODD_VALUES)
    assert refused >= 30, f"{name} で断られたのは {refused} 個だけです"


@given(st.dictionaries(st.sampled_from(FIELDS), st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())
)))  # fmt: skip
def test_any_combination_of_settings(chosen):
    made = outcome(dpo.Config, **chosen)
    if isinstance(made, dpo.Config):
        json.dumps(dpo.asdict(made), ensure_ascii=False).encode()
        assert made.effective_batch_size >= 1 and 0 < made.learning_rate < 1e15


@given(content=st.binary(max_size=300) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_settings_file(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "settings.json"
    path.write_bytes(content)
    assert isinstance(outcome(dpo.load_config, path), (dpo.Config, dpo.HelperError))


CELL = st.one_of(st.none(), st.text(), st.sampled_from(ODD_TEXTS[:10]), st.integers(), st.floats(), st.lists(st.text()))
TALK = st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), CELL), max_size=3)
COLUMNS = st.sampled_from(("prompt", "chosen", "rejected", "question", "input", "system", "messages", "concept"))
ROWS = st.lists(st.one_of(st.dictionaries(COLUMNS, CELL | TALK), CELL), max_size=5)


@settings(max_examples=300)
@given(ROWS)
def test_any_rows(rows):
    pairs = outcome(dpo.load_pairs, rows)
    if not isinstance(pairs, dpo.HelperError):
        assert {"prompt", "chosen", "rejected"} <= set(pairs.column_names) and len(pairs) <= len(rows)


@settings(max_examples=60)
@given(kind=st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet"]), content=st.one_of(
    st.binary(max_size=200),
    st.lists(st.text(alphabet=string.printable + "あ質問、。\u200b\ufeff"), max_size=6).map(
        lambda cells: b"prompt,chosen,rejected\n" + ",".join(cells).encode()
    ),
    ROWS.map(lambda rows: json.dumps(rows, default=str).encode()),
))  # fmt: skip
def test_any_file(kind, content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"pairs{kind}"
    path.write_bytes(content)
    outcome(dpo.load_pairs, path)


@pytest.mark.parametrize("source", [value for value in ODD_VALUES if value != []], ids=lambda value: repr(value)[:20])
def test_odd_sources_of_pairs(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(outcome(dpo.load_pairs, source), dpo.HelperError)


PAIR = st.tuples(st.text(max_size=50), st.text(max_size=50), st.text(max_size=50))


@pytest.fixture(scope="module")
def tokenizer(small_base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(small_base)


@settings(max_examples=60)
@given(cells=st.lists(PAIR | st.sampled_from([(text, text, "a") for text in ODD_TEXTS[:10]]), min_size=1, max_size=12))
def test_any_pairs_can_be_audited_repaired_and_split(tokenizer, cells):
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in cells]
    pairs = outcome(dpo.load_pairs, rows)
    if isinstance(pairs, dpo.HelperError):
        return
    findings = dpo.audit_pairs(pairs, tokenizer)
    assert all(dpo.finding_text(found) and (found["count"] or 0) <= len(pairs) for found in findings)
    outcome(dpo.refuse_errors, findings)
    dpo.audit_table(findings)
    repaired, _ = dpo.repair(pairs)
    assert len(repaired) <= len(pairs)
    parts = outcome(dpo.split_pairs, pairs)
    if not isinstance(parts, dpo.HelperError):
        assert sum(map(len, parts)) == len(pairs)


@pytest.mark.parametrize("prompt", ODD_VALUES, ids=lambda value: repr(value)[:20])
def test_odd_questions(prompt, small_run):
    answer = outcome(dpo.generate_response, prompt, small_run.model, small_run.tokenizer)
    assert isinstance(answer, (str, dpo.HelperError))


ARGUMENT = st.sampled_from([f"--{name}" for name in FIELDS] + ["--config", "--", "-", "--x", "=", "1"]) | st.text()


@given(st.lists(ARGUMENT.filter(lambda text: not text.startswith(("-h", "--h"))), max_size=4))
def test_any_arguments(arguments):
    outcome(dpo.parse_config, arguments)


BROKEN = {
    "空": lambda path: path.write_bytes(b""),
    "途中まで": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "でたらめ": lambda path: path.write_bytes(b"\x00\xff" * 100),
    "別の形の JSON": lambda path: path.write_text("[1, 2, 3]"),
    "消えた": lambda path: path.unlink(),
    "フォルダ": lambda path: (path.unlink(), path.mkdir()),
}
PARTS = ("config.json", "metrics.json", "history.jsonl", "pairs.jsonl", "answers.jsonl", "adapter/adapter_config.json",
         "adapter/adapter_model.safetensors", "warmup/adapter_model.safetensors")  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("part", PARTS)
def test_a_broken_run_folder_is_named(part, how, small_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(small_run.folder, folder)
    BROKEN[how](folder / part)
    found = outcome(dpo.load_run, folder)
    assert isinstance(found, dpo.HelperError) and str(folder) in str(found)


@pytest.mark.parametrize("folder", ODD_TEXTS, ids=lambda value: repr(value)[:20])
def test_odd_names_of_run_folders(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(outcome(dpo.load_run, folder), dpo.HelperError)
