/** How answers are sampled, and the role the model is given: a drawer beside the chat. */
import { el, iconButton } from '../shell/dom.js';
import { say } from '../shell/words.js';

/**
 * @typedef {{temperature: number, top_p: number, top_k: number, min_p: number, repetition_penalty: number,
 *   max_tokens: number, seed?: number}} Sampling
 */

const SLIDERS = [
  { name: 'temperature', min: 0, max: 2, step: 0.05, usual: 0.7 },
  { name: 'top_p', min: 0.05, max: 1, step: 0.05, usual: 1 },
  { name: 'top_k', min: 0, max: 100, step: 1, usual: 0 },
  { name: 'min_p', min: 0, max: 0.5, step: 0.01, usual: 0 },
  { name: 'repetition_penalty', min: 1, max: 1.5, step: 0.01, usual: 1 },
  { name: 'max_tokens', min: 1, max: 1024, step: 1, usual: 256 },
];

/** For a translator, which searches for its answer unless a temperature is set. */
const BEAM = { name: 'beam', min: 1, max: 16, step: 1, usual: 4 };

export const translates = (model) => model.kind === 'encoder-decoder';

const TERMINAL = 'You are a terminal. Directory: /ann/work\nFiles:\nnotes.txt: buy milk and bread\nplan.md: fix the roof';

/** name -> {system, starters}: what a first message could be. */
export const ROLES = {
  assistant: { system: '', starters: ['68-23 = ?', '请接龙：大学', 'Word chain: voice', '写一个有王子和贝壳的小故事。'] },
  translator: {
    system: 'Translate what the user writes: English into Chinese, Chinese into English. Reply with the translation only.',
    starters: ['Translate: the big child eats', '翻译：绿色的房子', 'Translate: five flowers'],
  },
  terminal: { system: TERMINAL, starters: ['ls', 'pwd', 'cat notes.txt'] },
};

export class Settings {
  /** onRole(system): a new role was chosen. model: see GET /api/page; where it plays a role already, none can be chosen. */
  constructor({ onRole, model }) {
    const { context } = model;
    this.translates = translates(model);
    this.entry = this.translates ? 'sampling-translator' : 'sampling';
    this.offered = this.translates ? [BEAM, ...SLIDERS.map((one) => (one.name === 'temperature' ? { ...one, usual: 0 } : one))] : SLIDERS;
    this.values = Object.fromEntries(this.offered.map(({ name, usual }) => [name, usual]));
    this.values.max_tokens = Math.min(256, Math.max(16, context >> 1));
    this.values.seed = '';
    try {
      Object.assign(this.values, JSON.parse(localStorage.getItem(this.entry) ?? '{}'));
    } catch { /* a broken entry is no settings */ }
    this.system = el('textarea', { rows: 5, tHint: 'systemHint', id: 'system', on: { change: () => onRole(this.system.value) } });
    this.presets = el('div', { class: 'segments', role: 'group', tLabel: 'role' }, Object.keys(ROLES).map((name) => el('button', {
      type: 'button', t: `role_${name}`, data: { role: name }, on: { click: () => { this.show(ROLES[name].system); onRole(ROLES[name].system); } },
    })));
    this.sliders = el('div', { class: 'sliders' }, this.offered.map((slider) => this.slider({ ...slider, max: slider.name === 'max_tokens' ? context : slider.max })));
    this.seed = el('input', { type: 'number', min: 0, max: 2 ** 31 - 1, step: 1, value: this.values.seed, tHint: 'seedHint',
      on: { change: () => this.keep('seed', this.seed.value) } });
    this.host = el('aside', { class: 'drawer', tLabel: 'settings', id: 'drawer', hidden: true },
      el('header', {}, el('h2', { t: 'settings' }), iconButton('close', 'close', () => this.toggle(false))),
      el('section', { hidden: model.role || this.translates }, el('label', { for: 'system', class: 'heading', t: 'systemPrompt' }), this.presets, this.system),
      el('section', {}, el('div', { class: 'heading spread' }, el('span', { t: 'sampling' }),
        el('button', { type: 'button', class: 'quiet small', t: 'usual', on: { click: () => this.reset(context) } })),
      this.sliders, el('label', { class: 'field' }, el('span', { t: 'seed' }), this.seed)));
    this.show('');
  }

  slider({ name, min, max, step }) {
    const output = el('b', {}, String(this.values[name])); // an <output> would take the label from the slider
    const input = el('input', { type: 'range', min, max, step, data: { name }, on: { input: () => {
      output.textContent = input.value;
      this.keep(name, Number(input.value));
    } } });
    input.value = this.values[name]; // after min, max and step, which would round it
    return el('label', { class: 'field', tTitle: `${name}_why` }, el('span', {}, el('span', { t: name }), output), input);
  }

  keep(name, value) {
    this.values[name] = value;
    localStorage.setItem(this.entry, JSON.stringify(this.values));
  }

  reset(context) {
    for (const { name, usual } of this.offered) {
      const value = name === 'max_tokens' ? Math.min(256, Math.max(16, context >> 1)) : usual;
      const input = this.sliders.querySelector(`[data-name="${name}"]`);
      input.value = value;
      input.dispatchEvent(new Event('input'));
    }
    this.seed.value = '';
    this.keep('seed', '');
  }

  /** @returns {Sampling} what is left out has no effect, so that a server which does not know it may say so */
  sampling() {
    const { temperature, top_p: topP, top_k: topK, min_p: minP, repetition_penalty: penalty, max_tokens: most, seed } = this.values;
    return {
      temperature, max_tokens: most, ...(this.translates && temperature === 0 && penalty === 1 ? { beam: this.values.beam } : {}),
      ...(topP < 1 ? { top_p: topP } : {}), ...(topK > 0 ? { top_k: topK } : {}), ...(minP > 0 ? { min_p: minP } : {}),
      ...(penalty > 1 ? { repetition_penalty: penalty } : {}),
      seed: seed === '' ? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1 : Number(seed),
    };
  }

  /** Shows the role of a conversation. */
  show(system) {
    this.system.value = system;
    for (const button of this.presets.children) {
      button.setAttribute('aria-pressed', String(ROLES[button.dataset.role].system === system));
    }
  }

  toggle(open = this.host.hidden) {
    this.host.hidden = !open;
    this.button?.setAttribute('aria-expanded', String(open));
    if (open) this.host.querySelector('button').focus(); else this.button?.focus();
  }
}

/** The name of the role a system message stands for. */
export function roleName(system) {
  const found = Object.keys(ROLES).find((name) => ROLES[name].system === system);
  return found ? say(`role_${found}`) : say('role_own');
}
