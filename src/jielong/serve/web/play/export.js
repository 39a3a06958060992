/**
 * The network as a Python program that trains it again, to the same weights: nothing but the standard library, and one
 * line for each of network.js. A test holds the two to each other.
 */
import { FEATURES } from './datasets.js';
import { training } from './state.js';

const PROGRAM = String.raw`"""A small network from the playground of jielong, trained again from the same seed.

Run it: python network.py        prints the losses
        python network.py --json prints the weights as well
Needs nothing but Python 3.8 or newer.
"""

import json
import math
import sys

SETTINGS = json.loads('''@SETTINGS@''')
EPOCHS = @EPOCHS@


def uniform(seed):
    """Numbers in [0, 1): Marsaglia's 32-bit xorshift."""
    mask = 0xFFFFFFFF
    state = (((seed + 1) * 0x9E3779B1) & mask) ^ 0x5BF03635 or 1

    def draw():
        nonlocal state
        state ^= (state << 13) & mask
        state ^= state >> 17
        state ^= (state << 5) & mask
        return state / 4294967296

    for _ in range(8):
        draw()
    return draw


def normal(draw):
    def one():
        radius = math.sqrt(-2 * math.log(1 - draw()))
        return radius * math.cos(2 * math.pi * draw())

    return one


def shuffle(items, draw):
    for i in range(len(items) - 1, 0, -1):
        j = math.floor(draw() * (i + 1))
        items[i], items[j] = items[j], items[i]
    return items


def hills(x, y):
    def hill(a, b):
        return max(0.0, 1 - math.hypot(x - a, y - b) / 2)

    return hill(-4, 2.5) + hill(0, -2.5) + hill(4, 2.5) - hill(-4, -2.5) - hill(0, 2.5) - hill(4, -2.5)


FUNCTIONS = {"plane": lambda x, y: (x + y) / 10, "hills": hills, "waves": lambda x, y: math.sin(x) * math.cos(y / 2)}


def class_point(name, i, n, c, u, g, s):
    if name == "circle":
        radius = 2.5 * u() if c > 0 else 3.5 + 1.5 * u()
        angle = 2 * math.pi * u()
        x = radius * math.sin(angle) + s * g()
        return [x, radius * math.cos(angle) + s * g(), c]
    if name == "xor":
        x = 10 * u() - 5
        y = 10 * u() - 5
        px = x + (0.3 if x > 0 else -0.3)
        py = y + (0.3 if y > 0 else -0.3)
        px = px + s * g()
        return [px, py + s * g(), 1 if x * y >= 0 else -1]
    if name == "clouds":
        width = 0.8 + s
        x = 2 * c + width * g()
        return [x, 2 * c + width * g(), c]
    if name == "spiral":
        far = i / n
        angle = 1.75 * far * 2 * math.pi + (0 if c > 0 else math.pi)
        x = 5 * far * math.sin(angle) + s * g() * 0.6
        return [x, 5 * far * math.cos(angle) + s * g() * 0.6, c]
    angle = math.pi * u()  # moons
    width = 0.25 + s * 0.6
    if c > 0:
        x, y = 3 * math.cos(angle) - 1.5, 3 * math.sin(angle) - 0.8
    else:
        x, y = 1.5 - 3 * math.cos(angle), 0.8 - 3 * math.sin(angle)
    x = x + width * g()
    return [x, y + width * g(), c]


def draw_points(num=400):
    name, noise = SETTINGS["data"], SETTINGS["noise"]
    u = uniform(SETTINGS["dataSeed"])
    if name == "own":
        return shuffle([list(point) for point in SETTINGS["own"]], u)
    g = normal(u)
    points = []
    for i in range(num):
        if name in FUNCTIONS:
            x = 12 * u() - 6
            y = 12 * u() - 6
            points.append([x, y, FUNCTIONS[name](x, y) + noise * 0.6 * g()])
        else:
            points.append(class_point(name, i // 2, num / 2, -1 if i % 2 else 1, u, g, 2.4 * noise))
    return shuffle(points, u)


FEATURES = {
    "x": lambda x, y: x,
    "y": lambda x, y: y,
    "x²": lambda x, y: x * x / 6,
    "y²": lambda x, y: y * y / 6,
    "xy": lambda x, y: x * y / 6,
    "sin x": lambda x, y: math.sin(x),
    "sin y": lambda x, y: math.sin(y),
}
GELU = math.sqrt(2 / math.pi)


def gelu(z):
    return 0.5 * z * (1 + math.tanh(GELU * (z + 0.044715 * z * z * z)))


def gelu_slope(z, a):
    t = math.tanh(GELU * (z + 0.044715 * z * z * z))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * GELU * (1 + 3 * 0.044715 * z * z)


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


ACTIVATIONS = {  # name: (value of a sum, slope given the sum and the value)
    "tanh": (math.tanh, lambda z, a: 1 - a * a),
    "relu": (lambda z: z if z > 0 else 0.0, lambda z, a: 1.0 if z > 0 else 0.0),
    "sigmoid": (sigmoid, lambda z, a: a * (1 - a)),
    "gelu": (gelu, gelu_slope),
    "linear": (lambda z: z, lambda z, a: 1.0),
}


class Network:
    def __init__(self, sizes, activation, regression, seed):
        self.sizes, self.regression = sizes, regression
        self.act, self.slope = ACTIVATIONS[activation]
        draw = uniform(seed)
        self.weights, self.biases = [], []
        for below, above in zip(sizes, sizes[1:]):
            reach = 1 / math.sqrt(below)
            self.weights.append([[(2 * draw() - 1) * reach for _ in range(below)] for _ in range(above)])
            self.biases.append([0.0] * above)
        self.clear()

    def clear(self):
        self.weight_slopes = [[[0.0] * len(row) for row in layer] for layer in self.weights]
        self.bias_slopes = [[0.0] * len(layer) for layer in self.biases]

    def forward(self, inputs):
        self.sums, self.values = [None], [list(inputs)]
        last = len(self.weights) - 1
        for l, (layer, biases) in enumerate(zip(self.weights, self.biases)):
            below, sums = self.values[l], []
            for row, bias in zip(layer, biases):
                total = bias
                for weight, value in zip(row, below):
                    total += weight * value
                sums.append(total)
            out = (lambda z: z) if self.regression else math.tanh
            self.sums.append(sums)
            self.values.append([self.act(z) if l < last else out(z) for z in sums])
        return self.values[-1][0]

    def backward(self, target, loss):
        out = self.values[-1][0]
        through = 1.0 if self.regression or loss == "entropy" else 1 - out * out
        above = [(out - target) * through]
        for l in range(len(self.weights) - 1, -1, -1):
            below = [0.0] * self.sizes[l]
            for k, delta in enumerate(above):
                self.bias_slopes[l][k] += delta
                for j, weight in enumerate(self.weights[l][k]):
                    self.weight_slopes[l][k][j] += delta * self.values[l][j]
                    below[j] += delta * weight
            if l:
                below = [b * self.slope(z, a) for b, z, a in zip(below, self.sums[l], self.values[l])]
            above = below

    def step(self, num, rate, penalty, penalty_rate):
        for l, layer in enumerate(self.weights):
            for k, row in enumerate(layer):
                for j, before in enumerate(row):
                    after = before - rate * self.weight_slopes[l][k][j] / num
                    if penalty == "l2":
                        after -= rate * penalty_rate * before
                    elif penalty == "l1":
                        pulled = after - rate * penalty_rate * ((before > 0) - (before < 0))
                        after = 0.0 if pulled * after < 0 else pulled
                    row[j] = after
                self.biases[l][k] -= rate * self.bias_slopes[l][k] / num
        self.clear()

    def loss(self, points, kind):
        total = 0.0
        for inputs, target in points:
            out = self.forward(inputs)
            if kind == "entropy" and not self.regression:
                x = -2 * self.sums[-1][0] * target
                total += max(x, 0.0) + math.log1p(math.exp(-abs(x)))
            else:
                total += 0.5 * (out - target) ** 2
        return total / len(points) if points else None


def main():
    s = SETTINGS
    points = draw_points()
    share = 1 if s["data"] == "own" else s["share"]
    num = max(1, min(len(points), math.floor(len(points) * share + 0.5)))
    seen = [([FEATURES[name](x, y) for name in s["features"]], target) for x, y, target in points]
    train, test = seen[:num], seen[num:]
    net = Network(s["sizes"], s["activation"], s["regression"], s["seed"])
    for _ in range(EPOCHS):
        for start in range(0, len(train), s["batch"]):
            batch = train[start : start + s["batch"]]
            for inputs, target in batch:
                net.forward(inputs)
                net.backward(target, s["loss"])
            net.step(len(batch), s["rate"], s["penalty"], s["penaltyRate"])
    losses = {"epochs": EPOCHS, "train_loss": net.loss(train, s["loss"]), "test_loss": net.loss(test, s["loss"])}
    if "--json" in sys.argv:
        flat = [[weight for row in layer for weight in row] for layer in net.weights]
        print(json.dumps({**losses, "weights": flat, "biases": net.biases}))
    else:
        print(losses)


main()
`;

/** @param {import('./state.js').Settings} settings @param {number} epochs @returns {string} */
export function toPython(settings, epochs) {
  const { data, noise, share, dataSeed, seed, own } = settings;
  const features = settings.features.map((index) => FEATURES[index].name);
  const written = JSON.stringify({ data, noise, share, dataSeed, seed, features, ...training(settings), own: data === 'own' ? own : [] });
  return PROGRAM.replace('@SETTINGS@', () => written).replace('@EPOCHS@', String(epochs));
}
