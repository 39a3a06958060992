/** Everything the network can be set to. */
import { el } from '../shell/dom.js';
import { CLASS_NAMES, draw, FUNCTION_NAMES, isRegression, SPAN } from './datasets.js';
import { ACTIVATIONS } from './network.js';
import { colour } from './paint.js';
import { PENALTY_RATES, PRESETS, RATES } from './state.js';

const OF_TRAINING = ['rate', 'penalty', 'penaltyRate', 'batch'];
const OF_LOOKS = ['showTest', 'sharp'];

export class Controls {
  /** onChange(name, scope): scope is "net" (start anew), "data" (draw points anew), "training" or "looks". */
  constructor(settings, acts) {
    this.settings = settings;
    this.acts = acts;
    this.inputs = {};
    this.sets = el('div', { class: 'sets', role: 'radiogroup', tLabel: 'dataSet' }, [...CLASS_NAMES, ...FUNCTION_NAMES, 'own'].map((name) => this.set(name)));
    this.data = el('div', { class: 'fields' }, this.sets, this.slider('noise', 0, 0.5, 0.05, (value) => `${Math.round(100 * value)} %`),
      this.slider('share', 0.1, 0.9, 0.1, (value) => `${Math.round(100 * value)} %`), this.slider('batch', 1, 30, 1),
      el('button', { type: 'button', t: 'newData', on: { click: () => { this.settings.dataSeed += 1; acts.change('dataSeed', 'data'); } } }));
    this.training = el('div', { class: 'bar-fields' }, this.select('rate', RATES), this.select('activation', Object.keys(ACTIVATIONS)),
      this.select('loss', ['squared', 'entropy'], (value) => `loss_${value}`), this.select('penalty', ['none', 'l1', 'l2'], (value) => (value === 'none' ? 'penalty_none' : null)),
      this.select('penaltyRate', PENALTY_RATES));
    this.looks = el('div', { class: 'row looks' }, this.check('showTest'), this.check('sharp'));
    this.presets = el('select', { tLabel: 'presets', on: { change: () => { if (this.presets.value) acts.preset(this.presets.value); } } },
      el('option', { value: '', t: 'presets' }), Object.keys(PRESETS).map((name) => el('option', { value: name, t: `preset_${name}` })));
    this.show();
  }

  changed(name) {
    const scope = OF_TRAINING.includes(name) ? (name === 'batch' ? 'training' : 'training') : OF_LOOKS.includes(name) ? 'looks' : ['data', 'noise', 'share'].includes(name) ? 'data' : 'net';
    this.show();
    this.acts.change(name, scope);
  }

  /** A data set as a small picture of its points. */
  set(name) {
    const canvas = el('canvas', { width: 44, height: 44, 'aria-hidden': 'true' });
    const pen = canvas.getContext('2d');
    if (name !== 'own') {
      for (const [x, y, target] of draw({ data: name, noise: 0, dataSeed: 1, own: [] }, 260)) {
        pen.fillStyle = colour(1.2 * target);
        pen.fillRect((x + SPAN) / (2 * SPAN) * 44 - 1, (SPAN - y) / (2 * SPAN) * 44 - 1, 2.4, 2.4);
      }
    } else {
      pen.strokeStyle = '#888';
      pen.lineWidth = 2;
      pen.stroke(new Path2D('M22 12v20M12 22h20'));
    }
    return el('button', { type: 'button', role: 'radio', class: 'set', tLabel: `set_${name}`, tTitle: `set_${name}`, data: { name }, on: { click: () => { this.settings.data = name; this.changed('data'); } } }, canvas);
  }

  slider(name, min, max, step, told = String) {
    const output = el('b');
    const input = el('input', { type: 'range', min, max, step, on: { input: () => { this.settings[name] = Number(input.value); output.textContent = told(this.settings[name]); }, change: () => this.changed(name) } });
    this.inputs[name] = () => { input.value = this.settings[name]; output.textContent = told(this.settings[name]); };
    return el('label', { class: 'field' }, el('span', {}, el('span', { t: name }), output), input);
  }

  select(name, values, word = () => null) {
    const input = el('select', { on: { change: () => { this.settings[name] = typeof this.settings[name] === 'number' ? Number(input.value) : input.value; this.changed(name); } } },
      values.map((value) => (word(value) ? el('option', { value, t: word(value) }) : el('option', { value }, String(value)))));
    this.inputs[name] = () => {
      if (![...input.options].some((option) => option.value === String(this.settings[name]))) input.append(el('option', { value: this.settings[name] }, String(this.settings[name])));
      input.value = String(this.settings[name]);
    };
    if (name === 'loss') this.lossInput = input;
    if (name === 'penaltyRate') this.penaltyInput = input;
    return el('label', { class: 'field' }, el('span', { t: name === 'rate' ? 'learningRate' : name }), input);
  }

  check(name) {
    const input = el('input', { type: 'checkbox', on: { change: () => { this.settings[name] = input.checked; this.changed(name); } } });
    this.inputs[name] = () => { input.checked = this.settings[name]; };
    return el('label', { class: 'check' }, input, el('span', { t: name }));
  }

  /** Shows what the settings are. */
  show() {
    for (const refresh of Object.values(this.inputs)) refresh();
    this.lossInput.disabled = isRegression(this.settings.data);
    this.penaltyInput.disabled = this.settings.penalty === 'none';
    for (const button of this.sets.children) button.setAttribute('aria-checked', String(button.dataset.name === this.settings.data));
  }
}
