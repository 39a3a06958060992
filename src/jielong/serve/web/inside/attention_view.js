/** Attention: a wall of all heads, one of them large, and arcs from one token to what it takes from. */
import { el, svg } from '../shell/dom.js';
import { say } from '../shell/words.js';
import { headOf, label, paintHead, ramp } from './maps.js';

const FEW = 40; // tokens whose large map has a label each

export class AttentionView {
  constructor() {
    this.kinds = el('div', { class: 'segments', role: 'group', tLabel: 'attentionKind' });
    this.wall = el('div', { class: 'scroll wallbox', tabindex: 0, role: 'group', tLabel: 'wall' });
    this.title = el('h3');
    this.words = el('p', { class: 'mute small' });
    this.large = el('canvas', { class: 'large', tabindex: 0, role: 'img', on: {
      pointermove: (event) => this.point(event), pointerleave: () => this.cell(null), keydown: (event) => this.key(event), click: (event) => { this.point(event); if (this.at) this.choose(this.at[0]); },
    } });
    this.read = el('output', { class: 'number read', 'aria-live': 'polite' });
    this.arcs = el('div', { class: 'scroll arcs', tabindex: 0, role: 'group', tLabel: 'arcs' });
    this.host = el('section', { class: 'card attention' }, el('header', {}, el('h2', { t: 'attention' }), this.kinds), el('p', { class: 'mute small', t: 'attentionWhy' }),
      el('div', { class: 'split' }, el('div', {}, this.wall, el('p', { class: 'mute small legend' }, '0 ', el('i'), ' 1')),
        el('div', { class: 'one' }, this.title, this.words, this.large, this.read)), el('h3', { class: 'arcs-title', t: 'arcs' }), this.arcs);
    addEventListener('repaint', () => { if (this.maps) { this.paintWall(); this.show(); } });
    addEventListener('respeak', () => { if (this.maps) this.show(); });
    new ResizeObserver(() => { if (this.maps && this.large.clientWidth !== this.drawn) this.paintLarge(); }).observe(this.large);
  }

  /** @param {import('./maps.js').Maps[]} kinds */
  set(kinds) {
    this.all = kinds;
    this.kinds.hidden = kinds.length < 2;
    this.kinds.replaceChildren(...kinds.map(({ kind }) => el('button', { type: 'button', t: `attention_${kind}`, data: { kind }, on: { click: () => this.pick(kind) } })));
    this.pick(kinds.some(({ kind }) => kind === 'cross') ? 'cross' : kinds[0].kind);
  }

  pick(kind) {
    this.maps = this.all.find((maps) => maps.kind === kind);
    for (const button of this.kinds.children) button.setAttribute('aria-pressed', String(button.dataset.kind === kind));
    [this.layer, this.head] = this.maps.shown;
    this.query = this.telling();
    this.build();
    this.show();
  }

  /** The query that looks hardest at a token that is neither the first nor itself. */
  telling() {
    const { weight, numQueries, numKeys } = headOf(this.maps, this.layer, this.head);
    let best = [0, numQueries - 1];
    for (let q = 1; q < numQueries; q += 1) for (let k = 1; k < numKeys; k += 1) if ((this.maps.kind === 'cross' || k < q - 1 || k > q) && weight(q, k) > best[0]) best = [weight(q, k), q];
    return best[1];
  }

  build() {
    const [numLayers, numHeads] = this.maps.shape;
    const size = Math.max(34, Math.min(104, Math.floor(((this.wall.clientWidth || 480) - 38) / numHeads) - 13));
    this.wall.style.setProperty('--thumb', `${size}px`);
    this.thumbs = [];
    const rows = Array.from({ length: numLayers }, (_, layer) => el('tr', {}, el('th', { scope: 'row' }, String(layer)), Array.from({ length: numHeads }, (__, head) => {
      const canvas = el('canvas', { 'aria-hidden': 'true' });
      const button = el('button', { type: 'button', class: 'thumb', tLabel: ['headOf', layer, head], on: { click: () => { this.layer = layer; this.head = head; this.show(); }, keydown: (event) => this.walk(event, layer, head) } }, canvas);
      this.thumbs.push({ button, canvas, layer, head });
      return el('td', {}, button);
    })));
    const head = el('tr', {}, el('th', { class: 'corner' }, el('span', { class: 'sr', t: 'layer' })), Array.from({ length: numHeads }, (_, place) => el('th', { scope: 'col' }, String(place))));
    this.wall.replaceChildren(el('table', { class: 'wall' }, el('caption', { class: 'sr', t: 'wall' }), el('thead', {}, head), el('tbody', {}, rows)));
    this.paintWall();
  }

  paintWall() {
    this.colours = ramp();
    for (const { canvas, layer, head } of this.thumbs) paintHead(canvas, headOf(this.maps, layer, head), this.colours);
  }

  /** Arrows go from head to head. */
  walk(event, layer, head) {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    this.thumbs.find((thumb) => thumb.layer === layer + down && thumb.head === head + right)?.button.focus();
  }

  show() {
    for (const { button, layer, head } of this.thumbs) {
      const chosen = layer === this.layer && head === this.head;
      button.setAttribute('aria-pressed', String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
    this.title.textContent = say('headOf', this.layer, this.head);
    const { figures } = this.maps;
    const at = (name) => figures[name]?.[this.layer][this.head];
    const share = (value) => `${Math.round(100 * value)} %`;
    this.words.textContent = [['toFirst', at('to_first')], ['toSelf', at('to_self')], ['toPrevious', at('to_previous')]].filter(([, value]) => value !== undefined)
      .map(([key, value]) => `${say(key)} ${share(value)}`).concat(`${say('entropy')} ${at('entropy_nats').toFixed(2)}`).join(' · ');
    this.one = headOf(this.maps, this.layer, this.head);
    this.paintLarge();
    this.drawArcs();
    this.cell(null);
  }

  paintLarge() {
    const { numQueries, numKeys } = this.one;
    const named = Math.max(numQueries, numKeys) <= FEW;
    const ratio = Math.min(2, devicePixelRatio || 1);
    this.drawn = this.large.clientWidth || 420;
    this.margin = named ? 74 : 8;
    this.size = Math.max(2, Math.min(30, (this.drawn - this.margin - 4) / numKeys));
    const height = numQueries * this.size + this.margin;
    this.large.style.height = `${height}px`;
    this.large.width = this.drawn * ratio;
    this.large.height = height * ratio;
    this.large.setAttribute('aria-label', say('largeMap', this.layer, this.head));
    const pen = this.large.getContext('2d');
    pen.scale(ratio, ratio);
    const small = document.createElement('canvas');
    paintHead(small, this.one, this.colours);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, this.margin, 0, numKeys * this.size, numQueries * this.size);
    if (!named) return;
    const style = getComputedStyle(this.large);
    pen.fillStyle = style.color;
    pen.font = `${Math.min(12, this.size - 1)}px ${style.fontFamily}`;
    pen.textBaseline = 'middle';
    pen.textAlign = 'right';
    this.maps.queries.forEach((token, place) => pen.fillText(label(token).slice(0, 11), this.margin - 6, (place + 0.5) * this.size));
    this.maps.keys.forEach((token, place) => {
      pen.save();
      pen.translate(this.margin + (place + 0.5) * this.size, numQueries * this.size + 6);
      pen.rotate(-Math.PI / 3);
      pen.fillText(label(token).slice(0, 11), 0, 0);
      pen.restore();
    });
  }

  point(event) {
    const box = this.large.getBoundingClientRect();
    const query = Math.floor((event.clientY - box.top) / this.size);
    const key = Math.floor((event.clientX - box.left - this.margin) / this.size);
    const inside = query >= 0 && key >= 0 && query < this.one.numQueries && key < this.one.numKeys;
    this.cell(inside ? [query, key] : null);
  }

  key(event) {
    const move = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
    if (event.key === 'Enter' && this.at) this.choose(this.at[0]);
    if (!move) return;
    event.preventDefault();
    const [query, key] = this.at ?? [this.query, 0];
    this.cell([Math.max(0, Math.min(this.one.numQueries - 1, query + move[0])), Math.max(0, Math.min(this.one.numKeys - 1, key + move[1]))]);
  }

  cell(at) {
    this.at = at;
    this.read.textContent = at ? `${label(this.maps.queries[at[0]])} → ${label(this.maps.keys[at[1]])}   ${this.one.weight(...at).toFixed(3)}` : say('pointAtMap');
  }

  choose(query) {
    this.query = query;
    this.drawArcs();
  }

  /** The tokens in a row; from the chosen one an arc to each that it takes from. */
  drawArcs() {
    const { queries, keys, kind } = this.maps;
    const cross = kind === 'cross';
    const widths = (tokens) => { let x = 10; return tokens.map((token) => { const width = Math.max(26, 13 + [...label(token)].reduce((sum, c) => sum + (c.charCodeAt(0) > 0x2e00 ? 14 : 7.6), 0)); x += width; return x - width / 2; }); };
    const [xs, keyXs] = [widths(queries), widths(keys)];
    const width = Math.max(xs.at(-1), keyXs.at(-1)) + 40;
    const from = Math.min(this.query, queries.length - 1);
    const reach = Math.max(...keys.map((_, key) => (this.one.weight(from, key) < 0.005 ? 0 : Math.abs(xs[from] - keyXs[key]))));
    const tallest = cross ? 110 : Math.min(190, 30 + reach / 2.6);
    const lines = keys.map((_, key) => {
      const weight = this.one.weight(from, key);
      if (weight < 0.005 || (!cross && key === from)) return null;
      const [x1, x2] = [xs[from], keyXs[key]];
      const rise = Math.min(tallest - 8, 14 + Math.abs(x1 - x2) / 2.6);
      const d = cross ? `M${x1} ${tallest}C${x1} ${tallest - 50} ${x2} ${72} ${x2} 26` : `M${x1} ${tallest}C${x1} ${tallest - rise * 1.3} ${x2} ${tallest - rise * 1.3} ${x2} ${tallest}`;
      return svg('path', { d, 'stroke-width': (0.5 + 7 * weight).toFixed(2), 'stroke-opacity': (0.2 + 0.8 * Math.sqrt(weight)).toFixed(2) });
    });
    const word = (token, place, x, y, live) => svg('text', { x, y, class: live && place === from ? 'from' : null, tabindex: live ? (place === from ? 0 : -1) : null, role: live ? 'button' : null,
      data: live ? { place } : {}, style: null, on: live ? { click: () => this.focusArc(place), keydown: (event) => { const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]; if (step && queries[place + step] !== undefined) { event.preventDefault(); this.focusArc(place + step); } } } : {} }, label(token));
    const top = cross ? keys.map((token, place) => word(token, place, keyXs[place], 18, false)) : [];
    const bottom = queries.map((token, place) => word(token, place, xs[place], tallest + 18, true));
    if (!cross) keys.forEach((_, key) => { const weight = this.one.weight(from, key); bottom[key].setAttribute('opacity', (key === from ? 1 : 0.45 + 0.55 * Math.min(1, 2 * Math.sqrt(weight))).toFixed(2)); });
    const picture = svg('svg', { width, height: tallest + 30, viewBox: `0 0 ${width} ${tallest + 30}` }, lines, top, bottom);
    this.arcs.replaceChildren(picture);
  }

  focusArc(place) {
    this.choose(place);
    this.arcs.querySelector(`[data-place="${place}"]`).focus();
  }
}
