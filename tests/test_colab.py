"""Colab でだけ起こることを、google.colab の代役（tests/colab/standin）と、GPU の能力の代役で確かめます。"""

import errno
import importlib
import shutil
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_training import adapter_difference

import dpo_helpers as dpo


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """google.colab の代役を、Colab の中にいるように置きます。"""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "colab" / "standin"))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr(dpo, "DRIVE", tmp_path / "content" / "drive")
    for name in [name for name in sys.modules if name.partition(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    parts = ("drive", "errors", "runtime", "userdata")
    yield types.SimpleNamespace(**{name: importlib.import_module(f"google.colab.{name}") for name in parts})
    for name in [name for name in sys.modules if name.partition(".")[0] == "google"]:
        del sys.modules[name]


@pytest.fixture
def saved(small_run, tmp_path):
    """終わった実行のフォルダの写しです。"""
    return shutil.copytree(small_run.folder, tmp_path / "runs" / "small")


# --- Drive


def test_drive_is_connected_and_the_result_is_kept_there(colab, saved):
    drive, message = dpo.connect_drive()
    assert drive == dpo.DRIVE / "MyDrive" / "dpo_runs" and "マイドライブ/dpo_runs" in message
    kept, message = dpo.keep_run(saved, drive)
    assert kept == drive / "small" and "読み返して確かめました" in message and str(kept) in message
    assert dpo._is_whole(kept) and [path.name for path in drive.iterdir()] == ["small"]
    assert dpo.load_run(kept).metrics["verdict"]
    (kept / "memo.txt").write_text("自分のメモ")
    assert dpo.keep_run(saved, drive)[0] == kept and dpo._is_whole(kept)  # もう一度保存しても、同じ
    assert (kept / "memo.txt").exists() and not saved.with_name("small.zip").exists()


@pytest.mark.parametrize("behaviour", ["refused", "timed_out", "unsupported", "not_empty"])
def test_drive_that_cannot_be_mounted_leaves_the_result_in_a_zip(behaviour, colab, saved):
    colab.drive.behaviour = behaviour
    drive, message = dpo.connect_drive()
    assert drive is None and "接続できませんでした" in message and "zip" in message and "\n" not in message
    check_zip(saved, *dpo.keep_run(saved, drive))


def test_a_missing_google_colab_package_is_survived(monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    drive, message = dpo.connect_drive()
    assert drive is None and "ModuleNotFoundError" in message


def check_zip(folder, kept, message):
    assert kept is None and f"{folder}.zip" in message
    with zipfile.ZipFile(f"{folder}.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert f"{folder.name}/adapter/adapter_model.safetensors" in names
    assert not [name for name in names if "checkpoint" in name]


def full(source, target):
    raise OSError(errno.ENOSPC, "No space left on device", str(target))


def short(source, target):
    target.write_bytes(source.read_bytes()[:-1])


def empty(source, target):
    target.write_bytes(b"")


def unmounted(source, target):
    shutil.rmtree(dpo.DRIVE / "MyDrive")
    raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(target))


def vanished(source, target):
    """外れたことに誰も気づかないまま、つなぐ前のフォルダに書いてしまう場合です。"""
    shutil.rmtree(dpo.DRIVE / "MyDrive")
    target.parent.mkdir(parents=True)
    target.write_bytes(source.read_bytes())


FAILURES = [full, short, empty, unmounted, vanished]


def fail_at_the_third_file(monkeypatch, failure):
    copy, copied = shutil.copyfile, []

    def copyfile(source, target):
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
    assert not (drive / "small").exists()


def test_a_failed_copy_leaves_the_earlier_one_on_drive_alone(colab, saved, monkeypatch):
    drive, _ = dpo.connect_drive()
    dpo.keep_run(saved, drive)
    (saved / "memo.txt").write_text("あとから変わった")
    with monkeypatch.context() as patch:
        fail_at_the_third_file(patch, short)
        assert not dpo.keep_run(saved, drive)[0]
    assert dpo._is_whole(drive / "small") and not (drive / "small" / "memo.txt").exists()

    def full_at_done(path, *args, write=Path.write_text):
        if path.name == "DONE":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return write(path, *args)

    monkeypatch.setattr(Path, "write_text", full_at_done)
    assert not dpo.keep_run(saved, drive)[0]
    assert dpo._is_whole(drive / "small") and [path.name for path in drive.iterdir()] == ["small"]


# --- 別のマシンでの再開


@pytest.fixture(scope="module")
def uninterrupted(small_config):
    run = dpo.train(long_config(small_config))
    dpo.evaluate_run(run)
    dpo.save_run(run)
    run.lock.release()
    return run.folder


def long_config(small_config, **options):
    return small_config(num_pairs=720, sft_epochs=0.2, **options)  # 更新 153 回、チェックポイントは 50・100・150


def disconnect_at(step):
    def watch(status, history):
        if status["phase"] == "DPO" and status["step"] == step:
            raise KeyboardInterrupt

    return watch


def run_until_disconnected(config, drive, step):
    with pytest.raises(KeyboardInterrupt):
        dpo.train(config, watch=disconnect_at(step), drive=drive)
    shutil.rmtree(config.output_dir)  # マシンごと消える


@pytest.mark.slow
@pytest.mark.parametrize("broken", [(), ("checkpoint-150", "checkpoint-100"), ("start",)])
def test_a_new_machine_goes_on_from_the_last_whole_checkpoint(broken, small_config, uninterrupted, tmp_path):
    config, drive = long_config(small_config), tmp_path / "drive"
    drive.mkdir()
    pairs, partial = dpo.prepare_pairs(config), drive / "run.partial"
    run_until_disconnected(config, drive, 152)
    assert sorted(path.name for path in partial.iterdir()) == ["checkpoint-100", "checkpoint-150", "start"]
    for name in broken:  # Drive との同期が終わらないうちに、マシンが消えた
        (partial / name / ("config.json" if name == "start" else "adapter_config.json")).write_bytes(b"")
    message = dpo.restore_run(config, pairs, drive)
    step = {0: 150, 2: 0}[len(broken)] if broken != ("start",) else None
    expected = f"DPO の {step} 回目の更新のあとから" if step else "DPO の初めから"
    assert ("壊れているため、初めから" if step is None else expected) in message
    if not step:  # もう一度切れても、前に壊れたものに惑わされず、今度の途中から進む
        run_until_disconnected(config, drive, 60)
        assert sorted(path.name for path in partial.iterdir()) == ["checkpoint-50", "start"]
        step = 50
        assert "DPO の 50 回目の更新のあとから" in dpo.restore_run(config, pairs, drive)
    run = dpo.train(config, pairs, drive=drive)
    assert run.timing["resumed_from_step"] == step
    dpo.evaluate_run(run)
    assert adapter_difference(dpo.save_run(run), uninterrupted) == 0
    assert dpo.keep_run(run.folder, drive)[0] and not partial.exists()
    run.lock.release()
    shutil.rmtree(run.folder)
    assert "終わった実行があります" in dpo.restore_run(config, pairs, drive)
    said, seen = [], []
    again = dpo.train(config, pairs, lambda status, history: seen.append(status), report=said.append, drive=drive)
    assert again.metrics["verdict"] == run.metrics["verdict"]
    assert "終わっているので" in said[0] and [status["step"] for status in seen] == [153]  # 図は、終わりの様子を描く


def test_progress_on_this_machine_is_kept_unless_drive_is_ahead(small_config, tmp_path):
    config, drive = small_config(num_pairs=720, sft_epochs=0.0), tmp_path / "drive"
    drive.mkdir()
    pairs = dpo.prepare_pairs(config)
    assert dpo.restore_run(config, pairs, drive) == "" == dpo.restore_run(config, pairs, None)
    with pytest.raises(KeyboardInterrupt):
        dpo.train(config, pairs, watch=disconnect_at(102), drive=drive)
    here = "このマシンに、途中の実行があります。DPO の 100 回目の更新のあとから続けます。"
    assert dpo.restore_run(config, pairs, drive) == here == dpo.restore_run(config, pairs, None)
    shutil.rmtree(Path(config.output_dir) / "checkpoints")  # Drive をつながずに、初めからやり直して止めた
    assert "Google Drive に、途中の実行があります。DPO の 100" in dpo.restore_run(config, pairs, drive)
    run = dpo.train(config, pairs, drive=drive)
    assert run.timing["resumed_from_step"] == 100


def test_an_unfinished_run_with_other_settings_is_named(small_run, tmp_path):
    pairs, drive = dpo.prepare_pairs(small_run.config), tmp_path / "drive"
    (drive / "small-0123abcd.partial").mkdir(parents=True)
    config = replace(small_run.config, output_dir=str(tmp_path / "runs" / "small-89abcdef"))
    message = dpo.restore_run(config, pairs, drive)
    assert "設定かデータの違う途中の実行（small-0123abcd.partial）" in message and "初めから学習します" in message
    config = replace(config, output_dir=str(tmp_path / "runs" / "other-89abcdef"))
    assert dpo.restore_run(config, pairs, drive) == ""


def test_a_checkpoint_made_in_float16_goes_on_in_another_precision(small_config):
    config = small_config(num_pairs=480)
    with pytest.raises(KeyboardInterrupt):
        dpo.train(config, watch=disconnect_at(60))
    torch.save({"scale": 65536.0}, Path(config.output_dir) / "checkpoints" / "checkpoint-50" / "scaler.pt")
    assert dpo.train(config).timing["resumed_from_step"] == 50


def test_a_run_on_drive_with_other_settings_is_refused(small_config, small_run, tmp_path):
    dpo._copy(small_run.folder, tmp_path / small_run.folder.name)
    other = replace(small_run.config, beta=0.25, output_dir=str(tmp_path / "new" / small_run.folder.name))
    with pytest.raises(dpo.HelperError, match="設定かデータの違う実行"):
        dpo.restore_run(other, dpo.prepare_pairs(other), tmp_path)
    assert dpo.restore_run(other, dpo.prepare_pairs(other), tmp_path / "nothing") == ""


@pytest.mark.parametrize("failure", [full, vanished])
def test_training_goes_on_when_drive_fails_and_says_so_once(failure, colab, small_config, monkeypatch):
    drive, _ = dpo.connect_drive()
    said, config = [], small_config(num_pairs=240)
    fail_at_the_third_file(monkeypatch, failure)
    run = dpo.train(config, report=said.append, drive=drive)
    assert len(run.history) == 51
    (sentence,) = (text for text in said if not text.startswith("見積もり"))
    assert "途中経過を保存できなくなりました" in sentence and "学習は、このマシンで続けます" in sentence


def test_training_goes_on_when_drive_does_not_delete(colab, small_config, monkeypatch):
    drive, _ = dpo.connect_drive()
    config, said = small_config(), []
    (drive / f"{Path(config.output_dir).name}.partial" / "checkpoint-50").mkdir(parents=True)
    monkeypatch.setattr(dpo, "_discard", lambda folder: None)
    run = dpo.train(config, report=said.append, drive=drive)
    assert run.history and not any("途中経過を保存できなくなりました" in text for text in said)


def test_a_restore_that_fails_half_way_starts_afresh(small_config, small_run, tmp_path, monkeypatch):
    dpo._copy(small_run.folder, tmp_path / "run")
    config = replace(small_run.config, output_dir=str(tmp_path / "new" / "run"))
    copytree = shutil.copytree

    def torn(source, target, *rest, **options):
        copytree(source, target, *rest, **options)
        for path in Path(target).glob("config.json"):
            path.write_bytes(b"")

    monkeypatch.setattr(shutil, "copytree", torn)
    assert dpo.restore_run(config, dpo.prepare_pairs(config), tmp_path) == ""
    assert not (tmp_path / "new" / "run").exists()


# --- マシンを返す、Hub に置く


def test_the_machine_is_given_back_only_while_the_result_is_on_drive(colab, saved):
    assert "切断しません" in dpo.release_gpu(None)
    kept, _ = dpo.keep_run(saved, dpo.connect_drive()[0])
    colab.drive.behaviour = "flush_failed"
    assert "切断できませんでした" in dpo.release_gpu(kept) and not colab.runtime.unassigned
    colab.drive.behaviour = "mounted"
    assert dpo.release_gpu(kept) == "ランタイムを切断しました。" and colab.runtime.unassigned == [[True]]
    colab.runtime.fails = True
    assert "切断できませんでした" in dpo.release_gpu(kept)
    shutil.rmtree(dpo.DRIVE)  # いつの間にか、接続が外れていた
    assert "切断しません" in dpo.release_gpu(kept) and len(colab.runtime.unassigned) == 1


class Hub:
    """huggingface_hub.HfApi の代役です。"""

    def __init__(self, token):
        self.calls.append(("token", token))

    def create_repo(self, repository, **options):
        if "/" not in repository:
            raise ValueError("Repo id must be in the form 'namespace/repo_name'")
        self.calls.append(("create", repository, options))

    def repo_info(self, repository):
        return types.SimpleNamespace(private="public" not in repository)

    def upload_folder(self, repo_id, folder_path):
        self.calls.append(("folder", repo_id, sorted(path.name for path in folder_path.iterdir())))

    def upload_file(self, repo_id, path_or_fileobj, path_in_repo):
        self.calls.append((path_in_repo, path_or_fileobj.decode()))


def test_pushing_is_private_and_the_token_stays_secret(colab, small_run, monkeypatch, capsys):
    import huggingface_hub

    Hub.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    colab.userdata.secrets = {"HF_TOKEN": "hf_secret"}
    assert dpo.push_run(small_run, "me/dpo") == "https://huggingface.co/me/dpo"
    token, create, folder, card = Hub.calls
    assert token == ("token", "hf_secret") and create == ("create", "me/dpo", {"private": True, "exist_ok": True})
    assert "adapter_model.safetensors" in folder[2] and "README.md" not in folder[2]
    assert 'from_pretrained("me/dpo")' in card[1] and small_run.metrics["verdict"] in card[1]
    with pytest.raises(dpo.HelperError, match="ユーザー名/リポジトリ名") as error:
        dpo.push_run(small_run, "dpo")
    with pytest.raises(dpo.HelperError, match="公開のリポジトリ"):
        dpo.push_run(small_run, "me/public")
    assert len([call for call in Hub.calls if call[0] == "folder"]) == 1
    output = capsys.readouterr()
    files = [path.read_bytes() for path in small_run.folder.rglob("*") if path.is_file()]
    assert not any(b"hf_secret" in text for text in [*files, str(error.value).encode(), str(output).encode()])


@pytest.mark.parametrize("state", [{"secrets": {}}, {"secrets": {"HF_TOKEN": "x"}, "allowed": False},
                                   {"times_out": True}])  # fmt: skip
def test_a_secret_that_cannot_be_read_is_one_sentence(state, colab, small_run):
    for name, value in state.items():
        setattr(colab.userdata, name, value)
    with pytest.raises(dpo.HelperError, match="HF_TOKEN を読めません"):
        dpo.push_run(small_run, "me/dpo")


# --- 精度


GPUS = {  # 名前: (計算能力, 選ぶ精度)
    "Tesla T4": ((7, 5), "fp16"), "Tesla V100-SXM2-16GB": ((7, 0), "fp16"), "NVIDIA L4": ((8, 9), "bf16"),
    "NVIDIA A100-SXM4-40GB": ((8, 0), "bf16"), None: (None, "fp32"),
}  # fmt: skip


@pytest.mark.parametrize("name", GPUS)
def test_precision_fits_the_device_and_says_why(name, monkeypatch):
    (capability, precision) = GPUS[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
    if name:
        major, minor = capability
        gpu = types.SimpleNamespace(name=name, major=major, minor=minor, total_memory=15 * 2**30)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)  # 模倣なら、どれでも動く
    runtime = dpo.describe_runtime()
    assert runtime["precision"] == precision and (runtime["gpu"] or None) == name
    text = dpo.runtime_text(runtime)
    assert (name or "CPU") in text and f"{precision}（" in text
    args = dpo._common_args(dpo.Config(), "folder")
    chosen = {kind for kind, flag in (("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "use_cpu")) if args[flag]}
    assert chosen == {precision}


def test_master_weights_are_float32_even_from_a_float16_file(small_base, small_config, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(small_base, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(small_base).half().save_pretrained(tmp_path / "half")
    run = dpo.train(small_config(base_model=str(tmp_path / "half")))
    assert {weight.dtype for weight in run.model.parameters()} == {torch.float32}


# --- パッケージ


def without(monkeypatch, *names):
    """names が入っていない環境に見せ、pip の引数を記録します。"""
    find, calls = dpo._installed_version, []
    monkeypatch.setattr(dpo, "_installed_version", lambda name: None if name in names else find(name))

    def pip(*args):
        calls.append(args)
        monkeypatch.setattr(dpo, "_installed_version", find)

    monkeypatch.setattr(dpo, "_pip", pip)
    return calls


def test_install_packages_does_nothing_when_all_is_there(monkeypatch):
    calls = without(monkeypatch)
    assert dpo.install_packages().startswith("版: torch ") and not calls


def test_install_packages_takes_only_trl_without_its_dependencies(monkeypatch):
    calls = without(monkeypatch, "trl")
    said = dpo.install_packages().splitlines()
    assert calls == [("install", "--no-deps", f"trl=={dpo.PACKAGES['trl']}")]
    assert said[0] == f"trl {dpo.PACKAGES['trl']} を入れました。" and said[1].startswith("版: ") and len(said) == 2


def test_other_missing_packages_are_added_without_changing_any_installed_one(monkeypatch):
    find, seen = dpo._installed_version, {}
    monkeypatch.setattr(dpo, "_installed_version", lambda name: None if name == "matplotlib" else find(name))

    def pip(*args):
        seen["args"], seen["pins"] = args, Path(args[-1]).read_text().splitlines()

    monkeypatch.setattr(dpo, "_pip", pip)
    assert dpo._install_beside(["matplotlib"]) == "matplotlib を入れました。"
    assert seen["args"][:3] == ("install", "matplotlib", "-c")
    assert {f"{name}=={find(name)}" for name in ("torch", "numpy", "pandas", "pyarrow")} <= set(seen["pins"])


def test_torch_is_never_installed(monkeypatch):
    calls = without(monkeypatch, "torch", "trl")
    with pytest.raises(dpo.HelperError, match="torch がありません"):
        dpo.install_packages()
    assert not calls


def test_a_package_replaced_under_the_kernel_asks_for_a_restart(monkeypatch):
    import pyarrow

    monkeypatch.setattr(pyarrow, "__version__", "0.0.0")
    with pytest.raises(dpo.HelperError, match="pyarrow が、読み込んだあとで別の版に.*「セッションを再起動する」"):
        dpo.install_packages()


def test_a_package_too_old_is_named_with_the_version_wanted(monkeypatch):
    find = dpo._installed_version
    monkeypatch.setattr(dpo, "_installed_version", lambda name: "4.57.1" if name == "transformers" else find(name))
    with pytest.raises(dpo.HelperError, match="transformers が 4.57.1 です。5.15.0 以上が要ります"):
        dpo.install_packages()


def test_a_torchao_that_peft_rejects_is_removed_and_only_that(monkeypatch):
    import peft.import_utils

    def rejected():
        raise ImportError("Found an incompatible version of torchao.")

    calls = without(monkeypatch)
    monkeypatch.setattr(peft.import_utils, "is_torchao_available", rejected)
    assert "PEFT が対応していない版の torchao を" in dpo.install_packages()
    assert calls == [("uninstall", "-y", "torchao")]
    monkeypatch.setitem(sys.modules, "torchao", types.SimpleNamespace(__version__=None))
    with pytest.raises(dpo.HelperError, match="セッションを再起動"):
        dpo.install_packages()


def test_a_failing_pip_is_one_sentence_with_its_reason():
    with pytest.raises(dpo.HelperError, match="pip install ./nowhere に失敗しました"):
        dpo._pip("install", "./nowhere")


def test_requirements_and_the_module_name_the_same_oldest_versions():
    lines = [line for line in (ROOT / "requirements.txt").read_text("utf-8").split() if ">=" in line]
    assert dict(line.split(">=") for line in lines) == dpo.PACKAGES


# --- ノートブック


def test_the_trial_on_a_cpu_never_raises_what_the_user_set(monkeypatch):
    config = dpo.Config(sft_epochs=0.0, num_train_epochs=0.5)
    fitted = dpo.fit_to_device(config)
    assert (fitted.num_pairs, fitted.sft_epochs, fitted.num_train_epochs) == (60, 0.0, 0.5)
    assert "試運転" in dpo.trial_note(config) and not dpo.trial_note(replace(config, base_model="offline-tiny"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dpo.fit_to_device(config) is config and dpo.trial_note(config) == ""


def test_the_trial_takes_the_users_pairs_at_random_from_all(tmp_path):
    answers = {"chosen": "はい。", "rejected": "いいえ。"}
    rows = [{"prompt": f"質問{i}", "concept": "ab"[i // 100]} | answers for i in range(200)]
    dpo.load_pairs(rows).to_json(tmp_path / "my.jsonl")
    pairs = dpo.prepare_pairs(dpo.Config(dataset=str(tmp_path / "my.jsonl")), most=60)
    assert len(pairs) == 60 and set(pairs["concept"]) == {"a", "b"}
    train, held_out = dpo.split_pairs(pairs)
    assert len(train) and len(held_out)


def test_without_a_gpu_colab_users_are_told_where_to_switch_it_on(colab):
    assert "「ランタイムのタイプを変更」で T4 GPU" in dpo.runtime_text(dpo.describe_runtime())


@pytest.mark.slow
def test_notebook_with_drive_goes_on_in_a_new_machine_and_labels_the_trial(small_base, tmp_path, monkeypatch):
    """Drive をつないで実行し、マシンのファイルが消えたあと、もう一度すべて実行します。"""
    from nbclient import NotebookClient
    from test_notebooks import check_outputs, read, set_base_model

    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "colab" / "standin"))
    texts = []
    for _ in range(2):
        notebook = read("colab_dpo_training.ipynb")
        set_base_model(notebook, small_base)
        drive = next(cell for cell in notebook.cells if cell.metadata.id == "drive")
        drive.source = f"dpo.DRIVE = dpo.Path({str(tmp_path / 'drive')!r})\n{drive.source}"
        machine = tmp_path / "machine"
        machine.mkdir()
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(machine)}}).execute()
        texts.append(check_outputs(notebook))
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        tables = [html for o in outputs if "<table" in (html := o.get("data", {}).get("text/html", ""))]
        assert len(tables) >= 7 and all("<caption>試運転（GPU がないため、60 対まで）" in table for table in tables)
        shutil.rmtree(machine)
    first, second = texts
    assert "コピーし、読み返して確かめました" in first and "途中経過と結果を、「マイドライブ/dpo_runs」" in first
    assert "Google Drive に、終わった実行があります" in second and "コピーし、読み返して確かめました" in second
    (kept,) = (tmp_path / "drive" / "MyDrive" / "dpo_runs").iterdir()
    assert dpo._is_whole(kept)
