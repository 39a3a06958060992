/** The messages of one branch, drawn. Long conversations show their end; what is above comes when it is scrolled to. */
import { copy } from '../shell/copy.js';
import { el, iconButton } from '../shell/dom.js';
import { Markdown } from '../markdown/render.js';
import { colour } from './tokens.js';
import { roleName } from './settings.js';

const AT_ONCE = 40; // messages that are drawn at first, and more at a time

export class Thread {
  /**
   * @param {{again: Function, edit: Function, turn: Function, inspect: Function, spansOf: Function}} acts what the
   *   buttons of a message do; each takes the message
   */
  constructor(acts) {
    this.acts = acts;
    this.log = el('div', { class: 'log' });
    this.earlier = el('div', { class: 'earlier' }, el('button', { type: 'button', t: 'earlier', on: { click: () => this.more() } }));
    this.host = el('div', { class: 'thread', role: 'region', tabindex: 0, tLabel: 'conversation' }, el('div', { class: 'column' }, this.earlier, this.log));
    this.path = [];
    this.first = 0;
    this.earlier.hidden = true;
    this.colours = false;
    this.pinned = true; // to the end
    this.host.addEventListener('scroll', () => {
      this.pinned = this.host.scrollHeight - this.host.scrollTop - this.host.clientHeight < 60;
    }, { passive: true });
    new IntersectionObserver(([entry]) => { if (entry.isIntersecting && !this.earlier.hidden) this.more(); }, { root: this.host })
      .observe(this.earlier);
    this.writing = null; // {node, spans} of an answer that is being written
  }

  /** Shows a branch. tree: for the siblings. forgotten: how many messages at its top the model does not see. */
  show(path, tree, system, forgotten = 0) {
    this.path = path;
    this.tree = tree;
    this.system = system;
    this.forgotten = forgotten;
    this.first = Math.max(0, path.length - AT_ONCE);
    this.log.replaceChildren(...path.slice(this.first).map((message, place) => this.message(message, this.first + place)));
    this.heading();
    this.pinned = true;
    this.toEnd();
  }

  more() {
    const before = this.host.scrollHeight;
    const from = Math.max(0, this.first - AT_ONCE);
    this.log.prepend(...this.path.slice(from, this.first).map((message, place) => this.message(message, from + place)));
    this.first = from;
    this.heading();
    this.host.scrollTop += this.host.scrollHeight - before;
  }

  /** What stands above the first message: that there are more, or the role. */
  heading() {
    this.earlier.hidden = this.first === 0;
    this.log.querySelector('.as')?.remove();
    if (this.first === 0 && this.system && this.path.length) {
      this.log.prepend(el('details', { class: 'as' }, el('summary', { t: ['actsAs', roleName(this.system)] }), el('pre', {}, this.system)));
    }
  }

  message(message, place) {
    const body = el('div', { class: 'body', dir: 'auto' });
    const node = el('article', { class: `message ${message.role}`, data: { id: message.id } },
      el('h3', { class: 'sr', t: message.role === 'user' ? 'you' : 'model' }), body, this.footer(message));
    if (message.role === 'user') body.textContent = message.content;
    else this.write(body, message);
    if (place + 1 === this.forgotten) node.append(el('p', { class: 'forgotten', t: 'forgotten' }));
    return node;
  }

  /** An answer that is whole. Its tokens are spans where they are known. */
  write(body, message) {
    const spans = message.spans;
    const markdown = new Markdown(body, { tokens: Boolean(spans) || message.spans === undefined && message.note.tokens > 0 && this.colours });
    if (markdown.tokens && spans) for (const [text] of spans) markdown.push(text);
    else { markdown.tokens = false; markdown.push(message.content); }
    markdown.flush();
    if (markdown.tokens) this.dress(body, spans);
    if (!message.content) body.append(el('p', { class: 'mute', t: 'saidNothing' }));
  }

  dress(body, spans) {
    colour(body, spans);
    const first = body.querySelector('.token');
    if (first && this.colours) first.tabIndex = 0;
  }

  footer(message) {
    const siblings = this.tree.siblings(message.id);
    const place = siblings.indexOf(message.id);
    const turn = (step) => this.acts.turn(siblings[place + step]);
    const switcher = siblings.length < 2 ? null : el('span', { class: 'turns' },
      iconButton('left', 'before', () => turn(-1), { disabled: place === 0 }),
      el('span', { class: 'number', 'aria-live': 'off' }, `${place + 1}/${siblings.length}`),
      iconButton('right', 'after', () => turn(1), { disabled: place === siblings.length - 1 }));
    const acts = message.role === 'user'
      ? [iconButton('copy', 'copy', () => copy(message.content)), iconButton('edit', 'edit', () => this.edit(message))]
      : [iconButton('copy', 'copy', () => copy(message.content)), iconButton('again', 'again', () => this.acts.again(message)),
        iconButton('eye', 'lookInside', () => this.acts.inspect(message))];
    return el('footer', {}, switcher, el('span', { class: 'acts' }, acts), el('span', { class: 'note mute small number' }, noteText(message.note)));
  }

  /** Edits a question in its place; sending it makes a branch. */
  edit(message) {
    const node = this.node(message.id);
    const area = el('textarea', { rows: Math.min(12, message.content.split('\n').length + 1), tLabel: 'edit', value: message.content });
    const close = () => node.replaceWith(this.message(message, this.path.indexOf(message)));
    const form = el('form', { class: 'editing', on: {
      submit: (event) => { event.preventDefault(); close(); if (area.value.trim()) this.acts.edit(message, area.value); },
      keydown: (event) => {
        if (event.key === 'Escape') { event.stopPropagation(); close(); this.node(message.id).querySelector('.acts button:last-child').focus(); }
        if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
      } } },
    area, el('div', { class: 'row' }, el('button', { class: 'primary', t: 'sendEdited' }), el('button', { type: 'button', t: 'cancel', on: { click: close } })));
    node.replaceChildren(form);
    area.focus();
  }

  node(id) {
    return this.log.querySelector(`[data-id="${id}"]`);
  }

  /** A place for an answer that is being written. */
  begin() {
    const body = el('div', { class: 'body', dir: 'auto' });
    const note = el('span', { class: 'note mute small number' });
    const node = el('article', { class: 'message assistant writing', 'aria-busy': 'true' }, el('h3', { class: 'sr', t: 'model' }), body,
      el('footer', {}, el('span', { class: 'pulse', 'aria-hidden': 'true' }), note));
    this.log.append(node);
    this.pinned = true;
    const spans = [];
    const markdown = new Markdown(body, { tokens: true });
    const draw = markdown.flush.bind(markdown);
    markdown.flush = () => { draw(); this.dress(body, spans); this.toEnd(); };
    this.toEnd();
    this.writing = { node, spans, markdown, note: (text) => { note.textContent = text; } };
    return this.writing;
  }

  /** What went wrong, in the place of an answer. */
  fail(error, again) {
    const node = el('div', { class: 'trouble', role: 'alert' }, el('p', {}, error.message), el('button', { type: 'button', t: 'tryAgain', on: { click: () => { node.remove(); again(); } } }));
    this.log.append(node);
    this.toEnd();
  }

  toEnd() {
    if (this.pinned) this.host.scrollTop = this.host.scrollHeight;
  }

  /** Tokens coloured or not; answers on the screen get their tokens from the server. */
  async setColours(on) {
    this.colours = on;
    this.host.classList.toggle('coloured', on);
    if (!on) return;
    for (const node of this.log.querySelectorAll('.message.assistant[data-id]')) await this.tokenise(node);
  }

  /** Draws an answer with its tokens, when they are to be had. @returns {Promise<boolean>} */
  async tokenise(node) {
    const message = this.tree.messages.get(node.dataset.id);
    const spans = await this.acts.spansOf(message);
    if (!spans) return false;
    const body = node.querySelector('.body');
    if (!body.querySelector('.token')) { body.replaceChildren(); this.write(body, message); }
    const first = body.querySelector('.token');
    if (first) first.tabIndex = 0;
    return true;
  }
}

/** "jie-s · 42 tokens · 310 tokens/s". */
export function noteText({ model, tokens, speed, finish }) {
  const parts = [model, tokens ? `${tokens} tok` : null, speed ? `${Math.round(speed)} tok/s` : null];
  if (finish === 'length') parts.push('…');
  if (finish === 'stopped') parts.push('■');
  return parts.filter(Boolean).join(' · ');
}
