"""設定とコマンドラインの使い方を誤っても、一文の説明と終了コード 2 で終わり、書きかけを残さないことを確かめます。"""

import dataclasses
import subprocess
import sys

import pytest
from conftest import ROOT, run_cli

import dpo_helpers as dpo


def test_defaults_are_the_specification():
    config = dpo.Config()
    assert (config.base_model, config.dataset, config.num_pairs) == ("microsoft/DialoGPT-small", "builtin", 1000)
    assert (config.num_train_epochs, config.learning_rate, config.max_length) == (1, 5e-6, 128)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (1, 4)
    assert config.effective_batch_size == 4 and 0 < config.beta <= 0.5 and config.eval_fraction == 0.15


def test_recommended_values_follow_the_model_and_give_way_to_the_user():
    for name, values in dpo.RECOMMENDED.items():
        config = dpo.Config(base_model=name).resolved()
        assert {key: getattr(config, key) for key in values} == values
    config = dpo.Config(base_model="some/model", lora_alpha=7.0).resolved()
    assert config.lora_alpha == 7.0 and config.lora_r == dpo.RECOMMENDED["microsoft/DialoGPT-small"]["lora_r"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1e-6), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("seed", -1),
        ("learning_rate", float("inf")), ("learning_rate", "5e-6"), ("learning_rate", None), ("learning_rate", True),
        ("num_pairs", 19), ("num_pairs", -5),
        ("num_pairs", 100.5), ("eval_fraction", 0.0), ("eval_fraction", 1.0), ("eval_fraction", float("nan")),
        ("beta", 0.0), ("beta", -0.1), ("lora_r", 0), ("lora_alpha", 0.0), ("lora_alpha", -1.0), ("max_length", 1),
        ("per_device_train_batch_size", 0), ("gradient_accumulation_steps", -1), ("num_train_epochs", 0.0),
        ("sft_epochs", -1.0), ("sft_weight", -0.5), ("max_grad_norm", -1.0), ("base_model", ""), ("output_dir", ""),
        ("data_seed", 1.5), ("loss_type", "sigmoidd"), ("report_to", ""),
        ("train_share", 0.0), ("train_share", -0.1), ("train_share", 1.5),
    ],
)  # fmt: skip
def test_bad_values_get_one_sentence_with_the_name_and_the_value(name, value):
    with pytest.raises(dpo.HelperError) as caught:
        dpo.Config(**{name: value})
    message = str(caught.value)
    assert name in message and message.endswith("。") and "\n" not in message
    assert value == "" or repr(value) in message


def test_import_needs_only_the_standard_library_and_is_quick():
    code = (
        "import sys, time; t = time.perf_counter(); import dpo_helpers; t = time.perf_counter() - t;"
        "ours = {'dpo_helpers', '__main__', *sys.stdlib_module_names};"
        "outside = {m.partition('.')[0] for m in sys.modules} - ours;"
        "print(t, sorted(m for m in outside if not m.startswith('_')))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    seconds, outside = done.stdout.split(maxsplit=1)
    assert float(seconds) < 3  # 約束は 0.1 秒。ゆるい見張り
    assert outside.strip() == "[]"


def test_help_is_japanese_and_names_every_setting(tmp_path):
    done = run_cli("--help", cwd=tmp_path)
    assert done.returncode == 0
    for field in dataclasses.fields(dpo.Config):
        assert f"--{field.name}" in done.stdout
    assert "学習率" in done.stdout and "show this help" not in done.stdout and "options:" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--base_model", "no-such/model"], ["no-such/model", "offline-tiny", "ネットワーク", "フォルダ"]),
        (["--base_model", "offline-tiny", "--num_pairs", "1000000"], ["1000000", "知識表"]),
        (["--base_model", "offline-tiny", "--num_pairs", "10"], ["num_pairs", "10", "20"]),
        (["--base_model", "offline-tiny", "--learning_rate", "nan"], ["learning_rate", "nan"]),
        (["--base_model", "offline-tiny", "--learning_rate=-1"], ["learning_rate", "-1"]),
        (["--base_model", "offline-tiny", "--learning_rate", "fast"], ["learning_rate", "fast"]),
        (["--base_model", "offline-tiny", "--no_such_flag", "1"], ["no_such_flag"]),
        (["--base_model", "offline-tiny", "--dataset", "nothing.jsonl"], ["nothing.jsonl"]),
        (["--config", "nothing.json"], ["nothing.json", "JSON"]),
        (["--config", ""], ["設定のファイル"]),
    ],
)
def test_bad_use_ends_with_2_one_sentence_and_no_folder(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert dpo.main([*arguments, "--output_dir", "out"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("エラー: ") and lines[0].endswith("。")
    assert all(word in lines[0] for word in expected)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "gpt2"}'])
def test_a_folder_with_a_foreign_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(dpo.HelperError, match="空のフォルダ"):
        dpo._check_folder(tmp_path, "identity")
    with pytest.raises(dpo.HelperError, match="フォルダではありません"):
        dpo._check_folder(tmp_path / "config.json", "identity")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("大切")
    done = run_cli("--base_model", "offline-tiny", "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 2 and "空のフォルダ" in done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_command_line_tells_what_is_wrong_with_the_users_file_before_training(small_base, tmp_path, capsys):
    rows = [f"質問{i}について教えて,よい回答{i}です,だめな回答{i}です" for i in range(30)]
    (tmp_path / "my.csv").write_text("prompt,chosen,rejected\n" + "\n".join([*rows, rows[0]]), "cp932")
    options = {"base_model": small_base, "dataset": tmp_path / "my.csv", "output_dir": tmp_path / "out", "lora_r": 2}
    arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
    assert dpo.main([*arguments, "--sft_epochs", "0"]) == 0
    shown = capsys.readouterr().out
    assert "（31 対）" in shown and "31 件目（計 1 件、3.2%）: 同じ対が重なっています" in shown
    assert shown.index("同じ対が重なっています") < shown.index("評価しています") < shown.index("対だけなので")
