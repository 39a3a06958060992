/** Metrics as they are kept here: by run and name, growing; and what is done to them before they are drawn. */

/** @typedef {{steps: number[], values: number[]}} Series */

export class Store {
  constructor() {
    this.columns = new Map(); // "run/stage" -> {cursor, names: Map name -> Series, sampled, whole}
  }

  /** whole: whether nothing more comes. @returns {{cursor: number, names: Map<string, Series>, sampled: boolean, whole: boolean}} */
  of(run, stage) {
    const key = `${run}/${stage}`;
    if (!this.columns.has(key)) this.columns.set(key, { cursor: 0, names: new Map(), sampled: false, whole: false });
    return this.columns.get(key);
  }

  /** Takes in what GET …/metrics gave. @returns {boolean} whether anything is new */
  take(run, stage, { cursor, anew, sampled, columns }) {
    const entry = this.of(run, stage);
    if (anew) entry.names.clear();
    const grown = cursor !== entry.cursor || anew;
    entry.cursor = cursor;
    entry.sampled ||= sampled;
    for (const [name, [steps, values]] of Object.entries(columns)) {
      const series = entry.names.get(name) ?? { steps: [], values: [] };
      for (let i = 0; i < steps.length; i += 1) { series.steps.push(steps[i]); series.values.push(values[i]); }
      entry.names.set(name, series);
    }
    return grown;
  }
}

/** Exponential mean, its start corrected. weight: 0 (none) … 0.99 of the past. */
export function smooth(values, weight) {
  if (!weight) return values;
  let [mean, seen] = [0, 0];
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    seen = weight * seen + (1 - weight);
    return mean / seen;
  });
}

/** Fewer points that look the same: of each of `most` stretches the least and the greatest. @param {Series} series */
export function thin({ steps, values }, most = 500) {
  if (values.length <= 2 * most) return { steps, values };
  const [outSteps, outValues] = [[], []];
  const size = values.length / most;
  for (let bucket = 0; bucket < most; bucket += 1) {
    const [from, to] = [Math.floor(bucket * size), Math.floor((bucket + 1) * size)];
    let [low, high] = [from, from];
    for (let i = from; i < to; i += 1) { if (values[i] < values[low]) low = i; if (values[i] > values[high]) high = i; }
    for (const i of low < high ? [low, high] : low === high ? [low] : [high, low]) { outSteps.push(steps[i]); outValues.push(values[i]); }
  }
  return { steps: outSteps, values: outValues };
}

/** The place of the step nearest to `step`. */
export function nearest(steps, step) {
  let [low, high] = [0, steps.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle; else high = middle;
  }
  return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
}

/** About `num` round numbers within [low, high]. */
export function ticks(low, high, num, log = false) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const part of Math.log10(high / low) > 3 ? [1] : [1, 2, 5]) { const value = part * 10 ** power; if (value >= low && value <= high) found.push(value); }
    }
    return found.length > 1 ? found : [low, high];
  }
  const rough = (high - low) / num;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5].map((part) => part * power).find((each) => each >= rough) ?? 10 * power;
  const found = [];
  for (let n = Math.ceil(low / step); found.length <= 2 * num && n * step <= high + step * 1e-9; n += 1) found.push(n * step);
  return found;
}

/** 0.4112, 21.3k, 3e-5: three figures. */
export function brief(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${trim(value / 1e9)}G`;
  if (size >= 1e6) return `${trim(value / 1e6)}M`;
  if (size >= 1e4) return `${trim(value / 1e3)}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return trim(value);
}

const trim = (value) => String(Number(value.toPrecision(3)));
