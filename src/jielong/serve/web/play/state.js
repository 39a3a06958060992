/** What the playground is set to, and its way into the address and back. */
import { CLASS_NAMES, FEATURES, FUNCTION_NAMES, isRegression } from './datasets.js';
import { ACTIVATIONS } from './network.js';

export const MOST_LAYERS = 6;
export const MOST_UNITS = 8;
export const MOST_POINTS = 300;

export const RATES = [0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10];
export const PENALTY_RATES = [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10];

/** @typedef {typeof USUAL} Settings */
export const USUAL = {
  data: 'circle', noise: 0, share: 0.5, batch: 10, dataSeed: 1, seed: 1, features: [0, 1], hidden: [4, 2],
  activation: 'tanh', loss: 'squared', rate: 0.03, penalty: 'none', penaltyRate: 0, showTest: false, sharp: false, own: [],
};

/** name -> settings that are worth a look; words.js says why. */
export const PRESETS = {
  first: {},
  line: { data: 'xor', hidden: [1], features: [0, 1] },
  xor: { data: 'xor', hidden: [4], activation: 'relu' },
  feature: { data: 'xor', hidden: [], features: [4] },
  spiral: { data: 'spiral', hidden: [8, 6], features: [0, 1, 2, 3, 4, 5, 6], noise: 0.05, loss: 'entropy' },
  overfit: { data: 'clouds', noise: 0.5, share: 0.1, hidden: [8, 8, 8], features: [0, 1, 2, 3, 4, 5, 6], showTest: true, batch: 1, loss: 'entropy' },
  diverge: { data: 'hills', hidden: [8, 8], activation: 'relu', rate: 3 },
};

const SHORT = {
  data: 'd', noise: 'n', share: 's', batch: 'b', dataSeed: 'ds', seed: 'rs', activation: 'a', loss: 'l', rate: 'r', penalty: 'p',
  penaltyRate: 'pr', showTest: 't', sharp: 'h',
};

/** What differs from the usual, as a hash: "#d=spiral&f=0.1.4&h=8.6". @param {Settings} settings */
export function toHash(settings) {
  const found = new URLSearchParams();
  for (const [name, key] of Object.entries(SHORT)) {
    if (settings[name] !== USUAL[name]) found.set(key, String(Number.isFinite(settings[name]) || typeof settings[name] === 'string' ? settings[name] : Number(settings[name])));
  }
  if (settings.features.join('.') !== USUAL.features.join('.')) found.set('f', settings.features.join('.'));
  if (settings.hidden.join('.') !== USUAL.hidden.join('.')) found.set('u', settings.hidden.join('.'));
  if (settings.data === 'own') found.set('o', settings.own.map((point) => point.map((value) => Number(value.toFixed(2))).join('*')).join('_'));
  const text = found.toString();
  return text && `#${text}`;
}

/** Settings of a hash; what is missing or not legal is as usual. @returns {Settings} */
export function fromHash(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ''));
  const settings = structuredClone(USUAL);
  const pick = (name, legal) => { const value = given.get(SHORT[name]); if (value !== null && legal.includes(value)) settings[name] = value; };
  const number = (name, low, high, whole = false) => {
    const value = Number(given.get(SHORT[name]) ?? NaN);
    if (value >= low && value <= high && (!whole || Number.isInteger(value))) settings[name] = value;
  };
  const list = (key, low, high, most) => {
    const written = given.get(key);
    if (written === null) return null;
    const values = written === '' ? [] : written.split('.').map(Number);
    return values.length <= most && values.every((value) => Number.isInteger(value) && value >= low && value <= high) ? values : null;
  };
  pick('data', [...CLASS_NAMES, ...FUNCTION_NAMES, 'own']);
  pick('activation', Object.keys(ACTIVATIONS));
  pick('loss', ['squared', 'entropy']);
  pick('penalty', ['none', 'l1', 'l2']);
  number('noise', 0, 0.5);
  number('share', 0.1, 0.9);
  number('batch', 1, 30, true);
  number('dataSeed', 0, 2 ** 31, true);
  number('seed', 0, 2 ** 31, true);
  number('rate', 1e-6, 100);
  number('penaltyRate', 0, 100);
  for (const name of ['showTest', 'sharp']) if (given.get(SHORT[name]) === '1') settings[name] = true;
  const features = list('f', 0, FEATURES.length - 1, FEATURES.length);
  if (features?.length) settings.features = [...new Set(features)].sort((a, b) => a - b);
  settings.hidden = list('u', 1, MOST_UNITS, MOST_LAYERS) ?? settings.hidden;
  const own = (given.get('o') ?? '').split('_').filter(Boolean).map((point) => point.split('*').map(Number));
  settings.own = own.slice(0, MOST_POINTS).filter((point) => point.length === 3 && point.every((value) => Math.abs(value) <= 10));
  return settings;
}

/** The network's layers and how it is trained. @param {Settings} settings */
export function training(settings) {
  const regression = isRegression(settings.data);
  return {
    sizes: [settings.features.length, ...settings.hidden, 1], regression, activation: settings.activation, rate: settings.rate,
    batch: settings.batch, loss: regression ? 'squared' : settings.loss, penalty: settings.penalty, penaltyRate: settings.penaltyRate,
  };
}
