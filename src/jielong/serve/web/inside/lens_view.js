/** The logit lens: what the model would say next if it had to speak after each of its layers. */
import { el } from '../shell/dom.js';
import { say } from '../shell/words.js';
import { label } from './maps.js';

const percent = (p) => `${(100 * p).toFixed(p >= 0.1 ? 0 : 1)} %`;

export class LensView {
  constructor() {
    this.grid = el('div', { class: 'scroll gridbox', tabindex: 0, role: 'group', tLabel: 'lens' });
    this.card = el('div', { class: 'lenscard', 'aria-live': 'polite' });
    this.body = el('div', { class: 'lensbody' }, this.grid, this.card);
    this.host = el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'lens' })), el('p', { class: 'mute small', t: 'lensWhy' }), this.body);
    addEventListener('respeak', () => { if (this.found) this.set(this.found); });
  }

  /** found: what POST /api/inside/lens gives. */
  set(found) {
    this.found = found;
    const { tokens, top } = found;
    const name = (row) => (row === 0 ? say('embedding') : `${say('layer')} ${row - 1}`);
    const rows = top.map((positions, row) => el('tr', {}, el('th', { scope: 'row' }, name(row)), positions.map((best, at) => this.cell(best, row, at)))).reverse();
    const head = el('tr', {}, el('th', { t: 'afterToken' }), tokens.map((token) => el('th', { scope: 'col' }, label(token))));
    const foot = el('tr', {}, el('th', { scope: 'row', t: 'reallyNext' }), tokens.slice(1).map((token) => el('td', {}, label(token))), el('td', {}, '?'));
    this.grid.replaceChildren(el('table', { class: 'lens' }, el('caption', { class: 'sr', t: 'lens' }), el('thead', {}, head), el('tbody', {}, rows), el('tfoot', {}, foot)));
    this.names = name;
    this.tell(top.length - 1, tokens.length - 1);
    this.grid.scrollLeft = this.grid.scrollWidth;
    const last = this.grid.querySelector('tbody tr td:last-child');
    last.tabIndex = 0;
  }

  cell(best, row, at) {
    const { tokens, ranks } = this.found;
    const right = at + 1 < tokens.length && ranks[row][at + 1] === 1;
    const node = el('td', { class: right ? 'hit' : null, tabindex: -1, data: { row, at }, on: { pointerenter: () => this.tell(row, at), focus: () => this.tell(row, at), keydown: (event) => this.walk(event, row, at) } }, label(best[0][0]));
    node.style.setProperty('--p', best[0][1]);
    return node;
  }

  walk(event, row, at) {
    const move = { ArrowDown: [-1, 0], ArrowUp: [1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const next = this.grid.querySelector(`[data-row="${row + move[0]}"][data-at="${at + move[1]}"]`);
    if (!next) return;
    event.currentTarget.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  /** The candidates of a cell, with bars. */
  tell(row, at) {
    const { tokens, top, entropies, chances, ranks } = this.found;
    const bars = top[row][at].map(([name, p]) => {
      const bar = el('span', { class: 'bar-of' }, el('i'));
      bar.firstChild.style.width = `${100 * p}%`;
      return el('div', { class: 'odds' }, el('code', {}, label(name)), bar, el('span', { class: 'number' }, percent(p)));
    });
    const really = at + 1 < tokens.length ? el('p', { class: 'small' }, say('reallyNextIs', label(tokens[at + 1]), ranks[row][at + 1], percent(chances[row][at + 1]))) : null;
    this.card.replaceChildren(el('h3', {}, `${this.names(row)} · ${say('afterIs', label(tokens[at]))}`), ...bars,
      ...[el('p', { class: 'mute small' }, `${say('entropy')} ${entropies[row][at].toFixed(2)}`), really].filter(Boolean));
  }
}
