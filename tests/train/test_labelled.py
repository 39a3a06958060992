"""What fine-tuning minimises, for each kind of task, from the states of the very tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.data.task_rows import LabelledBatch, TaskRows, collate
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import detect
from jielong.train.labelled import answer, language_nats, read_answers, row_states
from jielong.train.loop import train_step

SIZES = dict(
    vocab_size=30, max_length=16, width=16, num_heads=2, num_kv_heads=2, head_size=8, ffn_width=24, tie_embeddings=True
)


def build(head: str, encoder: bool = False, num_labels: int = 1) -> Transformer:
    stacks = {"encoder_layers": int(encoder), "decoder_layers": int(not encoder)}
    config = ModelConfig(**SIZES, **stacks, head=head, num_labels=num_labels)  # type: ignore[arg-type]
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(1))
    return model


def item(*rows: list[int], label: object = 0, contexts: tuple[tuple[int, int], ...] = ()) -> TaskRows:
    return TaskRows(rows, tuple([0] * len(row) for row in rows), label, False, contexts)  # type: ignore[arg-type]


def last_state(model: Transformer, row: list[int]) -> Tensor:
    """The state at <extract>, of the row alone, without padding."""
    return model.hidden(torch.tensor([row]))[0, -1]


A, B, C = [25, 1, 2, 3, 27], [25, 4, 27], [25, 5, 6, 26, 7, 8, 27]


def test_a_label_is_read_at_the_last_token_of_a_decoder() -> None:
    model = build("classes", num_labels=3)
    batch = collate([item(A, label=2), item(C, label=0)], 0)
    expected = torch.stack([model.classifier.weight @ last_state(model, row) for row in (A, C)])
    answers = read_answers(model, row_states(model, batch), batch, "classification")
    torch.testing.assert_close(answers, expected)
    loss, metrics = answer("classification")(model, batch)
    torch.testing.assert_close(loss, F.cross_entropy(expected, torch.tensor([2, 0]), reduction="sum"))
    assert int(metrics["accuracy"]) == int((expected.argmax(dim=1) == torch.tensor([2, 0])).sum())
    assert "language_nats" not in metrics


def test_both_orders_are_added_before_the_linear_map() -> None:
    model = build("classes")
    batch = collate([item(A, B, label=0.5), item(C, A, label=-1.0)], 0)
    first = model.classifier.weight @ (last_state(model, A) + last_state(model, B))
    second = model.classifier.weight @ (last_state(model, C) + last_state(model, A))
    answers = read_answers(model, row_states(model, batch), batch, "similarity")
    torch.testing.assert_close(answers, torch.cat((first, second)))
    loss, metrics = answer("similarity")(model, batch)
    torch.testing.assert_close(loss, (answers[0] - 0.5) ** 2 + (answers[1] + 1.0) ** 2)
    assert set(metrics) == {"task_error"}


def test_candidates_compete_within_their_example_only() -> None:
    model = build("choice")
    batch = collate([item(A, B, label=1), item(B, C, A, label=0)], 0)
    scores = [
        [(model.classifier.weight[0] @ last_state(model, row)).item() for row in rows] for rows in ((A, B), (B, C, A))
    ]
    answers = read_answers(model, row_states(model, batch), batch, "choice")
    torch.testing.assert_close(answers[0, :2], torch.tensor(scores[0]))
    torch.testing.assert_close(answers[1], torch.tensor(scores[1]))
    assert answers[0, 2] == float("-inf")
    loss, _ = answer("choice")(model, batch)
    expected = [
        -torch.log_softmax(torch.tensor(each), dim=0)[right] for each, right in zip(scores, (1, 0), strict=True)
    ]
    torch.testing.assert_close(loss, sum(expected))
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_a_span_is_sought_in_the_context_only() -> None:
    model = build("span", encoder=True)
    rows = [
        item([25, 1, 26, 2, 3, 4, 26], label=(3, 4), contexts=((3, 6),)),
        item([25, 1, 26, 5, 26], label=(3, 3), contexts=((3, 4),)),
    ]
    batch = collate(rows, 0)
    answers = read_answers(model, row_states(model, batch), batch, "span")
    inside = torch.isfinite(answers[:, :, 0])
    assert inside.tolist() == [[False] * 3 + [True] * 3 + [False], [False] * 3 + [True] + [False] * 3]
    loss, _ = answer("span")(model, batch)
    logits = model.unembed(model.hidden(torch.tensor([rows[0].rows[0]])))[0, 3:6]
    begin, end = (-torch.log_softmax(logits[:, side], dim=0)[place] for side, place in ((0, 0), (1, 1)))
    torch.testing.assert_close(loss, (begin + end) / 2)  # the other has one legal place: no loss


def test_language_loss_is_a_mean_of_rows_and_counts_every_token_but_the_first() -> None:
    model = build("classes")
    batch = collate([item(A, B, label=0.0), item(C, label=0.0)], 0)

    def of_row(row: list[int]) -> Tensor:
        logits = model.logits(model.hidden(torch.tensor([row])))[0]
        return F.cross_entropy(logits[:-1], torch.tensor(row[1:]))

    expected = torch.stack(((of_row(A) + of_row(B)) / 2, of_row(C)))
    torch.testing.assert_close(language_nats(model, row_states(model, batch), batch), expected)
    plain, _ = answer("similarity")(model, batch)
    loss, metrics = answer("similarity", language_weight=0.5)(model, batch)
    torch.testing.assert_close(loss, plain + 0.5 * expected.sum())
    torch.testing.assert_close(metrics["language_nats"], expected.sum().detach())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_cutting_a_batch_changes_nothing(weight: float) -> None:
    """Two micro-batches give the step of one, whatever the lengths: losses are sums over examples."""
    items = [item(A, label=1), item(C, label=0), item(B, label=1), item(C, label=1)]
    results = []
    for parts in ([items], [items[:1], items[1:]]):
        model = build("classes", num_labels=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches: list[LabelledBatch] = [collate(part, 0) for part in parts]
        train_step(model, optimizer, batches, answer("classification", weight), detect("cpu", "float32"), clip=1e9)
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_everything_learns() -> None:
    model = build("classes", num_labels=2)
    loss, _ = answer("classification", 0.5)(model, collate([item(A, label=1), item(C, label=0)], 0))
    loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def draw_items(task: str, num: int) -> list[TaskRows]:
    """Examples whose answer is where one token stands: 5 in a text, 7 in the right candidate, 8 as the answer."""
    generator = torch.Generator().manual_seed(2)

    def words(marked: bool, mark: int) -> list[int]:
        found = torch.randint(10, 24, (6,), generator=generator).tolist()
        if marked:
            found[int(torch.randint(6, (1,), generator=generator))] = mark
        return found

    items = []
    for number in range(num):
        flag = number % 2
        if task == "choice":
            rows = [[25, *words(False, 0), 26, *words(side == flag, 7), 27] for side in (0, 1)]
            items.append(item(*rows, label=flag))
        elif task == "span":
            row = [25, 1, 26, *words(True, 8), 26]
            items.append(item(row, label=(row.index(8), row.index(8)), contexts=((3, 9),)))
        elif task == "similarity":
            first, second = words(bool(flag), 5), words(bool(flag), 5)
            both = ([25, *first, 26, *second, 27], [25, *second, 26, *first, 27])
            items.append(item(*both, label=1.0 if flag else -1.0))
        else:
            items.append(item([25, *words(bool(flag), 5), 27], label=flag))
    return items


@pytest.mark.parametrize(
    ("task", "head", "encoder"),
    [("classification", "classes", True), ("classification", "classes", False), ("similarity", "classes", False),
     ("choice", "choice", False), ("span", "span", True)],
)  # fmt: skip
def test_a_rule_is_learned_and_holds_for_unseen_examples(task: str, head: str, encoder: bool) -> None:
    model = build(head, encoder, num_labels=2 if task == "classification" else 1)
    items = draw_items(task, 160)
    train, test = items[:128], items[128:]
    optimizer, runtime = torch.optim.AdamW(model.parameters(), lr=1e-2), detect("cpu", "float32")
    for step in range(60):
        batch = collate([train[(step * 16 + k) % 128] for k in range(16)], 0)
        train_step(model, optimizer, [batch], answer(task), runtime, clip=1.0)
    batch = collate(test, 0)
    with torch.no_grad():
        answers = read_answers(model.eval(), row_states(model, batch), batch, task)
    if task == "span":
        right = answers[:, :, 0].argmax(dim=1) == batch.labels[:, 0]
    elif task == "similarity":
        right = answers.sign() == batch.labels
    else:
        right = answers.argmax(dim=1) == batch.labels
    assert float(right.float().mean()) > 0.9
