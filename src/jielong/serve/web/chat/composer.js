/** Where a message is written, with the switches below it. */
import { el, iconButton } from '../shell/dom.js';
import { translates } from './settings.js';

export class Composer {
  /** acts: submit(text), stop(), colours(on), answering(): other models answer now. models: see models.js. */
  constructor({ models, settings, sidebar, acts }) {
    this.acts = acts;
    this.models = models;
    const hint = translates(models.chosen) ? 'translatorHint' : 'askHint';
    this.input = el('textarea', { rows: 1, tHint: hint, tLabel: hint, on: {
      keydown: (event) => { if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.submit(); } },
      input: () => this.grow(),
    } });
    this.sendButton = round('send', {});
    this.stopButton = round('stop', { type: 'button', hidden: true, on: { click: () => acts.stop() } });
    sidebar.button = iconButton('menu', 'conversations', () => sidebar.toggle(), { class: 'quiet narrow', 'aria-expanded': 'false', 'aria-controls': 'conversations' });
    settings.button = worded(iconButton('dial', 'settings', () => settings.toggle(), { 'aria-expanded': 'false', 'aria-controls': 'drawer' }), 'settings');
    const compare = (on) => { models.comparing = on; this.answering(); };
    const under = el('div', { class: 'under' }, sidebar.button, toggle('drop', 'colours', acts.colours), toggle('pair', 'compare', compare),
      settings.button, this.who(), this.sendButton, this.stopButton);
    const form = el('form', { class: 'composer', on: { submit: (event) => { event.preventDefault(); this.submit(); } } }, this.input, under);
    this.host = el('div', { class: 'foot' }, el('div', { class: 'column' }, form, el('p', { class: 'hint mute small', t: 'mistakes' })));
    this.able();
  }

  /** Who answers: a name, or a choice of two, in whose place stands that two are compared while they are. */
  who() {
    const { all, chosen } = this.models;
    if (all.length < 2) return el('span', { class: 'model mute small', title: chosen.folder }, chosen.name);
    this.choice = el('select', { class: 'model small', tLabel: 'whichModel', on: { change: () => { this.models.choose(this.choice.value); this.answering(); } } },
      all.map(({ id, name, folder }) => el('option', { value: id, title: folder, selected: id === chosen.id }, name)));
    this.both = el('span', { class: 'model mute small', t: 'twoModels', hidden: true });
    return [this.choice, this.both];
  }

  /** Another model answers, or two. */
  answering() {
    if (this.choice) {
      this.both.hidden = this.models.writers.length < 2;
      this.choice.hidden = !this.both.hidden;
    }
    this.able();
    this.acts.answering();
  }

  /** A base model answers nothing, so there is nothing to write. */
  able() {
    this.input.disabled = !this.models.writers[0].chats;
    this.sendButton.disabled = this.input.disabled;
  }

  submit() {
    const text = this.input.value.trim();
    if (text) this.acts.submit(text);
  }

  /** The text is on its way: empties the field. */
  take() {
    this.put('');
  }

  put(text) {
    this.input.value = text;
    this.grow();
  }

  grow() {
    this.input.style.height = 'auto';
    this.input.style.height = `${Math.min(this.input.scrollHeight, innerHeight * 0.4)}px`;
  }

  focus() {
    this.input.focus({ preventScroll: true });
  }

  /** While an answer is written, the button that sends is one that stops. */
  busy(on) {
    this.sendButton.hidden = on;
    this.stopButton.hidden = !on;
  }
}

function round(name, props) {
  return el('button', { class: 'primary round', tLabel: name, tTitle: name, ...props }, iconButton(name, name).firstChild);
}

function worded(button, key) {
  button.append(el('span', { class: 'wide', t: key }));
  return button;
}

/** A button that stays pressed until it is pressed again. */
function toggle(name, key, flip) {
  const button = iconButton(name, key, () => {
    const on = button.getAttribute('aria-pressed') !== 'true';
    button.setAttribute('aria-pressed', String(on));
    flip(on);
  }, { 'aria-pressed': 'false' });
  return worded(button, key);
}
