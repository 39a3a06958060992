/** Where a message is written, with the switches below it. */
import { el, iconButton } from '../shell/dom.js';
import { translates } from './settings.js';

export class Composer {
  /** acts: submit(text), stop(), colours(on), compare(on). */
  constructor({ model, settings, sidebar, acts }) {
    this.acts = acts;
    const hint = translates(model) ? 'translatorHint' : 'askHint';
    this.input = el('textarea', { rows: 1, tHint: hint, tLabel: hint, disabled: !model.chats, on: {
      keydown: (event) => { if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.submit(); } },
      input: () => this.grow(),
    } });
    this.sendButton = round('send', { disabled: !model.chats });
    this.stopButton = round('stop', { type: 'button', hidden: true, on: { click: () => acts.stop() } });
    sidebar.button = iconButton('menu', 'conversations', () => sidebar.toggle(), { class: 'quiet narrow', 'aria-expanded': 'false', 'aria-controls': 'conversations' });
    settings.button = worded(iconButton('dial', 'settings', () => settings.toggle(), { 'aria-expanded': 'false', 'aria-controls': 'drawer' }), 'settings');
    const under = el('div', { class: 'under' }, sidebar.button, toggle('drop', 'colours', acts.colours), toggle('pair', 'compare', acts.compare),
      settings.button, el('span', { class: 'model mute small', title: model.folder }, model.name), this.sendButton, this.stopButton);
    const form = el('form', { class: 'composer', on: { submit: (event) => { event.preventDefault(); this.submit(); } } }, this.input, under);
    this.host = el('div', { class: 'foot' }, el('div', { class: 'column' }, form, el('p', { class: 'hint mute small', t: 'mistakes' })));
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
