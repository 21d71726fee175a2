"""Colab でだけ起こることを、google.colab のモック（tests/colab/standin）と、GPU の能力のモックで確かめます。"""

import errno
import importlib
import shutil
import sys
import time
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, StopAt, adapter_difference, finish

import dpo_helpers as dpo


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """google.colab のモックを、Colab の中にいるように置きます。"""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "colab" / "standin"))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr(dpo, "DRIVE", tmp_path / "content" / "drive")
    for name in [name for name in sys.modules if name.partition(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    yield types.SimpleNamespace(drive=importlib.import_module("google.colab.drive"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "google"]:
        del sys.modules[name]


@pytest.fixture
def saved(small_run, tmp_path):
    """終わった実行のフォルダの写しです。"""
    return shutil.copytree(small_run.config.folder, tmp_path / "runs" / "small")


# --- Drive


@pytest.mark.colab
def test_drive_is_connected_and_the_result_is_kept_there(colab, saved):
    drive, message = dpo.connect_drive()
    assert drive == dpo.DRIVE / "MyDrive" / "dpo_runs" and "マイドライブ/dpo_runs" in message
    kept, message = dpo.keep_run(saved, drive)
    assert kept == drive / "small" and str(kept) in message
    assert dpo.is_done(kept) and [path.name for path in drive.iterdir()] == ["small"]
    assert dpo.load_run(kept).metrics["verdict"]
    assert dpo.keep_run(saved, drive)[0] == kept and dpo.is_done(kept)  # もう一度保存しても、同じ
    (kept / "metrics.json").write_bytes(b"")  # Drive との同期が終わっていない
    assert not dpo.is_done(kept)


@pytest.mark.parametrize("behaviour", ["refused", "timed_out", "unsupported", "not_empty"])
def test_drive_that_cannot_be_mounted_leaves_the_result_in_a_zip(behaviour, colab, saved):
    colab.drive.behaviour = behaviour
    drive, message = dpo.connect_drive()
    assert drive is None and "接続できませんでした" in message and "zip" in message and "\n" not in message
    check_zip(saved, *dpo.keep_run(saved, drive))


def check_zip(folder, kept, message):
    assert kept is None and f"{folder}.zip" in message
    with zipfile.ZipFile(f"{folder}.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert f"{folder.name}/adapter/adapter_model.safetensors" in names
    assert not [name for name in names if "checkpoint-" in name]


def full(source, target):
    raise OSError(errno.ENOSPC, "No space left on device", str(target))


def short(source, target):
    Path(target).write_bytes(Path(source).read_bytes()[:-1])


def unmounted(source, target):
    shutil.rmtree(dpo.DRIVE / "MyDrive")
    raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(target))


FAILURES = [full, short, unmounted]


def fail_at_the_third_file(monkeypatch, failure):
    copy, copied = shutil.copyfile, []

    def copyfile(source, target, **options):
        copied.append(target)
        return (failure if len(copied) == 3 else copy)(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_copy_that_fails_half_way_ends_in_a_zip_and_a_true_sentence(failure, colab, saved, monkeypatch):
    drive, _ = dpo.connect_drive()
    fail_at_the_third_file(monkeypatch, failure)
    kept, message = dpo.keep_run(saved, drive)
    assert "Google Drive に保存できませんでした" in message
    check_zip(saved, kept, message)
    assert not (drive / "small").exists() and not (drive / "small.tmp").exists()


def test_a_failed_copy_leaves_the_earlier_one_on_drive_alone(colab, saved, monkeypatch):
    drive, _ = dpo.connect_drive()
    dpo.keep_run(saved, drive)
    (saved / "memo.txt").write_text("あとから変わった")
    fail_at_the_third_file(monkeypatch, short)
    assert not dpo.keep_run(saved, drive)[0]
    assert dpo.is_done(drive / "small") and not (drive / "small" / "memo.txt").exists()


def test_nothing_is_written_below_a_drive_that_is_gone(saved, tmp_path):
    gone = tmp_path / "gone" / "dpo_runs"
    check_zip(saved, *dpo.keep_run(saved, gone))
    assert not gone.exists()


# --- 別のマシンでの再開


@pytest.fixture
def three_minutes(monkeypatch):
    """時計を見るたびに、3 分が過ぎます。"""
    ticks = iter(range(0, 10**9, 181))
    clock = types.SimpleNamespace(monotonic=lambda: next(ticks), perf_counter=time.perf_counter)
    monkeypatch.setattr(dpo, "time", clock)


@pytest.mark.colab
def test_a_new_machine_goes_on_from_the_last_whole_checkpoint(small_config, tmp_path, three_minutes):
    """Drive との同期が終わらないうちにマシンが消えると、そのフォルダは使わず、その前から続けます。"""
    config, drive = small_config(num_pairs=420, eval_fraction=0.02, sft_epochs=0.2), tmp_path / "drive"
    drive.mkdir()
    pairs, name = dpo.prepare_pairs(config), f"{config.folder.name}.partial"
    assert dpo.restore_run(config, pairs, drive) == ""
    with pytest.raises(KeyboardInterrupt):
        dpo.train(config, pairs, callbacks=[StopAt(101)], drive=drive)
    shutil.rmtree(config.folder)  # マシンごと消える
    assert {path.name for path in (drive / name).iterdir()} == {"sft", "checkpoint-50", "checkpoint-100"}
    for torn, said in {"sft": "", "": "DPO の 100 ステップ目", "checkpoint-100": "DPO の 50 ステップ目"}.items():
        copy = shutil.copytree(drive, tmp_path / f"torn {torn}")
        if torn:
            (copy / name / torn / "adapter_model.safetensors").write_bytes(b"")
        shutil.rmtree(config.folder, ignore_errors=True)
        message = dpo.restore_run(config, pairs, copy)
        assert said in message and bool(said) == bool(message)
    run = finish(config, pairs, drive=copy)  # 50 ステップ目から
    whole = finish(replace(config, output_dir=str(tmp_path / "whole")), pairs)
    assert adapter_difference(run.config.folder, whole.config.folder) < 1e-6
    assert dpo.keep_run(run.config.folder, copy)[0] and not (copy / name).exists()
    shutil.rmtree(run.config.folder)
    assert "終わっているので、保存した結果を使います" in dpo.restore_run(config, pairs, copy)
    assert dpo.train(config, pairs, drive=copy).metrics["verdict"] == run.metrics["verdict"]


@pytest.mark.parametrize("failure", [full, unmounted])
def test_training_goes_on_when_drive_fails_and_says_so(failure, colab, small_config, monkeypatch):
    drive, _ = dpo.connect_drive()
    said, config = [], small_config()
    fail_at_the_third_file(monkeypatch, failure)
    assert dpo.train(config, report=said.append, drive=drive).history
    assert any("Google Drive に保存できませんでした" in text and "このマシンには残っています" in text for text in said)


# --- Hub に置く


class Hub:
    """huggingface_hub.HfApi のモックです。"""

    calls = []

    def create_repo(self, repository, **options):
        if "/" not in repository:
            raise ValueError("Repo id must be in the form 'namespace/repo_name'")
        self.calls.append(("create", repository, options))

    def repo_info(self, repository):
        return types.SimpleNamespace(private="public" not in repository)

    def upload_folder(self, repo_id, folder_path):
        self.calls.append(("folder", repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_pushing_is_private_and_errors_are_one_sentence(small_run, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(dpo.HelperError, match="元のモデル .*small が Hub にない"):  # 手元のモデルのパスは、送らない
        dpo.push_run(small_run, "me/dpo")
    assert not Hub.calls
    monkeypatch.setattr(small_run.model.config, "_name_or_path", "microsoft/DialoGPT-small")
    assert dpo.push_run(small_run, "me/dpo") == "https://huggingface.co/me/dpo"
    create, folder = Hub.calls
    assert create == ("create", "me/dpo", {"private": True, "exist_ok": True})
    assert {"adapter_model.safetensors", "README.md"} <= {*folder[2]}
    assert 'from_pretrained("microsoft/DialoGPT-small")' in dpo.model_card(small_run)
    with pytest.raises(dpo.HelperError, match="ユーザー名/リポジトリ名"):
        dpo.push_run(small_run, "dpo")
    with pytest.raises(dpo.HelperError, match="公開のリポジトリ"):
        dpo.push_run(small_run, "me/public")
    assert len([call for call in Hub.calls if call[0] == "folder"]) == 1


# --- GPU


GPUS = {"Tesla T4": ((7, 5), True, False), "Tesla V100-SXM2-16GB": ((7, 0), False, False),
        "NVIDIA L4": ((8, 9), True, True), "NVIDIA A100-SXM4-40GB": ((8, 0), True, True),
        "NVIDIA H100": ((9, 0), True, True)}  # fmt: skip


@pytest.mark.parametrize("name", GPUS)
def test_cards_without_kernels_are_named_and_tf32_follows_the_card(name, monkeypatch):
    capability, supported, tf32 = GPUS[name]
    for function, value in {
        "is_available": True, "get_device_capability": capability, "get_device_name": name,
        "get_device_properties": types.SimpleNamespace(name=name, total_memory=15 * 2**30, major=capability[0]),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, function, lambda *args, value=value: value)

    def zeros(size, device, zeros=torch.zeros):
        if not supported:
            raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")
        return zeros(size)

    monkeypatch.setattr(torch, "zeros", zeros)
    runtime = dpo.describe_runtime()
    assert (runtime["gpu"], runtime["gpu_memory_gb"], runtime["tf32"]) == (name, 15.0, tf32)
    if supported:
        text = dpo.runtime_text(runtime)
        assert name in text and "float32" in text and ("TF32" in text) == tf32
        options = dpo.trainer_options(dpo.Config(), "dpo", 4)
        assert (options["bf16"], options["fp16"], options["tf32"]) == (False, False, tf32 or None)
    else:
        with pytest.raises(dpo.HelperError, match="V100.*sm_70.*T4"):
            dpo.runtime_text(runtime)


def test_without_a_gpu_dialogpt_becomes_the_tiny_model_and_says_so(capsys):
    tiny = dpo.Config(base_model="offline-tiny").resolved()
    assert dpo.fit_to_device(dpo.Config()).resolved() == dpo.fit_to_device(dpo.Config().resolved()).resolved() == tiny
    assert "T4 GPU" in capsys.readouterr().out
    own = dpo.Config(base_model="someone/model")
    assert dpo.fit_to_device(own) is own


def test_weights_are_float32_even_from_a_float16_file(small_base, small_config, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(small_base, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(small_base).half().save_pretrained(tmp_path / "half")
    model, _ = dpo.load_model(small_config(base_model=str(tmp_path / "half")))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


# --- パッケージ


def without(monkeypatch, *names):
    """names が入っていない環境に見せ、pip の引数を記録します。"""
    find, calls = importlib.util.find_spec, []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))
    monkeypatch.setattr(dpo, "run_pip", lambda *args: calls.append(args))
    return calls


@pytest.mark.colab
def test_install_packages_does_nothing_when_all_is_there(monkeypatch):
    calls = without(monkeypatch)
    assert dpo.install_packages().startswith("版: torch ") and not calls


@pytest.mark.colab
def test_install_packages_takes_only_what_is_missing_without_dependencies(monkeypatch):
    calls = without(monkeypatch, "trl")
    said = dpo.install_packages().splitlines()
    assert calls == [("install", "--no-deps", f"trl=={dpo.PACKAGES['trl']}")]
    assert said[0] == f"trl {dpo.PACKAGES['trl']} を入れました。" and said[1].startswith("版: ") and len(said) == 2


def test_torch_is_never_installed(monkeypatch):
    calls = without(monkeypatch, "torch", "trl")
    with pytest.raises(dpo.HelperError, match="torch がありません"):
        dpo.install_packages()
    assert not calls


def test_a_package_replaced_under_the_kernel_asks_for_a_restart(monkeypatch):
    import pyarrow

    monkeypatch.setattr(pyarrow, "__version__", "0.0.0")
    with pytest.raises(dpo.HelperError, match="pyarrow が、読み込んだあとで.*「セッションを再起動する」"):
        dpo.install_packages()


@pytest.mark.parametrize(("found", "removed"), [("0.10.0", True), ("0.16.0", False)])
def test_a_torchao_that_peft_rejects_is_removed_and_only_that(found, removed, monkeypatch):
    calls, version = without(monkeypatch), dpo.version
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("json" if name == "torchao" else name))
    monkeypatch.setattr(dpo, "version", lambda name: found if name == "torchao" else version(name))
    assert ("PEFT が対応していない版の torchao を" in dpo.install_packages()) == removed
    assert calls == [("uninstall", "-y", "torchao")] * removed
    monkeypatch.setitem(sys.modules, "torchao", types.SimpleNamespace(__version__=found))
    if removed:
        with pytest.raises(dpo.HelperError, match="セッションを再起動"):
            dpo.install_packages()


def test_a_failing_pip_is_one_sentence_with_its_reason():
    with pytest.raises(dpo.HelperError, match="pip install ./nowhere に失敗しました"):
        dpo.run_pip("install", "./nowhere")
