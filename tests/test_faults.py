"""ディスクがいっぱい、消えたフォルダ、中止の合図、壊れたチェックポイントの下でも、済んだ仕事が失われないことを確かめます。"""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT
from test_training import adapter_difference

import dpo_helpers as dpo


def arguments(config):
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


@pytest.mark.slow
def test_no_failing_write_loses_anything(small_base, tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "failing_run.py"), str(small_base), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    tried = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(tried) == 9 and tried[0]["total"] > 40
    for each in tried:
        assert "書" in each["sentence"] and each["sentence"].endswith("。"), each
        assert each["again"] == "" and each["same"] and each["drafts"] == [], each


@pytest.fixture(scope="module")
def long_config(small_config, tmp_path_factory):
    """数秒かかる、途中で止めるための設定です。"""
    return lambda folder: small_config(num_pairs=400, num_train_epochs=2.0, sft_epochs=0.1, output_dir=folder)


@pytest.fixture(scope="module")
def uninterrupted(long_config, tmp_path_factory):
    config = long_config(tmp_path_factory.mktemp("faults") / "whole")
    assert dpo.main(arguments(config)) == 0
    return Path(config.output_dir)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_a_checkpoint_and_says_how_to_go_on(number, long_config, uninterrupted, tmp_path):
    config = long_config(tmp_path / "out")
    command = [sys.executable, str(ROOT / "dpo_helpers.py"), *arguments(config)]
    heard = partial(signal.signal, number, signal.SIG_DFL)  # テストが裏で動いていると、SIGINT は無視になっている
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heard}
    with subprocess.Popen(command, **options) as process:
        while not list((tmp_path / "out").glob("checkpoints/checkpoint-50")):
            assert process.poll() is None, "止める前に終わってしまいました"
            time.sleep(0.01)
        process.send_signal(number)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and "中止しました" in shown and "Traceback" not in shown
    saved = dpo.last_checkpoint(tmp_path / "out" / "checkpoints")
    assert 50 <= dpo._step(saved) < 170 and not list((tmp_path / "out").glob("*.tmp"))
    assert dpo.main(command[2:]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert metrics["resumed_from_step"] == dpo._step(saved)
    assert adapter_difference(tmp_path / "out", uninterrupted) == 0


def test_a_stop_in_a_notebook_saves_a_checkpoint_too(long_config, uninterrupted, tmp_path):
    """ノートブックの中止は、セルの実行中に SIGINT が届いたのと同じです。"""
    config = long_config(tmp_path / "out")

    def watch(status, history):
        if status["phase"] == "DPO" and status["step"] == 77:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            dpo.train(config, watch=watch)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert dpo._step(dpo.last_checkpoint(tmp_path / "out" / "checkpoints")) in (77, 78)
    run = dpo.train(config)
    dpo.evaluate_run(run)
    dpo.save_run(run)
    assert adapter_difference(tmp_path / "out", uninterrupted) == 0


PARTS = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_config.json",
         "adapter_model.safetensors", "ref/adapter_model.safetensors")  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
def test_a_broken_checkpoint_is_passed_over(part, how, uninterrupted, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(uninterrupted / "checkpoints", folder)
    newest, older = dpo._checkpoints(folder)
    assert dpo.last_checkpoint(folder) == newest
    path = newest / part
    content = bytearray(path.read_bytes())
    if how == "flip":
        places = range(len(content) // 3, len(content) // 2)
        for i in places if not part.endswith("safetensors") else [20]:  # safetensors の数の違いは、わからない
            content[i] ^= 0xFF
    path.write_bytes(content[: len(content) // 2] if how == "cut" else content)
    if how == "gone":
        path.unlink()
    passed = part == "rng_state.pth" and how == "gone"  # プロセスを並べたときは、別の名前になる
    assert dpo.last_checkpoint(folder) == (newest if passed else older)


def test_a_folder_removed_during_training_is_said(small_config, tmp_path):
    config = small_config(output_dir=tmp_path / "out", num_train_epochs=5.0)

    def watch(status, history):
        if status["phase"] == "DPO" and status["step"] == 10:
            shutil.rmtree(tmp_path / "out")

    with pytest.raises(dpo.HelperError, match="フォルダ"):
        run = dpo.train(config, watch=watch)
        dpo.evaluate_run(run)
        dpo.save_run(run)
    run = dpo.train(small_config(output_dir=tmp_path / "out2", num_train_epochs=5.0))  # 同じカーネルで、やり直せる
    run.lock.release()


@pytest.mark.parametrize("place", ["/proc/out", "{file}/out", "/dev/null"])
def test_a_place_that_cannot_be_written_is_said(place, small_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(dpo.HelperError, match="フォルダ"):
        dpo.train(small_config(output_dir=place.format(file=tmp_path / "file")))


def test_a_folder_of_another_version_is_refused_and_left_alone(small_run, small_config, tmp_path):
    """前の版の設定には、今はない項目があったり、今の項目がなかったりします。"""
    for change in ({"old_setting": 1}, {"beta": None}):
        folder = tmp_path / "old"
        shutil.copytree(small_run.folder, folder, dirs_exist_ok=True)
        saved = json.loads((folder / "config.json").read_text("utf-8")) | change | {"identity": "0" * 64}
        (folder / "config.json").write_text(json.dumps(saved))
        before = sorted(folder.rglob("*"))
        with pytest.raises(dpo.HelperError, match="設定かデータの違う実行"):
            dpo.train(small_config(output_dir=folder))
        with pytest.raises(dpo.HelperError):
            dpo.load_run(folder)
        assert sorted(folder.rglob("*")) == before
