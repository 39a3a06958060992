/**
 * A small network of fully connected layers, trained by plain gradient descent; all numbers are float64.
 *
 * The last unit is tanh for classes (targets 1 and -1) and linear for functions. Losses, a mean over points:
 * "squared" (out - target)² / 2; "entropy" log(1 + exp(-2 z target)), z being the last sum, which is the cross-entropy
 * of the probability (1 + tanh z) / 2.
 * Source: Rumelhart, Hinton and Williams 1986 (back-propagation).
 */
import { uniform } from './random.js';

const GELU = Math.sqrt(2 / Math.PI);

/** name -> [value of a sum, slope given the sum and the value] */
export const ACTIVATIONS = {
  tanh: [Math.tanh, (z, a) => 1 - a * a],
  relu: [(z) => (z > 0 ? z : 0), (z) => (z > 0 ? 1 : 0)],
  sigmoid: [(z) => 1 / (1 + Math.exp(-z)), (z, a) => a * (1 - a)],
  // Source: Hendrycks and Gimpel 2016, the form with tanh, as in GPT-2.
  gelu: [(z) => 0.5 * z * (1 + Math.tanh(GELU * (z + 0.044715 * z * z * z))), (z) => {
    const t = Math.tanh(GELU * (z + 0.044715 * z * z * z));
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * GELU * (1 + 3 * 0.044715 * z * z);
  }],
  linear: [(z) => z, () => 1],
};

/**
 * @typedef {{activation: string, loss: 'squared' | 'entropy', regression: boolean, rate: number, batch: number,
 *   penalty: 'none' | 'l1' | 'l2', penaltyRate: number}} Training
 */
export class Network {
  /** @param {number[]} sizes units a layer, inputs first, 1 last @param {string} activation @param {boolean} regression */
  constructor(sizes, activation, regression, seed) {
    this.sizes = sizes;
    this.activation = activation;
    this.regression = regression;
    const draw = uniform(seed);
    const zeros = (num) => new Float64Array(num);
    this.weights = []; // of layer l + 1: unit k's weight of unit j below is [k * sizes[l] + j]
    this.biases = [];
    for (let l = 0; l + 1 < sizes.length; l += 1) {
      const reach = 1 / Math.sqrt(sizes[l]);
      this.weights.push(Float64Array.from({ length: sizes[l] * sizes[l + 1] }, () => (2 * draw() - 1) * reach));
      this.biases.push(zeros(sizes[l + 1]));
    }
    this.sums = sizes.map(zeros);
    this.values = sizes.map(zeros);
    this.deltas = sizes.map(zeros);
    this.weightSlopes = this.weights.map(({ length }) => zeros(length));
    this.biasSlopes = this.biases.map(({ length }) => zeros(length));
  }

  /** What the last unit says of an input. The values of all units stay in `values`. */
  forward(input) {
    const [act] = ACTIVATIONS[this.activation];
    const last = this.weights.length - 1;
    this.values[0].set(input);
    for (let l = 0; l <= last; l += 1) {
      const [below, weights, num] = [this.values[l], this.weights[l], this.sizes[l]];
      for (let k = 0; k < this.sizes[l + 1]; k += 1) {
        let sum = this.biases[l][k];
        for (let j = 0; j < num; j += 1) sum += weights[k * num + j] * below[j];
        this.sums[l + 1][k] = sum;
        this.values[l + 1][k] = l < last ? act(sum) : this.regression ? sum : Math.tanh(sum);
      }
    }
    return this.values[last + 1][0];
  }

  /** Adds the slopes of one point's loss, after `forward` of it. */
  backward(target, loss) {
    const [, slope] = ACTIVATIONS[this.activation];
    const top = this.weights.length;
    const out = this.values[top][0];
    const through = this.regression || loss === 'entropy' ? 1 : 1 - out * out;
    this.deltas[top][0] = (out - target) * through;
    for (let l = top - 1; l >= 0; l -= 1) {
      const [num, weights, above, below] = [this.sizes[l], this.weights[l], this.deltas[l + 1], this.deltas[l]];
      below.fill(0);
      for (let k = 0; k < above.length; k += 1) {
        this.biasSlopes[l][k] += above[k];
        for (let j = 0; j < num; j += 1) {
          this.weightSlopes[l][k * num + j] += above[k] * this.values[l][j];
          below[j] += above[k] * weights[k * num + j];
        }
      }
      if (l) for (let j = 0; j < num; j += 1) below[j] *= slope(this.sums[l][j], this.values[l][j]);
    }
  }

  /** One step down the mean slope of num points. L1 stops a weight at zero rather than let it change its sign. */
  step(num, { rate, penalty, penaltyRate }) {
    for (let l = 0; l < this.weights.length; l += 1) {
      const [weights, slopes] = [this.weights[l], this.weightSlopes[l]];
      for (let i = 0; i < weights.length; i += 1) {
        const before = weights[i];
        let next = before - rate * slopes[i] / num;
        if (penalty === 'l2') next -= rate * penaltyRate * before;
        else if (penalty === 'l1') {
          const pulled = next - rate * penaltyRate * Math.sign(before);
          next = pulled * next < 0 ? 0 : pulled;
        }
        weights[i] = next;
        slopes[i] = 0;
      }
      for (let k = 0; k < this.biases[l].length; k += 1) {
        this.biases[l][k] -= rate * this.biasSlopes[l][k] / num;
        this.biasSlopes[l][k] = 0;
      }
    }
  }

  /** One pass over the points, batch by batch. inputs: features a point. @param {Training} training */
  epoch(inputs, targets, training) {
    for (let from = 0; from < inputs.length; from += training.batch) {
      const to = Math.min(inputs.length, from + training.batch);
      for (let i = from; i < to; i += 1) {
        this.forward(inputs[i]);
        this.backward(targets[i], training.loss);
      }
      this.step(to - from, training);
    }
  }

  /** Mean loss over points; NaN when there are none. */
  loss(inputs, targets, kind) {
    let sum = 0;
    for (let i = 0; i < inputs.length; i += 1) {
      const out = this.forward(inputs[i]);
      if (kind === 'entropy' && !this.regression) sum += softplus(-2 * this.sums.at(-1)[0] * targets[i]);
      else sum += 0.5 * (out - targets[i]) ** 2;
    }
    return sum / inputs.length;
  }

  /** Share of points whose side is right. */
  accuracy(inputs, targets) {
    let right = 0;
    for (let i = 0; i < inputs.length; i += 1) right += (this.forward(inputs[i]) > 0) === (targets[i] > 0);
    return right / inputs.length;
  }

  /** False when a weight is no number any more, or too large to be of use. */
  get sound() {
    return this.weights.every((layer) => layer.every((weight) => Math.abs(weight) < 1e6));
  }
}

const softplus = (x) => (x > 0 ? x + Math.log1p(Math.exp(-x)) : Math.log1p(Math.exp(x)));
