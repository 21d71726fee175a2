"""設定とコマンドラインの使い方を誤っても、一文の説明と終了コード 2 で終わり、書きかけを残さないことを確かめます。"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dpo_helpers as dpo

ROOT = Path(dpo.__file__).parent


@pytest.mark.colab
def test_defaults_are_the_specification():
    config = dpo.Config()
    assert (config.base_model, config.dataset, config.num_pairs) == ("microsoft/DialoGPT-small", "builtin", 1000)
    assert (config.num_train_epochs, config.learning_rate, config.max_length) == (1, 5e-6, 128)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (1, 4)
    assert config.effective_batch_size == 4 and 0 < config.beta <= 0.5 and config.eval_fraction == 0.15


def test_a_home_folder_and_hidden_files_are_no_other_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config, pairs = dpo.Config(base_model="offline-tiny", output_dir="~/out"), dpo.build_pairs(20)
    assert config.folder == tmp_path / "out"
    with pytest.raises(dpo.HelperError, match=f"{tmp_path}/none"):
        dpo.load_run("~/none")
    (config.folder / ".ipynb_checkpoints").mkdir(parents=True)
    (config.folder / ".DS_Store").touch()
    assert not dpo.is_finished(config, pairs)
    (config.folder / "mine.txt").touch()
    with pytest.raises(dpo.HelperError, match="別のもの"):
        dpo.is_finished(config, pairs)


def test_recommended_values_follow_the_model_and_give_way_to_the_user():
    small, tiny = dpo.Config().resolved(), dpo.Config(base_model="offline-tiny").resolved()
    assert None not in vars(small).values() and (small.sft_epochs, tiny.sft_epochs) == (6, 1)
    other = dpo.Config(base_model="some/model", lora_alpha=7.0).resolved()
    assert other.lora_alpha == 7.0 and other.lora_r == small.lora_r
    for rank in (8, 64):  # どのランクでも、α = 2r に直した学習率は同じ
        config = dpo.Config(base_model="some/model", lora_r=rank).resolved()
        assert config.learning_rate * config.lora_alpha / (2 * rank) == pytest.approx(4e-5)


@pytest.mark.colab
@pytest.mark.parametrize(("name", "value"), [
    ("learning_rate", 0.0), ("learning_rate", float("nan")), ("learning_rate", "5e-6"), ("learning_rate", None),
    ("learning_rate", True), ("learning_rate", float("inf")), ("learning_rate", 10**400), ("seed", -1), ("seed", 2**64),
    ("num_pairs", 19), ("num_pairs", 100.5), ("eval_fraction", 1.0), ("beta", 0.0), ("lora_r", 0), ("max_length", 1),
    ("per_device_train_batch_size", 0), ("sft_weight", -0.5), ("preference_weight", -1.0),
    ("bf16", 1), ("base_model", " "), ("base_model", b"x"), ("base_model", "\ud83d"), ("output_dir", "a\nb"),
    ("loss_type", "no"), ("sft_batch_size", 0), ("max_grad_norm", -1.0),
])  # fmt: skip
def test_bad_values_get_one_sentence_with_the_name_and_the_value(name, value):
    with pytest.raises(dpo.HelperError) as caught:
        dpo.Config(**{name: value})
    message = str(caught.value)
    assert name in message and repr(value) in message and message.endswith("。") and "\n" not in message


def test_a_settings_file_gives_the_same_settings_except_the_folder(tmp_path):
    config = dpo.Config(base_model="offline-tiny", lora_r=3, bf16=True, output_dir="elsewhere")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    assert dpo.load_config(path) == dataclasses.replace(config, output_dir=dpo.Config().output_dir)
    path.write_text('{"learning_rat": 1}')
    with pytest.raises(dpo.HelperError, match="learning_rat"):
        dpo.load_config(path)


def test_help_is_japanese_and_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        dpo.main(["--help"])
    text = capsys.readouterr().out
    assert not stop.value.code and "学習率" in text
    assert all(f"--{name}" in text for name in [*vars(dpo.Config()), "config"])


@pytest.mark.parametrize(("arguments", "facts"), [
    ("--base_model no-such/model", ["no-such/model", "offline-tiny", "ネットワーク"]),
    ("--num_pairs 1000000", ["1000000", "知識表"]),
    ("--num_pairs 10", ["num_pairs", "10", "20"]),
    ("--learning_rate nan", ["learning_rate", "nan"]),
    ("--learning_rate=-1", ["learning_rate", "-1"]),
    ("--learning_rate fast", ["learning_rate", "fast"]),
    ("--no_such_flag 1", ["no_such_flag"]),
    ("--dataset nothing.jsonl", ["nothing.jsonl"]),
    ("--dataset one.csv", ["1 種類"]),
    ("--dataset gap.csv", ["2 件目"]),  # 欄の足りない行
    ("--config nothing.json", ["nothing.json", "JSON"]),
    ("--output_dir full", ["full", "output_dir"]),
])  # fmt: skip
def test_bad_use_ends_with_2_one_sentence_and_no_folder(arguments, facts, small_base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "大切なもの").mkdir(parents=True)
    (tmp_path / "one.csv").write_text("prompt,chosen,rejected\nあ,い,う\n")
    (tmp_path / "gap.csv").write_text("prompt,chosen,rejected\nあ,い,う\nか,き\nさ,し,す\n")
    before = sorted(tmp_path.rglob("*"))
    assert dpo.main(["--base_model", str(small_base), "--output_dir", "out", *arguments.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("。") and any("ぁ" <= letter <= "ん" for letter in line)
    assert all(fact in line for fact in facts), line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.colab
def test_command_line_tells_what_is_wrong_with_the_users_file_before_training(small_base, tmp_path):
    """README のコマンドと同じ形で、別のプロセスとして実行します。ライブラリの警告は、どちらの版でも出ません。"""
    rows = [f"質問{i}について教えて,よい回答{i}です,だめな回答{i}です" for i in range(30)]
    (tmp_path / "my.csv").write_text("prompt,chosen,rejected\n" + "\n".join([*rows, rows[0]]), "cp932")
    options = {"base_model": small_base, "dataset": "my.csv", "output_dir": "out", "lora_r": 2, "sft_epochs": 1}
    arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
    command = [sys.executable, str(ROOT / "dpo_helpers.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    shown = done.stdout
    assert "31 ペア" in shown and "31 件目（計 1 件、3.2%）" in shown and (tmp_path / "out" / "metrics.json").is_file()
    assert shown.index("31 件目") < shown.index("判定: ")
