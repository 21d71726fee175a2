"""メモリが足りないときに、一度に計算する対を減らして同じ結果にたどり着くことと、時間とメモリの見積もりを確かめます。"""

import contextlib

import pytest
import torch

import dpo_helpers as dpo


@contextlib.contextmanager
def little_memory(monkeypatch, limit: int, after: int = 0):
    """勾配を取る計算が limit トークンを超えたら、torch 自身の OutOfMemoryError を出します（最初の after 回は除く）。"""
    from transformers import GPT2Model

    forward, calls = GPT2Model.forward, []

    def checked(self, input_ids=None, *args, **options):
        if torch.is_grad_enabled():
            calls.append(input_ids.numel())
            if len(calls) > after and input_ids.numel() > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, input_ids, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GPT2Model, "forward", checked)
        yield calls


def columns(run, *names):
    return [row[name] for row in run.history for name in names]


@pytest.fixture(scope="module")
def config(still_base, small_config):
    """dropout のない小さなモデルの設定を作る関数です。"""
    return lambda **options: small_config(base_model=str(still_base), **options)


@pytest.fixture(scope="module")
def with_dropout(small_config):
    """dropout のあるモデルで、見積もりなしの実行です。"""
    return dpo.train(small_config(num_train_epochs=2.0))


@pytest.fixture(scope="module")
def whole(config):
    """メモリが足りるときの、同じ設定の実行です。"""
    return dpo.train(config(num_train_epochs=2.0))


@pytest.mark.parametrize(("limit", "size"), [(300, 2), (150, 1)])
def test_smaller_batches_give_the_same_losses(whole, config, monkeypatch, limit, size):
    said = []
    with little_memory(monkeypatch, limit) as calls:
        run = dpo.train(config(num_train_epochs=2.0), report=said.append)
    assert max(calls[-20:]) <= limit
    names = ("loss", "loss/preference", "loss/sft", "rewards/margins", "grad_norm")
    assert columns(run, *names) == pytest.approx(columns(whole, *names), rel=1e-5, abs=1e-4)
    assert sum("メモリが足りないので" in text for text in said) == (1 if size == 2 else 2)
    assert any(f"一度に計算する対を {size} に減らし、{4 // size} 回分の勾配をためて続けます" in text for text in said)
    assert "結果は変わります" in dpo._smaller_text(dpo._batchings(4)[1], dpo.Config(loss_type="aot"))


def test_a_last_update_in_unequal_parts_is_recorded_as_one(config, monkeypatch):
    """最後の更新が 2 対と 1 対に分かれても、記録は三対の平均です。"""
    rows = dpo.build_pairs(60).to_list()
    names = ("loss", "loss/preference", "loss/sft", "rewards/margins", "rewards/accuracies", "logps/chosen")
    count = next(n for n in range(40, 60) if len(dpo.split_pairs(dpo.load_pairs(rows[:n]))[0]) % 4 == 3)
    expected = dpo.train(config(), rows[:count])
    with little_memory(monkeypatch, 300):
        run = dpo.train(config(), rows[:count])
    assert columns(run, *names) == pytest.approx(columns(expected, *names), rel=1e-4, abs=1e-3)


def test_training_goes_on_from_the_last_checkpoint(config, monkeypatch):
    """SFT と、チェックポイントのあとの更新まで進んでから足りなくなると、そこから続けます。"""
    expected = dpo.train(config(num_train_epochs=8.0))
    with little_memory(monkeypatch, 300, after=13 + 60):
        run = dpo.train(config(num_train_epochs=8.0))
    assert run.timing["resumed_from_step"] == 50
    assert columns(run, "loss") == pytest.approx(columns(expected, "loss"), abs=2e-3)


def test_one_pair_with_recomputation_is_the_last_resort(whole, config, monkeypatch):
    """一対ずつでも足りなければ gradient checkpointing を使い、それでも足りなければ、することを一文で言います。"""
    said, seen = [], []
    trainer = dpo._preference_trainer

    def watching(*args):
        made = trainer(*args)
        seen.append(made.args.gradient_checkpointing)
        if not made.args.gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return made

    monkeypatch.setattr(dpo, "_preference_trainer", watching)
    run = dpo.train(config(num_train_epochs=2.0), report=said.append)
    assert seen[:3] == [False] * 3 and seen[-1] and "gradient checkpointing" in "".join(said)
    assert columns(run, "loss") == pytest.approx(columns(whole, "loss"), abs=1e-4)
    with little_memory(monkeypatch, 10), pytest.raises(dpo.HelperError, match="一対ずつにしても、メモリが足りません"):
        dpo.train(config())


def test_other_runtime_errors_are_not_taken_for_memory(small_config, monkeypatch):
    def fail(*args):
        raise RuntimeError("別の誤り")

    monkeypatch.setattr(dpo, "_preference_trainer", fail)
    with pytest.raises(RuntimeError, match="別の誤り"):
        dpo.train(small_config())


@pytest.mark.parametrize(("batch", "sizes"), [(4, [4, 2, 1]), (6, [6, 3, 1]), (5, [5, 1]), (1, [1])])
def test_every_try_keeps_the_pairs_of_an_update(batch, sizes):
    tries = dpo._batchings(batch)
    assert [each["per_device_train_batch_size"] for each in tries] == [*sizes, 1]
    assert all(each["per_device_train_batch_size"] * each["gradient_accumulation_steps"] == batch for each in tries)
    assert [each.get("gradient_checkpointing", False) for each in tries] == [False] * len(sizes) + [True]


def test_the_estimate_is_said_before_training_and_changes_nothing(with_dropout, small_config):
    said, phases = [], []
    watch = lambda status, history: phases.append((status["phase"], len(said)))  # noqa: E731
    run = dpo.train(small_config(num_train_epochs=2.0), watch=watch, report=said.append)
    assert columns(run, "loss") == columns(with_dropout, "loss")
    estimates = [i for i, text in enumerate(said) if text.startswith("見積もり: 学習に約 ")]
    assert len(estimates) == 1 and phases[0] == ("SFT", estimates[0] + 1)
    assert not list(run.folder.glob("*.tmp"))
