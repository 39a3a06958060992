/** Neighbours in the embedding, positions as a map, and where the parameters are. */
import { el, svg } from '../shell/dom.js';
import { getJson } from '../shell/api.js';
import { language, say } from '../shell/words.js';
import { label, paintTable } from './maps.js';

export class NeighboursView {
  constructor() {
    this.list = el('div', { class: 'oddslist' });
    this.title = el('p', { class: 'of' });
    this.host = el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'neighbours' })), el('p', { class: 'mute small', t: 'neighboursWhy' }), this.title, this.list);
  }

  async show(id, model) {
    const { token, nearest } = await getJson(`/api/inside/neighbours?${new URLSearchParams({ token: id, model })}`);
    this.title.replaceChildren(el('code', {}, label(token)), el('span', { class: 'mute number' }, ` ${id}`));
    this.list.replaceChildren(...nearest.map(([name, other, cosine]) => {
      const bar = el('span', { class: 'bar-of' }, el('i'));
      bar.firstChild.style.width = `${Math.max(0, 100 * cosine)}%`;
      return el('button', { type: 'button', class: 'odds', on: { click: () => this.show(other, model) } }, el('code', {}, label(name)), bar, el('span', { class: 'number' }, cosine.toFixed(2)));
    }));
  }
}

export class PositionsView {
  constructor() {
    this.table = el('canvas', { class: 'positions', role: 'img', tLabel: 'positionsTable' });
    this.likeness = el('canvas', { class: 'positions', role: 'img', tLabel: 'positionsLikeness' });
    this.why = el('p', { class: 'mute small' });
    const figure = (canvas, key) => el('figure', {}, canvas, el('figcaption', { class: 'mute small', t: key }));
    this.host = el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'positions' }), this.kind = el('span', { class: 'badge' })), this.why,
      el('div', { class: 'pairmaps' }, figure(this.table, 'positionsTable'), figure(this.likeness, 'positionsLikeness')));
    addEventListener('repaint', () => { if (this.found) this.paint(); });
    addEventListener('respeak', () => { if (this.found) this.words(); });
  }

  async load(model) {
    this.model = model;
    const found = await getJson(`/api/inside/positions?${new URLSearchParams({ model })}`);
    if (this.model !== model) return; // another was chosen meanwhile
    this.found = found;
    this.words();
    this.paint();
  }

  words() {
    this.kind.textContent = say(`positions_${this.found.kind}`);
    this.why.textContent = say(`positions_${this.found.kind}_why`);
  }

  paint() {
    const { table, likeness } = this.found;
    const reach = Math.max(...table.flat().map(Math.abs), 1e-6);
    paintTable(this.table, table, reach);
    paintTable(this.likeness, likeness, 1);
  }
}

const PARTS = ['embedding', 'positions', 'attention', 'ffn', 'router', 'norms', 'head'];

export class ParametersView {
  constructor() {
    this.body = el('div', { class: 'parts' });
    this.host = el('section', { class: 'card' }, el('header', {}, el('h2', { t: 'parameters' })), el('p', { class: 'mute small', t: 'parametersWhy' }), this.body);
    addEventListener('respeak', () => { if (this.found) this.draw(); });
  }

  async load(model) {
    this.model = model;
    const found = await getJson(`/api/inside/shape?${new URLSearchParams({ model })}`);
    if (this.model !== model) return; // another was chosen meanwhile
    this.found = found;
    this.draw();
  }

  draw() {
    const { models, config } = this.found;
    const bars = models.map(({ name, parts }) => {
      const total = Object.values(parts).reduce((sum, each) => sum + each, 0);
      let x = 0;
      const rects = PARTS.filter((part) => parts[part] > 0).map((part) => {
        const width = 1000 * parts[part] / total;
        const rect = svg('rect', { x, width: Math.max(width - 2, 0.5), height: 36, rx: 4, class: part }, svg('title', {}, `${say(`part_${part}`)}: ${count(parts[part])}, ${(width / 10).toFixed(1)} %`));
        x += width;
        return rect;
      });
      return el('div', { class: 'partbar' }, el('p', {}, el('b', {}, name), el('span', { class: 'mute number' }, ` ${count(total)}`)),
        svg('svg', { viewBox: '0 0 1000 36', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, rects));
    });
    const shown = PARTS.filter((part) => models.some(({ parts }) => parts[part] > 0));
    const table = el('table', { class: 'parttable' }, el('thead', {}, el('tr', {}, el('th', { t: 'part' }), models.map(({ name }) => el('th', { scope: 'col', colspan: 2 }, name)))),
      el('tbody', {}, shown.map((part) => el('tr', {}, el('th', { scope: 'row' }, el('i', { class: part }), say(`part_${part}`)), models.flatMap(({ parts }) => {
        const total = Object.values(parts).reduce((sum, each) => sum + each, 0);
        return [el('td', { class: 'number' }, count(parts[part])), el('td', { class: 'number mute' }, `${(100 * parts[part] / total).toFixed(1)} %`)];
      })))));
    const facts = Object.entries(config).filter(([, value]) => value !== 0 && value !== null).map(([name, value]) => el('div', {}, el('dt', {}, name.replaceAll('_', ' ')), el('dd', { class: 'number' }, String(value))));
    this.body.replaceChildren(...bars, el('div', { class: 'scroll' }, table), el('dl', { class: 'facts' }, facts));
  }
}

/** 1,065,344 or 175 B in the present language. */
export function count(number) {
  return new Intl.NumberFormat(language() === 'zh' ? 'zh-CN' : 'en', number >= 1e7 ? { notation: 'compact', maximumFractionDigits: 1 } : {}).format(number);
}
