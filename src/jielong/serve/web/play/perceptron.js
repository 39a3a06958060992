/**
 * One neuron: inputs that are yes or no, a weight for each, and a threshold. It says yes when the weights of what is
 * true come to more than the threshold.
 * Source: McCulloch and Pitts 1943; Rosenblatt 1958 for how it learns.
 */

/** @param {number[]} inputs 0 or 1 each @returns {{sum: number, fires: boolean}} */
export function decide(inputs, weights, threshold) {
  const sum = inputs.reduce((total, input, place) => total + input * weights[place], 0);
  return { sum, fires: sum >= threshold };
}

/** All rows of 0 and 1 of a length, counting up. */
export function rows(num) {
  return Array.from({ length: 2 ** num }, (_, row) => Array.from({ length: num }, (__, place) => (row >> (num - 1 - place)) & 1));
}

/**
 * One pass of Rosenblatt's rule: every row that is answered wrongly moves the weights of its inputs, and the threshold
 * the other way. Returns how many were wrong.
 * @param {{weights: number[], threshold: number}} neuron changed in place
 */
export function learn(neuron, examples, wanted, rate = 1) {
  let wrong = 0;
  examples.forEach((inputs, row) => {
    const error = Number(wanted[row]) - Number(decide(inputs, neuron.weights, neuron.threshold).fires);
    if (!error) return;
    wrong += 1;
    inputs.forEach((input, place) => { neuron.weights[place] += rate * error * input; });
    neuron.threshold -= rate * error;
  });
  return wrong;
}
