/**
 * Points to learn from: [x, y, target], x and y within about -6 … 6, targets -1 … 1; and what of a point the network sees.
 *
 * @typedef {[number, number, number]} Point
 */
import { normal, shuffle, uniform } from './random.js';

export const SPAN = 6;

export const FEATURES = [
  { name: 'x', of: (x) => x },
  { name: 'y', of: (x, y) => y },
  { name: 'x²', of: (x) => x * x / 6 },
  { name: 'y²', of: (x, y) => y * y / 6 },
  { name: 'xy', of: (x, y) => x * y / 6 },
  { name: 'sin x', of: (x) => Math.sin(x) },
  { name: 'sin y', of: (x, y) => Math.sin(y) },
];

/** Each draws one point: place i of n, its class c (1 or -1), uniform numbers u, normal numbers g, noise s. */
const CLASSES = {
  circle: ({ c, u, g, s }) => {
    const radius = c > 0 ? 2.5 * u() : 3.5 + 1.5 * u();
    const angle = 2 * Math.PI * u();
    return [radius * Math.sin(angle) + s * g(), radius * Math.cos(angle) + s * g(), c];
  },
  xor: ({ u, g, s }) => {
    const [x, y] = [10 * u() - 5, 10 * u() - 5];
    const [px, py] = [x + (x > 0 ? 0.3 : -0.3), y + (y > 0 ? 0.3 : -0.3)];
    return [px + s * g(), py + s * g(), x * y >= 0 ? 1 : -1];
  },
  clouds: ({ c, g, s }) => {
    const width = 0.8 + s;
    return [2 * c + width * g(), 2 * c + width * g(), c];
  },
  spiral: ({ i, n, c, g, s }) => {
    const far = i / n;
    const angle = 1.75 * far * 2 * Math.PI + (c > 0 ? 0 : Math.PI);
    return [5 * far * Math.sin(angle) + s * g() * 0.6, 5 * far * Math.cos(angle) + s * g() * 0.6, c];
  },
  moons: ({ c, u, g, s }) => {
    const angle = Math.PI * u();
    const width = 0.25 + s * 0.6;
    const [x, y] = c > 0 ? [3 * Math.cos(angle) - 1.5, 3 * Math.sin(angle) - 0.8] : [1.5 - 3 * Math.cos(angle), 0.8 - 3 * Math.sin(angle)];
    return [x + width * g(), y + width * g(), c];
  },
};

const FUNCTIONS = {
  plane: (x, y) => (x + y) / 10,
  hills: (x, y) => {
    const hill = (a, b) => Math.max(0, 1 - Math.hypot(x - a, y - b) / 2);
    return hill(-4, 2.5) + hill(0, -2.5) + hill(4, 2.5) - hill(-4, -2.5) - hill(0, 2.5) - hill(4, -2.5);
  },
  waves: (x, y) => Math.sin(x) * Math.cos(y / 2),
};

export const CLASS_NAMES = Object.keys(CLASSES);
export const FUNCTION_NAMES = Object.keys(FUNCTIONS);

export const isRegression = (name) => name in FUNCTIONS;

/**
 * num points of a set in a random order. noise: 0 … 0.5. Own points are taken as they are.
 * @param {{data: string, noise: number, dataSeed: number, own: Point[]}} settings @returns {Point[]}
 */
export function draw({ data, noise, dataSeed, own }, num = 400) {
  const u = uniform(dataSeed);
  if (data === 'own') return shuffle(own.map((point) => [...point]), u);
  const g = normal(u);
  const points = [];
  for (let i = 0; i < num; i += 1) {
    if (data in FUNCTIONS) {
      const [x, y] = [12 * u() - 6, 12 * u() - 6];
      points.push([x, y, FUNCTIONS[data](x, y) + noise * 0.6 * g()]);
    } else {
      const c = i % 2 ? -1 : 1;
      points.push(CLASSES[data]({ i: Math.floor(i / 2), n: num / 2, c, u, g, s: 2.4 * noise }));
    }
  }
  return shuffle(points, u);
}

/** [training, test]: the first share of the points is trained on. */
export function split(points, share) {
  const num = Math.max(1, Math.min(points.length, Math.round(points.length * share)));
  return [points.slice(0, num), points.slice(num)];
}
