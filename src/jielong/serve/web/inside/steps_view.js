/** One prediction, step by step: text, tokens and ids, a vector through the layers, scores, chances. */
import { el } from '../shell/dom.js';
import { label, paintTable } from './maps.js';

export class StepsView {
  /** onToken(id): a token was chosen. */
  constructor(onToken) {
    this.onToken = onToken;
    this.tokens = el('div', { class: 'chips' });
    this.vectors = el('canvas', { class: 'vectors', role: 'img', tLabel: 'vectorsWhy' });
    this.rows = el('div', { class: 'rownames mute small', 'aria-hidden': 'true' });
    this.scores = el('div', { class: 'oddslist' });
    this.chances = el('div', { class: 'oddslist' });
    this.told = el('b', {}, '1');
    this.heat = el('input', { type: 'range', min: 0.1, max: 2, step: 0.05, value: 1, on: { input: () => this.bars() } });
    const step = (number, key, why, ...body) => el('li', {}, el('h3', {}, el('b', {}, String(number)), el('span', { t: key })), el('p', { class: 'mute small', t: why }), ...body);
    this.host = el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'steps' })), el('ol', { class: 'steps' },
      step(1, 'step_tokens', 'step_tokens_why', this.tokens), step(2, 'step_vectors', 'step_vectors_why', el('div', { class: 'vectorbox' }, this.rows, this.vectors)),
      step(3, 'step_scores', 'step_scores_why', this.scores),
      step(4, 'step_chances', 'step_chances_why', this.chances, el('label', { class: 'field' }, el('span', {}, el('span', { t: 'temperature' }), this.told), this.heat))));
    addEventListener('repaint', () => { if (this.found) this.paint(); });
  }

  set(found) {
    this.found = found;
    this.tokens.replaceChildren(...found.tokens.map((token, place) => el('button', { type: 'button', class: 'chip', tTitle: 'neighbours', on: { click: () => this.onToken(found.ids[place]) } },
      el('span', {}, label(token)), el('small', { class: 'number mute' }, String(found.ids[place])))));
    this.rows.replaceChildren(...found.vectors.map((_, row) => el('span', {}, row ? String(row - 1) : '∈')));
    this.paint();
    this.bars();
  }

  paint() {
    const { vectors } = this.found;
    const reach = vectors.map((row) => 2.2 * Math.sqrt(row.reduce((sum, value) => sum + value * value, 0) / row.length) || 1);
    paintTable(this.vectors, vectors.map((row, place) => row.map((value) => value / reach[place])), 1);
    this.vectors.style.height = `${vectors.length * 20}px`;
  }

  bars() {
    const heat = Number(this.heat.value);
    this.told.textContent = heat.toFixed(2);
    const { top, log_totals: totals } = this.found;
    const most = Math.max(...top.map(([, score]) => Math.abs(score)));
    const row = (name, part, told) => {
      const bar = el('span', { class: 'bar-of' }, el('i'));
      bar.firstChild.style.width = `${Math.max(0, Math.min(100, 100 * part))}%`;
      return el('div', { class: 'odds' }, el('code', {}, label(name)), bar, el('span', { class: 'number' }, told));
    };
    this.scores.replaceChildren(...top.map(([name, score]) => row(name, Math.abs(score) / most, score.toFixed(2))));
    const total = totals[Math.round(20 * heat) - 2]; // of exp(score / heat) over the vocabulary, as a logarithm
    this.chances.replaceChildren(...top.map(([name, score]) => {
      const p = Math.exp(score / heat - total);
      return row(name, p, `${(100 * p).toFixed(1)} %`);
    }));
  }
}
