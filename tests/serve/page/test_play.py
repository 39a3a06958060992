"""The playground learns what its Python twin learns, whichever settings; and its state survives its address."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import until

TRAIN = """([hash, epochs]) => Promise.all(
    ['export', 'network', 'datasets', 'state'].map((name) => import(`/web/play/${name}.js`)),
  ).then(([{ toPython }, { Network }, { draw, split, FEATURES }, { fromHash, toHash, training }]) => {
    const settings = fromHash(hash);
    const plan = training(settings);
    const network = new Network(plan.sizes, plan.activation, plan.regression, settings.seed);
    const features = settings.features.map((index) => FEATURES[index]);
    const [train, test] = split(draw(settings), settings.data === 'own' ? 1 : settings.share);
    const inputsOf = (points) => points.map(([x, y]) => features.map(({ of }) => of(x, y)));
    const seen = (points) => [inputsOf(points), points.map(([, , target]) => target)];
    const [inputs, targets] = seen(train);
    for (let epoch = 0; epoch < epochs; epoch += 1) network.epoch(inputs, targets, plan);
    return {
      weights: network.weights.map((layer) => [...layer]), biases: network.biases.map((layer) => [...layer]),
      train: network.loss(inputs, targets, plan.loss),
      test: test.length ? network.loss(...seen(test), plan.loss) : null,
      program: toPython(settings, epochs), hash: toHash(settings),
    };
  })"""

HASHES = [
    "",
    "#d=spiral&f=0.1.2.3.4.5.6&u=8.6&l=entropy&n=0.1",
    "#d=xor&a=gelu&p=l1&pr=0.003&b=7",
    "#d=moons&a=sigmoid&p=l2&pr=0.01&r=0.1&rs=5&ds=9",
    "#d=hills&a=relu&u=8.8&f=0.1.4",
    "#d=waves&u=5&n=0.3",
    "#d=clouds&u=&a=linear",
    "#d=plane&u=1.1.1.1.1.1",
    "#d=own&o=1*1*1_-1*-1*-1_2*1.5*1_-2*2*-1",
]


@pytest.mark.parametrize("state", HASHES)
def test_the_exported_program_is_a_twin(modules: Any, state: str, tmp_path: Path) -> None:
    found = modules.evaluate(TRAIN, [state, 40])
    assert found["hash"] == state or set(found["hash"][1:].split("&")) == set(state[1:].split("&"))
    (tmp_path / "network.py").write_text(found["program"], encoding="utf-8")
    command = [sys.executable, str(tmp_path / "network.py"), "--json"]
    twin = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    for ours, theirs in zip(found["weights"] + found["biases"], twin["weights"] + twin["biases"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert found["train"] == pytest.approx(twin["train_loss"], abs=1e-6)
    assert found["test"] == (None if twin["test_loss"] is None else pytest.approx(twin["test_loss"], abs=1e-6))


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "gelu", "linear"])
@pytest.mark.parametrize("loss", ["squared", "entropy"])
def test_slopes_are_those_of_the_loss(modules: Any, activation: str, loss: str) -> None:
    worst = modules.evaluate(
        """([activation, loss]) => import('/web/play/network.js').then(({ Network }) => {
          const network = new Network([2, 3, 2, 1], activation, false, 4);
          const [inputs, targets] = [[[0.3, -1.2], [1.1, 0.4]], [1, -1]];
          inputs.forEach((input, place) => { network.forward(input); network.backward(targets[place], loss); });
          let worst = 0;
          network.weights.forEach((layer, l) => layer.forEach((weight, i) => {
            const at = (value) => {
              layer[i] = value;
              const found = network.loss(inputs, targets, loss);
              layer[i] = weight;
              return found;
            };
            const slope = (at(weight + 1e-5) - at(weight - 1e-5)) / 2e-5;
            worst = Math.max(worst, Math.abs(slope - network.weightSlopes[l][i] / 2));
          }));
          return worst;
        })""",
        [activation, loss],
    )
    assert worst < 1e-8


@pytest.mark.parametrize(
    "state",
    [
        "#d=nothing",
        "#u=99",
        "#f=",
        "#f=77",
        "#n=-3",
        "#r=Infinity",
        "#b=0",
        "#o=x*y*z&d=own",
        "#s=%",
        "#u=1.1.1.1.1.1.1",
    ],
)
def test_a_broken_address_is_as_usual(modules: Any, state: str) -> None:
    found = modules.evaluate(
        "(hash) => import('/web/play/state.js').then(({ fromHash, USUAL }) => [fromHash(hash), USUAL])", state
    )
    got, usual = found
    assert {**got, "data": usual["data"]} == usual


def test_one_neuron_learns_and_but_not_xor(modules: Any) -> None:
    found = modules.evaluate(
        """() => import('/web/play/perceptron.js').then(({ decide, learn, rows }) => {
          const tell = (wants) => {
            const neuron = { weights: [0, 0], threshold: 0 };
            let wrong = 1;
            for (let pass = 0; pass < 100 && wrong; pass += 1) wrong = learn(neuron, rows(2), rows(2).map(wants));
            return rows(2).map((row) => Number(decide(row, neuron.weights, neuron.threshold).fires));
          };
          return [([a, b]) => a & b, ([a, b]) => a | b, ([a, b]) => 1 - (a & b), ([a, b]) => a ^ b].map(tell);
        })"""
    )
    assert found[:3] == [[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0]] and found[3] != [0, 1, 1, 0]


@pytest.fixture
def page(tab: Any) -> Any:
    tab.goto("/playground")
    return tab


def test_running_it(page: Any) -> None:
    page.get_by_role("button", name="Run", exact=True).click()
    until(page, "Number(document.querySelector('.epochs output').textContent) > 30")
    page.get_by_role("button", name="Pause").click()
    epoch = page.locator(".epochs output").inner_text()
    first, loss = page.locator(".losses dd").first.inner_text(), page.locator(".losscurve .train").get_attribute("d")
    assert 0 <= float(first) < 0.6 and loss.startswith("M")
    page.get_by_role("button", name="One epoch").click()
    assert int(page.locator(".epochs output").inner_text()) == int(epoch) + 1
    page.get_by_label("One layer more").click()
    assert page.locator(".epochs output").inner_text() == "00000"
    until(page, "location.hash.includes('u=4.2.2')")
    page.reload()
    until(page, "document.querySelectorAll('.layerhead').length === 4")
    page.get_by_label("Feature x²").click()
    until(page, "location.hash.includes('f=0.1.2')")


def test_a_network_that_breaks_says_so_and_shows_no_nan(page: Any) -> None:
    page.goto("/playground#d=hills&u=8.8&a=linear&r=100")
    page.reload()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("grew beyond all bounds").wait_for()
    assert "NaN" not in page.locator("main").inner_text() and "Infinity" not in page.locator("main").inner_text()


def test_own_points(page: Any) -> None:
    page.get_by_role("radio", name="your own points").click()
    box = page.locator("canvas.output").bounding_box()
    for x, y in ((0.2, 0.2), (0.8, 0.8)):
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"], button="right")
    until(page, "location.hash.startsWith('#d=own') && location.hash.split('_').length === 3")
    content = "x,y,label\n10,10,1\n-10,-10,0\n5,2,1\n"
    page.get_by_label("CSV…").set_input_files({"name": "p.csv", "mimeType": "text/csv", "buffer": content.encode()})
    until(page, "location.hash.split('_').length === 3 && location.hash.includes('5.5')")
